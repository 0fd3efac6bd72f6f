"""Finished image files on their way into tables and archives: a Parquet file a chunk, in a staging folder.

A cell is the bytes of one new image file, or None where the source's own bytes stay. Items that leave have no cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pureebm.data.base import Result, Stored
from pureebm.data.durable import sync_folder, write_file
from pureebm.data.pictures import encode, in_threads

BATCH_ROWS = 100  # cells in memory, and in a row group
_SCHEMA = pa.schema([("index", pa.int64()), ("bytes", pa.binary())])


class CellChunks:
    """Writes chunks of cells, and reads them all again in the order of their items."""

    def __init__(self, staging: Path, read_original: Callable[[int], bytes | None]) -> None:
        """`read_original` gives the source's own bytes of an item that is copied; None: it leaves."""
        self.staging = staging
        self._read_original = read_original
        staging.mkdir(parents=True, exist_ok=True)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        """As `Sink.write`; a copied item keeps the name that is its id."""
        cells = in_threads(lambda result: encode(result.picture) if result.picture else None, results)
        stored, rows = [], []
        for result, cell in zip(results, cells, strict=True):
            kept = self._kept(result, cell)
            if kept is None:
                stored.append(Stored("", ""))
                continue
            name = result.item.target_name if result.status == "purified" else result.item.id
            stored.append(Stored(name, hashlib.sha256(kept).hexdigest()))
            rows.append({"index": result.item.index, "bytes": cell if result.status == "purified" else None})
        table = pa.Table.from_pylist(rows, _SCHEMA)
        write_file(
            self._path(chunk), lambda file: pq.write_table(table, file, compression="NONE", row_group_size=BATCH_ROWS)
        )
        sync_folder(self.staging)
        return stored

    def read(self, n_chunks: int) -> Cells:
        return Cells(_stream(self._path(chunk) for chunk in range(n_chunks)))

    def _kept(self, result: Result, cell: bytes | None) -> bytes | None:
        if result.status == "copied":
            return self._read_original(result.item.index)
        return cell if result.status == "purified" else None

    def _path(self, chunk: int) -> Path:
        return self.staging / f"chunk-{chunk:08d}.parquet"


class Cells:
    """A stream of (index, cell) with growing indices."""

    def __init__(self, cells: Iterator[tuple[int, bytes | None]]) -> None:
        self._cells = cells
        self._next = next(cells, None)

    def before(self, stop: int) -> Iterator[tuple[int, bytes | None]]:
        """Takes the cells of the items below `stop` that were not taken yet."""
        while self._next is not None and self._next[0] < stop:
            taken, self._next = self._next, next(self._cells, None)
            yield taken


def _stream(paths: Iterator[Path]) -> Iterator[tuple[int, bytes | None]]:
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield from zip(batch["index"].to_pylist(), batch["bytes"].to_pylist(), strict=True)
