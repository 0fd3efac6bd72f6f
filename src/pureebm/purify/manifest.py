"""One row an item: what the journal collects chunk by chunk, and what the manifest says in the end.

A chunk is done when its journal file exists: it is written after the sink's bytes are safe, and appears by one rename.
Journal files also carry a few pictures for the report, and in their metadata what the chunk cost; the manifest has
neither, so that its bytes depend on the source and the settings alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pureebm.data.base import Result, Stored
from pureebm.data.durable import sync_folder, write_file
from pureebm.purify.batches import Outcome
from pureebm.types import JSON

MANIFEST_NAME = "pureebm-manifest.parquet"
RECORD_NAME = "pureebm-run.json"
REPORT_NAME = "pureebm-report.html"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source_name", pa.string()),
        ("target_name", pa.string()),  # "" where the item was left out
        ("status", pa.string()),  # purified, kept (its energy is not among the highest), copied, skipped
        ("message", pa.string()),  # why it could not be purified
        ("energy_before", pa.float32()),
        ("energy_after", pa.float32()),
        ("psnr", pa.float64()),  # dB to the input; inf where nothing changed
        ("sha256_before", pa.string()),
        ("sha256_after", pa.string()),
    ]
)
PICTURES = pa.schema([("before_png", pa.binary()), ("after_png", pa.binary())])
Shown = tuple[bytes, bytes] | None
"""A picture before and after as PNG, where the report may show it."""


class Journal:
    """The finished chunks of a job: a folder of Parquet files, `000012.parquet` for chunk 12."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.parquet"

    def finished(self) -> set[int]:
        """Numbers of the chunks that are done."""
        return {int(path.stem) for path in self.folder.glob("*.parquet") if path.stem.isdigit()}

    def write(self, chunk: int, rows: Sequence[JSON], shown: Sequence[Shown], cost: JSON) -> None:
        """Mark a chunk as done. Call this when its bytes are safe in the sink."""
        pictures = [{"before_png": pair and pair[0], "after_png": pair and pair[1]} for pair in shown]
        table = pa.Table.from_pylist(
            [row | picture for row, picture in zip(rows, pictures, strict=True)],
            schema=pa.unify_schemas([SCHEMA, PICTURES]).with_metadata({"cost": json.dumps(cost)}),
        )
        write_durably(self.path(chunk), lambda file: pq.write_table(table, file))

    def tables(self, chunks: Sequence[int], columns: Sequence[str] = SCHEMA.names) -> Iterator[pa.Table]:
        """The rows of these chunks, a table each."""
        for chunk in chunks:
            yield pq.read_table(self.path(chunk), columns=list(columns)).replace_schema_metadata(None)

    def cost(self, chunk: int) -> JSON:
        """What computing the chunk took, in whichever process did it."""
        cost: JSON = json.loads(pq.read_schema(self.path(chunk)).metadata[b"cost"])
        return cost


def row(outcome: Outcome, result: Result, stored: Stored) -> JSON:
    """One line of the manifest."""
    return {
        "id": printable(outcome.loaded.item.id),
        "source_name": printable(outcome.loaded.item.id),
        "target_name": printable(stored.target_name),
        "status": "kept" if outcome.kept else result.status,
        "message": printable(outcome.message),
        "energy_before": outcome.energy_before,
        "energy_after": outcome.energy_after,
        "psnr": outcome.psnr(),
        "sha256_before": outcome.loaded.sha256,
        "sha256_after": stored.sha256,
    }


def printable(name: str) -> str:
    """A file name that is not UTF-8 (Python holds it with lone surrogates) as text that every file format takes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_manifest(file: BinaryIO, journal: Journal, n_chunks: int, *, chunks_at_once: int = 64) -> None:
    """All rows in the order of the source, streamed. The same rows always give the same bytes."""
    with pq.ParquetWriter(file, SCHEMA) as writer:
        for start in range(0, n_chunks, chunks_at_once):
            chunks = range(start, min(start + chunks_at_once, n_chunks))
            writer.write_table(pa.concat_tables(journal.tables(chunks)).cast(SCHEMA))


def tally(tables: Iterator[pa.Table]) -> dict[str, int]:
    """Counts over rows: total, purified, copied, skipped, failed (copied or skipped), unchanged; and kept, if any."""
    counts = dict.fromkeys(("total", "purified", "copied", "skipped", "failed", "unchanged"), 0)
    for table in tables:
        for status, psnr in zip(table["status"].to_pylist(), table["psnr"].to_pylist(), strict=True):
            counts[status] = counts.get(status, 0) + 1
            counts["unchanged"] += psnr == float("inf")
        counts["total"] += len(table)
    return counts | {"failed": counts["copied"] + counts["skipped"]}


def write_durably(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Make `path` of what `fill` writes: there whole or not at all, even after a power cut."""
    write_file(path, fill)
    sync_folder(path.parent)


def write_json(path: Path, content: JSON) -> None:
    """Durable, indented, with a final newline."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_durably(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
