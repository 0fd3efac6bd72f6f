"""Jobs of the page: one folder each, from which a server that was killed learns all it needs.

    JOBS/20261123-141502-9f3a/
        order.json        what was asked for; written before anything begins
        end.json          why it ended without a result: stopped by the user, or failed
        result/NAME       the target of `purify.job.run`, with its own journal beside it until it is whole

A job with neither a result nor an end was interrupted; it goes on where it was, since that is what the job itself does.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from pureebm.data.open import open_source
from pureebm.errors import InputError, Interrupted, PureebmError
from pureebm.purify.job import JobConfig, run
from pureebm.purify.manifest import MANIFEST_NAME, RECORD_NAME, REPORT_NAME, write_json
from pureebm.purify.workplace import Workplace, side_folder
from pureebm.sampling.langevin import LangevinConfig
from pureebm.types import JSON, ProgressReport, Stage
from pureebm.web.places import new_id

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "interrupted", "stopped", "failed", "done"]
ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a job was asked to do."""

    source: str  # real path
    model: str
    sampler: JSON  # fields of LangevinConfig
    seed: int = 0
    limit: int | None = None
    on_error: Literal["skip", "copy", "fail"] = "skip"
    created: str = ""

    @property
    def name(self) -> str:
        """Of the source, and so of the target."""
        return Path(self.source).name or "images"

    def config(self) -> LangevinConfig:
        """Raises `InputError` for what another version wrote."""
        try:
            return LangevinConfig(**self.sampler)
        except TypeError as error:
            raise InputError(f"the job was ordered by another version of this program: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a job stands."""

    state: State
    done: int = 0
    total: int | None = None
    failed: int = 0
    images_per_second: float | None = None
    eta_seconds: float | None = None
    message: str = ""

    def to_json(self) -> JSON:
        return dataclasses.asdict(self)


@dataclass(slots=True)
class _Live:
    """A job that waits or runs in this process."""

    stop: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False
    progress: ProgressReport | None = None
    future: Future[None] | None = None


class Jobs:
    """All jobs of a workspace, of which one runs at a time.

    Args:
        folder: Theirs alone; locked, so that two servers never work on the same jobs.
        make_stage: The purifier of a sampler's settings.
        check_source: Raises `InputError` for a path that may not be read (any more).

    Raises:
        InputError: Another server has the folder.
    """

    def __init__(
        self, folder: Path, make_stage: Callable[[LangevinConfig], Stage], check_source: Callable[[Path], object]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.make_stage, self.check_source = make_stage, check_source
        self._held = _hold(folder / "lock")
        self._worker = ThreadPoolExecutor(1, "job")
        self._live: dict[str, _Live] = {}
        self._lock = threading.Lock()

    def close(self) -> bool:
        """End what runs after its batch, to be resumed another time; whether anything was cut off."""
        with self._lock:
            live = list(self._live.values())
        for job in live:
            job.stop.set()
        self._worker.shutdown(cancel_futures=True)
        os.close(self._held)
        return bool(live)

    def ids(self) -> list[str]:
        """The newest first."""
        return sorted((path.parent.name for path in self.folder.glob("*/order.json") if _is_id(path)), reverse=True)

    def overview(self, limit: int | None = None) -> list[tuple[str, Order, Status]]:
        """The newest first; one whose order is damaged has a place too."""
        found = []
        for job in self.ids()[:limit]:
            try:
                found.append((job, self.order(job), self.status(job)))
            except InputError as error:
                found.append((job, Order(source=job, model="", sampler={}), Status(state="failed", message=str(error))))
        return found

    def order(self, job: str) -> Order:
        """Raises `InputError` if there is no such job."""
        try:
            return Order(**json.loads((self._place(job) / "order.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise InputError(f"there is no job {job!r}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"the order of job {job!r} cannot be read: {error}") from error

    def start(self, order: Order) -> str:
        """Write the order down and let it wait for its turn; the job's id."""
        job = new_id()
        created = datetime.now().isoformat(" ", timespec="minutes")
        (self.folder / job).mkdir()
        write_json(self._place(job) / "order.json", dataclasses.asdict(dataclasses.replace(order, created=created)))
        self._submit(job)
        return job

    def resume(self, job: str) -> None:
        """Let an interrupted, stopped or failed job go on. Raises `InputError` where there is nothing to resume."""
        state = self.status(job).state
        if state in ("waiting", "running", "done"):
            raise InputError(f"the job is {state}; there is nothing to resume")
        (self._place(job) / "end.json").unlink(missing_ok=True)
        self._submit(job)

    def cancel(self, job: str) -> None:
        """End a job after its current batch; what is done is kept. Nothing happens if it has ended already."""
        self.order(job)
        with self._lock:
            live = self._live.get(job)
            if live is None:
                return
            live.cancelled = True
            live.stop.set()
            if live.future is not None and live.future.cancel():
                del self._live[job]
                self._end(job, "stopped", "")

    def delete(self, job: str) -> None:
        """Remove a job and its result. Raises `InputError` while it runs."""
        self.order(job)
        with self._lock:
            if job in self._live:
                raise InputError("the job is running; cancel it first")
        gone = self.folder / f"gone-{job}"
        os.rename(self._place(job), gone)
        shutil.rmtree(gone)

    def uses(self, path: Path) -> bool:
        """Whether a job that waits or runs reads this source."""
        with self._lock:
            live = list(self._live)
        return any(Path(self.order(job).source) == path for job in live)

    def status(self, job: str) -> Status:
        """Raises `InputError` if there is no such job."""
        order = self.order(job)
        with self._lock:
            live = self._live.get(job)
        if live is not None:
            return _status_of(live)
        if (record := self.record(job)) is not None:
            counts = record["counts"]
            return Status(state="done", done=counts["total"], total=counts["total"], failed=counts["failed"])
        done, total = self._so_far(self.target(job, order))
        try:
            end = json.loads((self._place(job) / "end.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Status(state="interrupted", done=done, total=total)
        return Status(state=end["state"], done=done, total=total, message=end["message"])

    def target(self, job: str, order: Order | None = None) -> Path:
        """Where the result is, or will be."""
        return self._place(job) / "result" / (order or self.order(job)).name

    def side_file(self, job: str, name: str) -> Path:
        """The record, manifest or report of a finished job. Raises `InputError` if it is not there."""
        target = self.target(job)
        path = side_folder(target, target.is_file()) / name
        if not path.is_file():
            raise InputError("the job has no result yet")
        return path

    def record(self, job: str) -> JSON | None:
        """What `pureebm-run.json` says of a finished job."""
        try:
            record: JSON = json.loads(self.side_file(job, RECORD_NAME).read_text(encoding="utf-8"))
        except InputError:
            return None
        return record

    def report(self, job: str) -> Path:
        """Raises `InputError` if there is none yet; as does `manifest`."""
        return self.side_file(job, REPORT_NAME)

    def manifest(self, job: str) -> Path:
        return self.side_file(job, MANIFEST_NAME)

    def _place(self, job: str) -> Path:
        if not ID.fullmatch(job):
            raise InputError(f"there is no job {job!r}")
        return self.folder / job

    def _submit(self, job: str) -> None:
        with self._lock:
            if job in self._live:
                raise InputError("the job is waiting or running already")
            live = self._live[job] = _Live()
            live.future = self._worker.submit(self._run, job, live)

    def _run(self, job: str, live: _Live) -> None:
        try:
            order = self.order(job)
            source = Path(order.source)
            self.check_source(source)
            config = JobConfig(seed=order.seed, limit=order.limit, on_error=order.on_error)

            def report(progress: ProgressReport) -> None:
                live.progress = progress

            stage = self.make_stage(order.config())
            run(open_source(source), self.target(job, order), stage, config, progress=report, stop=live.stop)
        except Interrupted:
            if live.cancelled:
                self._end(job, "stopped", "")
        except PureebmError as error:
            self._end(job, "failed", str(error))
        except Exception as error:
            log.exception("job %s", job)
            self._end(job, "failed", f"internal error: {error!r}; the server's log says more")
        finally:
            with self._lock:
                self._live.pop(job, None)

    def _end(self, job: str, state: State, message: str) -> None:
        write_json(self._place(job) / "end.json", {"state": state, "message": message})

    def _so_far(self, target: Path) -> tuple[int, int | None]:
        """Images that the job's own journal holds, and how many it will be."""
        place = Workplace(target)
        plan = place.recorded()
        if plan is None:
            return 0, None
        size, total = int(plan["chunk_items"]), int(plan["images"])
        return sum(min(size, total - chunk * size) for chunk in place.journal.finished()), total


def _status_of(live: _Live) -> Status:
    now = live.progress
    if now is None:
        running = live.future is not None and live.future.running()
        return Status(state="running" if running else "waiting")
    return Status(
        state="running",
        done=now.done,
        total=now.total,
        failed=now.failed,
        images_per_second=now.images_per_second,
        eta_seconds=now.eta_seconds,
    )


def _is_id(path: Path) -> bool:
    return ID.fullmatch(path.parent.name) is not None


def _hold(path: Path) -> int:
    """An exclusive lock that ends with the process."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InputError(f"another server works in {path.parent}; stop it, or choose another --workspace") from None
    return handle
