"""The energy of every image, highest first: a way to see at once what a set holds that is not natural.

Knows sources and stages by their protocols only. Memory grows by one id and one number an image.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pureebm.data.base import Source
from pureebm.data.durable import check_place
from pureebm.errors import InputError, Interrupted
from pureebm.purify.batches import check_batch_size, look, score_items
from pureebm.purify.job import JobProgress, opened
from pureebm.purify.manifest import printable, write_durably
from pureebm.types import JSON, Progress, Stage

SCHEMA = pa.schema([("id", pa.string()), ("energy", pa.float32())])


@dataclass(frozen=True, slots=True)
class Scores:
    """`table` has the columns id and energy, highest first; `failures` maps ids to what was wrong."""

    table: pa.Table
    failures: dict[str, str]
    batch_size: int

    @property
    def exit_code(self) -> int:
        """1 if some images have no energy, else 0."""
        return 1 if self.failures else 0

    def to_json(self) -> JSON:
        return {
            "images": len(self.table) + len(self.failures),
            "scored": len(self.table),
            "failed": len(self.failures),
            "failures": self.failures,
            "batch_size": self.batch_size,
            "scores": self.table.to_pylist(),
        }


def score(
    source: Source | Path,
    stage: Stage,
    *,
    out: Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Scores:
    """The network's own output for each image at its size.

    Args:
        source: Opened, or a path whose kind is recognized.
        stage: A purifier with an energy.
        out: A Parquet file to write; replaced if it exists, and appears whole or not at all.
        limit: Only the first so many images.
        batch_size: Images of 32x32 in a batch; None chooses by a look at the sizes.
        progress: Called with a `job.JobProgress` after every chunk.
        stop: Set it to end after the current chunk.

    Raises:
        InputError: No images, no energy, or a place where `out` cannot be written: the source itself, above all.
        Interrupted: `stop` was set.
    """
    source = opened(source)
    check_batch_size(batch_size)
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1 image, got {limit}")
    if out is not None:
        _check_out(out, source)
    total = min(len(source), limit or len(source))
    sizes = look(source, total)
    batch_size = batch_size or sizes.batch_size()
    parts, failures, began = [], dict[str, str](), time.perf_counter()
    for start in range(0, total, sizes.chunk_items()):
        if stop is not None and stop.is_set():
            raise Interrupted(f"interrupted after {start} of {total} images; repeat the command to score them")
        stop_at = min(start + sizes.chunk_items(), total)
        outcomes = score_items(source.load(start, stop_at), stage, batch_size=batch_size)
        good = [{"id": printable(o.loaded.item.id), "energy": o.energy_before} for o in outcomes if not o.message]
        failures |= {printable(o.loaded.item.id): printable(o.message) for o in outcomes if o.message}
        parts.append(pa.Table.from_pylist(good, schema=SCHEMA))
        if progress is not None:
            rate = stop_at / (time.perf_counter() - began)
            progress(JobProgress(stop_at, total, 0, len(failures), rate, (total - stop_at) / rate))
    table = pa.concat_tables(parts).sort_by([("energy", "descending"), ("id", "ascending")]).combine_chunks()
    if out is not None:
        _write(out, table)
    return Scores(table, failures, batch_size)


def _check_out(out: Path, source: Source) -> None:
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a .parquet file")
    here, there = source.path.resolve(), out.resolve()
    if there == here or here in there.parents:
        raise InputError(f"{out} lies in the source {source.path}, where nothing is ever touched; name another place")
    try:
        check_place(out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error


def _write(out: Path, table: pa.Table) -> None:
    try:
        write_durably(out, lambda file: pq.write_table(table, file))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
