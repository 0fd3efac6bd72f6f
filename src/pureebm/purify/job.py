"""The purification of a whole image set: one image one result, resumable at any moment, nothing silent.

A job cuts its source into chunks of a fixed number of items. For each chunk, one thread loads ahead, this one computes,
a third stores the results through the sink and then enters the chunk in the journal. When all chunks are there, whoever
notices first (there may be several processes, each on its shard) makes the target of them and renames it to its place.

Knows sources, sinks and stages by their protocols only: no format, no network, no command line.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pickle
import platform
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import PIL
import torch

from pureebm.data.base import Loaded, Pixels, Result, Sink, Source
from pureebm.data.ranges import stack
from pureebm.errors import InputError, Interrupted, ItemError, MismatchError
from pureebm.purify.batch_size import choose_batch_size
from pureebm.purify.batches import (
    Outcome,
    Sizes,
    Work,
    check_batch_size,
    images_per_batch,
    look,
    purify_items,
)
from pureebm.purify.crew import Crew, DeskWindow, SharedWork
from pureebm.purify.manifest import (
    MANIFEST_NAME,
    RECORD_NAME,
    REPORT_NAME,
    row,
    tally,
    write_durably,
    write_json,
    write_manifest,
)
from pureebm.purify.ranking import read_ranking, settle_ranking
from pureebm.purify.report import Album, find, n_steps, write_report
from pureebm.purify.stages import Highest
from pureebm.purify.workplace import Workplace, check_places, differences, exists, record_path
from pureebm.types import JSON, Progress, Stage

_N_LISTED = 5  # names in a note or warning
CHUNKS_AHEAD = 2  # loaded or being loaded while one is computed


@dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """What a job does besides purifying."""

    seed: Annotated[int, "fixes every draw"] = 0
    limit: Annotated[int | None, "purify only the first N images"] = None
    on_error: Annotated[
        Literal["skip", "copy", "fail"], "an unreadable item is left out, passed on, or ends the job"
    ] = "skip"
    shard: Annotated[tuple[int, int], "(I, N): one of N processes or machines that share the work"] = (0, 1)
    overwrite: Annotated[bool, "replace an earlier target, and throw away a job begun with other settings"] = False
    batch_size: Annotated[int | None, "images of 32x32 in a batch; None chooses by a look at the sizes"] = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        index, count = self.shard
        if not (count >= 1 and 0 <= index <= count):
            raise InputError(f"the shard must be I/N with N >= 1 and 0 <= I <= N, got {index}/{count}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"the limit must be at least 1 image, got {self.limit}")
        if self.on_error not in ("skip", "copy", "fail"):
            raise InputError(f"on_error must be skip, copy or fail, got {self.on_error!r}")


@dataclass(slots=True)
class JobProgress:
    """How far a job is. Satisfies `types.ProgressReport`."""

    done: int
    total: int
    resumed: int
    failed: int
    images_per_second: float
    eta_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a job would do, what it would cost, and what there is."""

    target: str
    settings: JSON
    images: int
    images_done: int  # by an earlier, unfinished run of the same command
    chunks: int
    batch_shape: list[int]
    images_per_second: float | None  # measured on one batch; None where no picture could be read
    seconds: float | None
    bytes_needed: int  # upper estimate, on the target's file system
    bytes_free: int
    finished: bool = False  # this very job has finished the target before: there is nothing to do

    def to_json(self) -> JSON:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a job did: the content of `pureebm-run.json`."""

    status: Literal["complete", "shard-done"]
    target: str
    counts: dict[str, int]
    warnings: list[str]
    steps: int | None  # Langevin updates of each image; None where the purifier has none
    settings: JSON
    batches: dict[str, int]  # batch shape -> how many were computed
    seconds: dict[str, float]  # summed over all processes and resumed runs
    images_per_second: float
    resumed: int  # images that an earlier run had finished
    device: str
    versions: dict[str, str]
    started: str
    finished: str
    source: str = ""  # where it was read; "" in records of early versions
    notes: list[str] = field(default_factory=list)  # what of the source went on as it was

    @property
    def exit_code(self) -> int:
        """1 if anything failed or needs a look, else 0."""
        return 1 if self.counts["failed"] or self.warnings else 0

    def to_json(self) -> JSON:
        return dataclasses.asdict(self)


def plan(source: Source | Path, target: Path, stage: Stage, config: JobConfig) -> Plan:
    """Check everything that `run` checks, time one batch, and write nothing.

    Raises:
        InputError: As `run`.
        MismatchError: Of a target that is complete, as `run`.
    """
    source, target = opened(source), Path(target)
    place = Workplace(target.resolve())
    if not config.overwrite and (record := _done_already(place, source, stage, config)):
        return nothing_left(record, config)
    there = _checked_places(place, source, target, stage, config)
    recorded = place.recorded()
    settings = _settle(source, stage, config, recorded)
    sizes = look(source, settings["images"])
    n_chunks = _n_chunks(settings)
    mine = _my_chunks(n_chunks, config.shard)
    done = place.journal.finished() & set(mine) if recorded == json.loads(json.dumps(settings)) else set()
    n_items, n_done = _n_items(mine, settings), _n_items(done, settings)
    rate, shape = None, [0, 3, 0, 0]
    if sizes.example is not None:
        height, width = sizes.example.pixels.shape[:2]
        shape = [images_per_batch(settings["batch_size"], height, width), 3, height, width]
        rate = shape[0] / _time_batch(stage, shape, sizes.example.pixels, config.seed)
    return Plan(
        target=str(there),
        settings=settings,
        images=n_items,
        images_done=n_done,
        chunks=len(mine),
        batch_shape=shape,
        images_per_second=rate,
        seconds=(n_items - n_done) * (stage.share if isinstance(stage, Highest) else 1) / rate if rate else None,
        bytes_needed=int(sizes.mean_area * 3 * settings["images"]) * (2 if source.single_file else 1),
        bytes_free=_bytes_free(there),
    )


def nothing_left(record: RunRecord, config: JobConfig) -> Plan:
    """The plan of a job whose target is complete."""
    target, settings = Path(record.target), record.settings
    mine = _my_chunks(_n_chunks(settings), config.shard)
    return Plan(
        target=str(target),
        settings=settings,
        images=_n_items(mine, settings),
        images_done=_n_items(mine, settings),
        chunks=len(mine),
        batch_shape=[0, 3, 0, 0],
        images_per_second=None,
        seconds=0.0,
        bytes_needed=0,
        bytes_free=_bytes_free(target),
        finished=True,
    )


def _bytes_free(place: Path) -> int:
    return shutil.disk_usage(next(path for path in place.parents if path.exists())).free


def run(
    source: Source | Path,
    target: Path,
    stage: Stage,
    config: JobConfig,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    crew: Crew | None = None,
) -> RunRecord:
    """Purify a whole image set into `target`, or go on where an earlier run of the same command was cut off.

    Args:
        source: Opened, or a path whose kind is recognized.
        target: Appears when complete, by one rename; its parent folders are made.
        stage: The purifier.
        config: See there.
        progress: Called with a `JobProgress` after every batch.
        stop: Set it (from a signal handler, say) to end the job after the current batch.
        crew: Other processes that compute in place of this one, such as `processes.Processes(4)`.

    Returns:
        The record; of status "shard-done" if shards of other processes are still missing. Where this very job has
        finished the target before, that record: nothing is done again.

    Raises:
        InputError: Source, target or settings are refused, or the disk is full. What was done so far is kept.
        MismatchError: A job for this target was begun with other settings.
        ItemError: An item failed and `on_error` is "fail".
        Interrupted: `stop` was set. The same command goes on from here.
    """
    origin, source = source, opened(source)
    target = Path(target)
    place = Workplace(target.resolve())
    finished = place.left_over() and _same_plan(place, source, stage, config)
    place.clean_up()
    if finished:
        return _read_record(place.target, source)
    if not config.overwrite and (done := _done_already(place, source, stage, config)):
        return done
    there = _checked_places(place, source, target, stage, config)
    with place, _disk_errors(there):
        index, count = config.shard[0] % config.shard[1], config.shard[1]
        settings = place.begin(
            lambda recorded: _settle(source, stage, config, recorded), (index, count), overwrite=config.overwrite
        )
        return _Job(source, stage, config, settings, place, progress, stop, crew, origin).run()


@dataclass(slots=True)
class _Job:
    """One process's share of a job, from the plan to the record."""

    source: Source
    stage: Stage
    config: JobConfig
    settings: JSON
    place: Workplace
    progress: Progress | None
    stop: threading.Event | None
    crew: Crew | None = None
    origin: Source | Path | None = None  # the source as it was given
    album: Album = field(default_factory=Album)
    done: int = 0
    failed: int = 0
    resumed: int = 0
    total: int = 0
    began: float = 0.0
    kept: dict[int, float] = field(default_factory=dict)  # items that stay as they are, with their energies

    def run(self) -> RunRecord:
        started, self.began = datetime.now(UTC), time.perf_counter()
        mine = _my_chunks(_n_chunks(self.settings), self.config.shard)
        finished = self.place.journal.finished()
        self.total = _n_items(mine, self.settings)
        self.done, self.failed = self._settled(sorted(finished & set(mine)))
        self.resumed = self.done
        sink = self.source.open_sink(self.place.staging)
        self._report(0)
        if isinstance(self.stage, Highest):
            settle_ranking(self.source, self.stage, self.settings, self.place, self.stop)
        missing = [chunk for chunk in mine if chunk not in finished]
        if self.crew is None:
            self._compute(missing, sink)
        elif missing:
            self._share(missing, self.crew)

        try:
            with self.place.finishing():
                return self._finish(sink, mine, started)
        except FileNotFoundError:
            if self.place.folder.exists():
                raise
            return _read_record(self.place.target, self.source)  # another shard was last, and quicker

    def _finish(self, sink: Sink, mine: list[int], started: datetime) -> RunRecord:
        """Make the target if no shard is missing; else say what this one did."""
        n_chunks = _n_chunks(self.settings)
        if len(self.place.journal.finished()) < n_chunks:
            return self._record("shard-done", mine, started)
        record = self._record("complete", range(n_chunks), started)
        self.place.finish(
            sink,
            n_chunks,
            lambda side: self._write_side(side, record, n_chunks),
            single_file=self.source.single_file,
            overwrite=self.config.overwrite,
        )
        return record

    def _share(self, chunks: list[int], crew: Crew) -> None:
        """Let other processes compute; this one counts."""
        done, failed = self.done, self.failed

        def report(done_since: int, failed_since: int) -> None:
            now = done + done_since, failed + failed_since
            if now != (self.done, self.failed):
                self.done, self.failed = now
                self._report(0)

        crew(
            SharedWork(
                order=_order(self.origin, self.stage, self.config, self.settings, self.place.target),
                chunks=chunks,
                stage=self.stage,
                journal=self.place.journal,
                settle=self._settled,
                report=report,
                stopped=lambda: self.stop is not None and self.stop.is_set(),
            )
        )
        self._check_stop()

    def _settled(self, chunks: Sequence[int]) -> tuple[int, int]:
        """Images, and failed ones, of chunks that are in the journal."""
        return _n_items(chunks, self.settings), tally(self.place.journal.tables(chunks, ["status", "psnr"]))["failed"]

    def _compute(self, chunks: Iterable[int], sink: Sink) -> None:
        """Load ahead, compute, store behind: three threads, of which this one computes."""
        if isinstance(self.stage, Highest):
            self.kept = read_ranking(self.place).kept(self.stage.share)
        loader, writer = ThreadPoolExecutor(1, "load"), ThreadPoolExecutor(1, "store")
        following = iter(chunks)
        ahead = deque((chunk, loader.submit(self._load, chunk)) for chunk in islice(following, CHUNKS_AHEAD))
        stored: Future[None] | None = None
        try:
            while ahead:
                began = time.perf_counter()
                chunk, loading = ahead.popleft()
                items = loading.result()
                cost = {"load_wait": time.perf_counter() - began}
                if (ahead_chunk := next(following, None)) is not None:
                    ahead.append((ahead_chunk, loader.submit(self._load, ahead_chunk)))
                outcomes = self._purify(items, cost, stored)
                cost["store_wait"] = _wait(stored)
                cost["total"] = time.perf_counter() - began
                stored = writer.submit(self._store, chunk, sink, outcomes, cost)
            _wait(stored)
        finally:
            loader.shutdown(cancel_futures=True)
            writer.shutdown()

    def _load(self, chunk: int) -> list[Loaded]:
        start = chunk * self.settings["chunk_items"]
        return self.source.load(start, min(start + self.settings["chunk_items"], self.settings["images"]))

    def _purify(self, items: list[Loaded], cost: JSON, storing: Future[None] | None) -> list[Outcome]:
        """One chunk; raises at once what storing the one before raised."""
        work = Work()

        def on_batch(n: int) -> None:
            if storing is not None and storing.done():
                storing.result()
            self._check_stop()
            self._report(n)

        seed, batch_size = self.config.seed, self.settings["batch_size"]
        stays = [item.item.index in self.kept and item.picture is not None for item in items]
        on_batch(sum(stays))
        others = [item for item, stay in zip(items, stays, strict=True) if not stay]
        purified = iter(
            purify_items(others, self.stage, seed=seed, batch_size=batch_size, work=work, on_batch=on_batch)
        )
        outcomes = [
            _left(item, self.kept[item.item.index]) if stay else next(purified)
            for item, stay in zip(items, stays, strict=True)
        ]
        failures = [outcome for outcome in outcomes if outcome.message]
        self.failed += len(failures)
        if failures:
            self._report(0)
        if failures and self.config.on_error == "fail":
            raise _refusal(failures[0])
        cost |= {"stage": work.seconds, "batches": dict(work.shapes), "louder": self._louder(outcomes)}
        return outcomes

    def _louder(self, outcomes: Sequence[Outcome]) -> int:
        """How many images met more noise than one that looks natural, where noise adapts (`sampling.langevin`)."""
        stage = self.settings["stage"]
        above = stage.get("adapt_above") if stage["stage"] == "langevin" else None
        if not above:
            return 0
        least = above**2 / 2 * 3  # energy of a pixel of three colors
        return sum(
            one.pixels is not None and (one.energy_before or 0.0) > least * math.prod(one.pixels.shape[:2])
            for one in outcomes
        )

    def _store(self, chunk: int, sink: Sink, outcomes: list[Outcome], cost: JSON) -> None:
        """Bytes first, journal last: a chunk without its journal entry is simply done again."""
        results = [_result(outcome, self.config.on_error) for outcome in outcomes]
        stored = sink.write(chunk, results)
        rows = [row(*triple) for triple in zip(outcomes, results, stored, strict=True)]
        self.place.journal.write(chunk, rows, self.album.choose(outcomes), cost)

    def _check_stop(self) -> None:
        if self.stop is not None and self.stop.is_set():
            whole = f"what was finished in whole chunks of {self.settings['chunk_items']} is kept"
            raise Interrupted(
                f"interrupted after {self.done} of {self.total} images ({whole}); repeat the same command to go on"
            )

    def _report(self, n: int) -> None:
        self.done += n
        if self.progress is not None:
            here, seconds = self.done - self.resumed, time.perf_counter() - self.began
            rate = here / seconds if here else 0.0
            eta = (self.total - self.done) / rate if rate else None
            self.progress(JobProgress(self.done, self.total, self.resumed, self.failed, rate, eta))

    def _record(self, status: Literal["complete", "shard-done"], chunks: Any, started: datetime) -> RunRecord:
        journal = self.place.journal
        counts = tally(journal.tables(chunks, ["status", "psnr"]))
        costs = [journal.cost(chunk) for chunk in chunks]
        seconds = {name: round(sum(cost[name] for cost in costs), 3) for name in _SECONDS}
        if isinstance(self.stage, Highest):
            seconds["ranking"] = round(read_ranking(self.place).seconds, 3)
            seconds["total"] = round(seconds["total"] + seconds["ranking"], 3)
        steps = n_steps(self.settings["stage"])
        return RunRecord(
            status=status,
            target=str(self.place.target),
            counts=counts,
            warnings=_warnings(counts, steps, self.settings["source"]),
            notes=_notes(self.settings["source"]) + _louder_note(self._n_louder(chunks), counts["purified"]),
            steps=steps,
            settings=self.settings,
            batches=dict(sum((Counter(cost["batches"]) for cost in costs), Counter())),
            seconds=seconds,
            images_per_second=round(counts["total"] / seconds["total"], 2) if seconds["total"] else 0.0,
            resumed=self.resumed,
            device=str(find(self.settings["stage"], "device") or "cpu"),
            versions=_versions(),
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            source=str(self.source.path.resolve()),
        )

    def _n_louder(self, chunks: Iterable[int]) -> int:
        return sum(self.place.journal.cost(chunk).get("louder", 0) for chunk in chunks)

    def _write_side(self, side: Path, record: RunRecord, n_chunks: int) -> None:
        """Manifest, report and record, in the order in which each needs the one before."""
        journal = self.place.journal
        write_durably(side / MANIFEST_NAME, lambda file: write_manifest(file, journal, n_chunks))
        write_durably(
            side / REPORT_NAME,
            lambda file: write_report(
                file,
                journal,
                n_chunks,
                settings=self.settings,
                counts=record.counts,
                warnings=record.warnings,
                louder=self._n_louder(range(n_chunks)),
            ),
        )
        write_json(side / RECORD_NAME, record.to_json())


def work_chunks(order: bytes, worker: int, desk: DeskWindow) -> None:
    """Do chunks of a job that another process runs, until its desk has no more.

    Args:
        order: `SharedWork.order`.
        worker: Among the job's workers; it holds a lock under this number.
        desk: Asked for chunks, and told after every batch.

    Raises:
        Interrupted: The desk asked to stop.
        MismatchError: The source is not what it was when the job began.
    """
    origin, stage, config, settings, target = pickle.loads(order)
    source, place, stop = opened(origin), Workplace(target), threading.Event()
    if json.loads(json.dumps(source.describe())) != settings["source"]:
        raise MismatchError(f"the source {source.path} has changed since the job began")

    def tell(progress: Any) -> None:
        if desk.report(progress.done, progress.failed):
            stop.set()

    with place.working(config.shard, worker):
        job = _Job(source, stage, config, settings, place, tell, stop)
        job._compute(iter(desk.next, None), source.open_sink(place.staging))


def _order(origin: Source | Path | None, stage: Stage, config: JobConfig, settings: JSON, target: Path) -> bytes:
    try:
        return pickle.dumps((origin, stage, config, settings, target))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"this job cannot be sent to other processes: {error}; use one process") from error


_SECONDS = ("total", "stage", "load_wait", "store_wait")


def opened(source: Source | Path) -> Source:
    """A source as it is or, from a path, by its kind; `InputError` if it is empty."""
    if isinstance(source, Path):
        from pureebm.data.open import open_source

        return opened(open_source(source))
    if len(source) == 0:
        raise InputError(f"the source {source.path} holds no images")
    return source


def _settle(source: Source, stage: Stage, config: JobConfig, recorded: JSON | None) -> JSON:
    """Everything that influences a byte of the target; what is left open is taken from the recorded plan."""
    images = min(len(source), config.limit or len(source))
    sizes = look(source, images)
    _prepare(stage, sizes)
    settings: JSON = {
        "seed": config.seed,
        "limit": config.limit,
        "on_error": config.on_error,
        "images": images,
        "source_name": source.path.name,
        "stage": stage.settings(),
        "source": source.describe(),
        "versions": {"pureebm": version("pureebm"), "torch": torch.__version__},
    }
    if recorded is not None and recorded.get("images") == images:  # none: an attack was cut off here
        settings |= {name: recorded[name] for name in ("batch_size", "chunk_items")}
        if recorded["on_error"] == "fail":  # nothing has failed so far: the answer to failures may change freely
            recorded["on_error"] = config.on_error
    else:
        size = config.batch_size or choose_batch_size(stage, sizes.batch_size(), images, *sizes.common_shape())
        settings |= {"batch_size": size, "chunk_items": sizes.chunk_items()}
    if config.batch_size is not None:
        settings["batch_size"] = config.batch_size
    return settings


def _prepare(stage: Stage, sizes: Sizes) -> None:
    """Let a stage that chooses something by its first batch (a precision) choose by the same one in every process."""
    prepare = getattr(stage, "prepare", None)
    if prepare is not None and sizes.example is not None:
        prepare(stack([sizes.example.pixels]))


def _same_plan(place: Workplace, source: Source, stage: Stage, config: JobConfig) -> bool:
    recorded = place.recorded()
    return recorded is not None and recorded == json.loads(json.dumps(_settle(source, stage, config, recorded)))


def _done_already(place: Workplace, source: Source, stage: Stage, config: JobConfig) -> RunRecord | None:
    """The record of the target, if this very job has finished it."""
    record = _record_there(place, source)
    if record is None or not same_job(record, source, stage, config):
        return None
    return dataclasses.replace(record, target=str(place.target))  # it may have been moved


def _checked_places(place: Workplace, source: Source, target: Path, stage: Stage, config: JobConfig) -> Path:
    """As `check_places`; a target of ours with other settings is refused with the difference named."""
    try:
        return check_places(source, target, overwrite=config.overwrite)
    except InputError as error:
        raise _other_settings(place, source, stage, config) or error from None


def _other_settings(place: Workplace, source: Source, stage: Stage, config: JobConfig) -> MismatchError | None:
    """What to say of a target that a job with other settings has finished; None of anything else."""
    if (record := _record_there(place, source)) is None:
        return None
    found = differences(record.settings, _settled_again(record, source, stage, config))
    if not found:
        return None
    return MismatchError(
        f"the target {place.target} exists and is complete, made with other settings:\n  " + "\n  ".join(found) + "\n"
        "name another target, or replace this one with --overwrite"
    )


def _record_there(place: Workplace, source: Source) -> RunRecord | None:
    """Of a target that stands in its place: the record of a single file is put in place before the file."""
    if not exists(place.target):
        return None
    try:
        return _read_record(place.target, source)
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def same_job(record: RunRecord, source: Source, stage: Stage, config: JobConfig) -> bool:
    """Whether a command would do what was done already."""
    return record.settings == _settled_again(record, source, stage, config)


def _settled_again(record: RunRecord, source: Source, stage: Stage, config: JobConfig) -> JSON:
    settings: JSON = json.loads(json.dumps(_settle(source, stage, config, dict(record.settings))))
    return settings


def _read_record(target: Path, source: Source) -> RunRecord:
    return RunRecord(**json.loads(record_path(target, source.single_file).read_text(encoding="utf-8")))


def _n_chunks(settings: JSON) -> int:
    return -(-int(settings["images"]) // int(settings["chunk_items"]))


def _my_chunks(n_chunks: int, shard: tuple[int, int]) -> list[int]:
    return list(range(shard[0] % shard[1], n_chunks, shard[1]))


def _n_items(chunks: Any, settings: JSON) -> int:
    size = int(settings["chunk_items"])
    return sum(min(size, int(settings["images"]) - chunk * size) for chunk in chunks)


def _time_batch(stage: Stage, shape: list[int], pixels: Pixels, seed: int) -> float:
    """Seconds that the stage takes for one full batch, energies included; the faster of two if it is quick."""
    images = stack([pixels]).expand(shape).contiguous()
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        stage.energies(images)
        stage.energies(stage.purify_batch(images, [str(i) for i in range(shape[0])], seed=seed).float())
        best = min(best, time.perf_counter() - began)
        if best > 2:
            break
    return best


def _left(item: Loaded, energy: float) -> Outcome:
    """What becomes of an item that is not among those of highest energy: nothing."""
    return Outcome(item, energy_before=energy, energy_after=energy, kept=True)


def _result(outcome: Outcome, on_error: str) -> Result:
    if outcome.kept:
        return Result(outcome.loaded.item, "purified", outcome.picture)
    if outcome.pixels is not None:
        return Result(outcome.loaded.item, "purified", dataclasses.replace(outcome.picture, pixels=outcome.pixels))
    return Result(outcome.loaded.item, "copied" if on_error == "copy" else "skipped")


def _refusal(failure: Outcome) -> ItemError:
    error = ItemError(
        f"{failure.loaded.item.id}: {failure.message}; nothing was put in the target. "
        "Mend or remove the image, or go on without it (--on-error skip) or with it as it is (--on-error copy)"
    )
    error.exit_code = 2  # the job was refused as a whole
    return error


def _warnings(counts: dict[str, int], steps: int | None, source: JSON) -> list[str]:
    warnings = []
    if left_out := _listed(source.get("left_out")):
        warnings.append(f"not in the target: links to folders or out of the source, and the like: {left_out}")
    if odd_labels := _listed(source.get("labels_out_of_range")):
        warnings.append(f"labels that name no class: {odd_labels}")
    if steps == 0:
        warnings.append("the number of steps is 0: nothing was purified, the images are as they were")
    if not counts["total"]:
        return warnings  # a shard that had nothing to do
    if not counts["purified"]:
        warnings.append("no image was purified")
    elif counts["unchanged"] == counts["purified"]:
        warnings.append("every purified image equals its original: the purifier did nothing")
    return warnings


def _notes(source: JSON) -> list[str]:
    told = {"passed_on": "passed on as they are", "unpurified_image_columns": "image columns that were not purified"}
    return [f"{words}: {listed}" for key, words in told.items() if (listed := _listed(source.get(key)))]


def _louder_note(louder: int, purified: int) -> list[str]:
    return [f"stronger noise for images that look unnatural: {louder:,} of {purified:,}"] if louder else []


def _listed(names: JSON | list[str] | None) -> str:
    """A source's list of names, or its {"count", "first"}, as a phrase; "" where it is empty."""
    count, first = (names["count"], names["first"]) if isinstance(names, dict) else (len(names or ()), names or [])
    more = f" and {count - len(first[:_N_LISTED]):,} more" if count > len(first[:_N_LISTED]) else ""
    return ", ".join(first[:_N_LISTED]) + more


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "pureebm": version("pureebm"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }


def _wait(stored: Future[None] | None) -> float:
    """Seconds until the chunk before is stored; raises what storing raised."""
    began = time.perf_counter()
    if stored is not None:
        stored.result()
    return time.perf_counter() - began


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """A full disk or a missing permission as a sentence; what was done so far stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(target.parent).free // 2**20
            message = f"the disk is full ({free} MB free at {target.parent}); make room and repeat the same command"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = f"may not write {error.filename or target}: {error.strerror}"
        else:
            raise
        raise InputError(message) from error
