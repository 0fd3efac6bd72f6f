"""Images in Parquet, as Hugging Face lays them out: a struct of `bytes` and `path` in each row. A file, or a folder.

The column is named by the schema metadata ("huggingface"), else known by its type. Everything else (other columns,
metadata, file names, the order of rows) is kept. Read and written in small batches, whatever the row groups are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pureebm.data.base import Item, Loaded, Result, Stored
from pureebm.data.durable import copy_file, sync_folder, sync_tree, write_file
from pureebm.data.folder import Listing, fingerprint_of, list_folder, readable
from pureebm.data.pictures import encode, in_threads, load_picture
from pureebm.errors import InputError, ItemError
from pureebm.types import JSON

BATCH_ROWS = 100  # rows in memory, and in a row group of the target; as `datasets` does for images
_FAVORED = ("image", "img")


class ParquetFile:
    """One file: where its images are, and its rows as a stream."""

    def __init__(self, path: Path, name: str) -> None:
        """Raises `InputError` if it is no Parquet file, or has no column of images."""
        self.path, self.name = path, name
        try:
            with self.open() as file:
                self.schema: pa.Schema = file.schema_arrow
                self.n_rows: int = file.metadata.num_rows
                groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
                self.group_rows = [group.num_rows for group in groups]
                codec = groups[0].column(0).compression if groups and groups[0].num_columns else "SNAPPY"
                self.codec = "NONE" if codec == "UNCOMPRESSED" else codec  # as a writer takes it
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: cannot be read as Parquet ({_first_line(error)}); is it damaged?") from error
        self.columns = image_columns(self.schema)
        if not self.columns:
            raise InputError(
                f"{path}: no column of images (a struct of bytes and path); its columns are "
                f"{', '.join(f'{field.name} ({field.type})' for field in self.schema)}"
            )
        self.column = self.columns[0]

    def open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)

    def batches(self, start: int = 0, columns: list[str] | None = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(its first row, a batch of at most `BATCH_ROWS`) from the row group of row `start` on."""
        first = row = 0
        while first < len(self.group_rows) and row + self.group_rows[first] <= start:
            row += self.group_rows[first]
            first += 1
        with self.open() as file:
            groups = range(first, len(self.group_rows))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
                yield row, batch
                row += batch.num_rows


class ParquetSource:
    """The rows of one file, or of all files in a folder by name. Memory: a few batches."""

    kind = "parquet"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.single_file = path.is_file()
        listing = Listing() if self.single_file else list_folder(path)
        names = [path.name] if self.single_file else [name for name in listing.others if is_parquet_name(name)]
        self.root = path.parent if self.single_file else path
        self.passed_on = sorted(listing.images + [name for name in listing.others if not is_parquet_name(name)])
        self.left_out = listing.left_out
        self.files = [ParquetFile(self.root / name, name) for name in names]
        self.starts = [0]
        for file in self.files:
            self.starts.append(self.starts[-1] + file.n_rows)
        if not len(self):
            raise InputError(f"{path}: holds no rows; there is nothing to purify")
        self._cells = CellReader(self)

    def __len__(self) -> int:
        return self.starts[-1]

    def item(self, index: int) -> Item:
        which = next(i for i in range(len(self.files)) if index < self.starts[i + 1])
        name = f"{readable(self.files[which].name)}/{index - self.starts[which]}"
        return Item(index, name, name)

    def load(self, start: int, stop: int) -> list[Loaded]:
        items = [self.item(index) for index in range(start, min(stop, len(self)))]
        try:
            cells = self._cells.read(start, start + len(items))
        except (pa.ArrowException, OSError) as error:
            reason = f"the file is damaged: {_first_line(error)}"
            return [Loaded(item, None, ItemError(f"{item.id}: {reason}"), "") for item in items]
        return in_threads(lambda pair: _load_one(*pair), zip(items, cells, strict=True))

    def describe(self) -> JSON:
        fingerprint, n_bytes = fingerprint_of(self.root, [file.name for file in self.files] + self.passed_on)
        return {
            "kind": self.kind,
            "images": len(self),
            "bytes": n_bytes,
            "column": self.files[0].column,
            "unpurified_image_columns": self.files[0].columns[1:],
            "files": {readable(file.name): file.n_rows for file in self.files},
            "passed_on": [readable(name) for name in self.passed_on],
            "left_out": [readable(name) for name in self.left_out],
            "fingerprint": fingerprint,
        }

    def open_sink(self, staging: Path) -> ParquetSink:
        return ParquetSink(self, staging)


class CellReader:
    """The image cells' bytes, read forward; going back opens the file again."""

    def __init__(self, source: ParquetSource) -> None:
        self._source = source
        self._which = -1
        self._batches: Iterator[tuple[int, pa.RecordBatch]] = iter(())
        self._start = 0  # of the current batch, in its file
        self._cells: list[bytes | None] = []

    def read(self, start: int, stop: int) -> list[bytes | None]:
        """Items start .. stop-1 of the whole source."""
        found: list[bytes | None] = []
        for which, (first, end) in enumerate(zip(self._source.starts, self._source.starts[1:], strict=False)):
            for row in range(max(start - first, 0), min(stop, end) - first):
                found.append(self._cell(which, row))
        return found

    def _cell(self, which: int, row: int) -> bytes | None:
        if which != self._which or row < self._start:
            self._open(which, row)
        while row >= self._start + len(self._cells):
            try:
                self._advance()
            except BaseException:
                self._which = -1
                raise
        return self._cells[row - self._start]

    def _open(self, which: int, row: int) -> None:
        file = self._source.files[which]
        self._batches = file.batches(row, [file.column])
        self._which, self._start, self._cells = which, 0, []

    def _advance(self) -> None:
        entry = next(self._batches, None)
        if entry is None:
            raise OSError("it has fewer rows than it says")
        self._start, batch = entry
        self._cells = (
            batch.column(0).field("bytes").to_pylist()
            if not batch.column(0).null_count
            else [cell and cell["bytes"] for cell in batch.column(0).to_pylist()]
        )


class ParquetSink:
    """Finished cells in chunk files; the new file is the old one with its cells exchanged."""

    def __init__(self, source: ParquetSource, staging: Path) -> None:
        self._source, self._staging = source, staging
        self._originals = CellReader(source)
        staging.mkdir(parents=True, exist_ok=True)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        cells = in_threads(lambda result: encode(result.picture) if result.picture else None, results)
        stored, rows = [], []
        for result, cell in zip(results, cells, strict=True):
            if result.status == "skipped":
                stored.append(Stored("", ""))
                continue
            if result.status == "copied":
                cell = None  # the source's cell stays
            kept = cell if cell is not None else self._original(result.item.index)
            stored.append(Stored(result.item.target_name, hashlib.sha256(kept).hexdigest()))
            rows.append({"index": result.item.index, "bytes": cell})
        table = pa.Table.from_pylist(rows, _CHUNK)
        write_file(
            self._path(chunk), lambda file: pq.write_table(table, file, compression="NONE", row_group_size=BATCH_ROWS)
        )
        sync_folder(self._staging)
        return stored

    def assemble(self, target: Path, n_chunks: int) -> None:
        cells = Cells(self._path(chunk) for chunk in range(n_chunks))
        if self._source.single_file:
            self._write_file(target, 0, cells)
            sync_folder(target.parent)
            return
        tree = self._staging / "tree"
        for index, file in enumerate(self._source.files):
            self._write_file(tree / file.name, index, cells)
        for name in self._source.passed_on:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(self._source.path / name, tree / name, aside=self._staging / "assembled")
        sync_tree(tree)
        os.rename(tree, target)
        sync_folder(target.parent)

    def _write_file(self, path: Path, index: int, cells: Cells) -> None:
        file, offset = self._source.files[index], self._source.starts[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._staging / "assembled"
        with pq.ParquetWriter(aside, file.schema, compression=file.codec) as writer:
            for start, batch in file.batches():
                changed = cells.exchange(batch, offset + start, file.column)
                if changed.num_rows:
                    writer.write_batch(changed)
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)

    def _original(self, index: int) -> bytes:
        return self._originals.read(index, index + 1)[0] or b""

    def _path(self, chunk: int) -> Path:
        return self._staging / f"chunk-{chunk:08d}.parquet"


class Cells:
    """The finished cells of all chunks in the order of their rows, taken as a stream."""

    def __init__(self, paths: Iterator[Path]) -> None:
        self._cells = _stream_cells(paths)
        self._next = next(self._cells, None)

    def exchange(self, batch: pa.RecordBatch, start: int, column: str) -> pa.RecordBatch:
        """A batch of source rows from `start` on -> the rows that stay, with their new images."""
        rows: list[int] = []
        images: list[JSON | None] = []
        position = batch.schema.get_field_index(column)
        originals = batch.column(position)
        while self._next is not None and self._next[0] < start + batch.num_rows:
            index, cell = self._next
            original = originals[index - start].as_py()
            images.append(original if cell is None else _with_bytes(original, cell))
            rows.append(index - start)
            self._next = next(self._cells, None)
        kept = batch.take(pa.array(rows, pa.int64()))
        return kept.set_column(position, batch.schema.field(position), pa.array(images, originals.type))


def image_columns(schema: pa.Schema) -> list[str]:
    """The columns of images: those that the metadata name, else those of the type; "image" and "img" first."""
    fitting = [field.name for field in schema if _is_image_type(field.type)]
    named = [name for name in fitting if name in _named_images(schema)]
    return sorted(named or fitting, key=lambda name: name not in _FAVORED)


def is_parquet_name(name: str) -> bool:
    return name.lower().endswith(".parquet")


def is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return is_parquet_name(path.name) or file.read(4) == b"PAR1"


def has_image_column(path: Path) -> bool:
    try:
        return bool(image_columns(pq.read_schema(path)))
    except (pa.ArrowException, OSError):
        return False


_CHUNK = pa.schema([("index", pa.int64()), ("bytes", pa.binary())])


def _load_one(item: Item, cell: bytes | None) -> Loaded:
    if cell is None:
        return Loaded(item, None, ItemError(f"{item.id}: the cell holds no bytes; store the image in it"), "")
    return load_picture(item, cell)


def _stream_cells(paths: Iterator[Path]) -> Iterator[tuple[int, bytes | None]]:
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                yield from zip(batch["index"].to_pylist(), batch["bytes"].to_pylist(), strict=True)


def _with_bytes(original: JSON, cell: bytes) -> JSON:
    path = original.get("path")
    return original | {"bytes": cell, "path": os.path.splitext(path)[0] + ".png" if path else path}


def _is_image_type(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or kind.get_field_index("path") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _named_images(schema: pa.Schema) -> set[str]:
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Image"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
