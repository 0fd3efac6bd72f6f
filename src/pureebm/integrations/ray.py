"""Ray: the workers of a job on every machine of a cluster: `run(..., crew=RayCrew())`, `pureebm purify --engine ray`.

Each worker is a Ray task that loads the model once and then asks for chunks until there are none; a worker that dies is
replaced. Source and target must lie where all machines see them under the same path. Extra: `pureebm[ray]`.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, cast

import torch

from pureebm.errors import InputError, Interrupted
from pureebm.purify.crew import Desk, SharedWork, bury
from pureebm.purify.job import work_chunks
from pureebm.purify.processes import may_move
from pureebm.purify.report import find
from pureebm.types import Stage

SECONDS_BETWEEN_LOOKS = 0.2


class RayCrew:
    """A crew of Ray workers.

    Args:
        count: workers; by default as many as the cluster has processors (or GPUs) for, and at most one a chunk.
        threads: processors that each worker reserves and uses.

    Uses the Ray that this process is connected to; else the cluster that RAY_ADDRESS names or, without that, a local
    one that ends with the job. A purifier on CUDA gets one GPU for each worker; this process needs one too.

    Raises:
        InputError: Ray is not installed, the cluster has no place for a single worker, or a GPU was chosen by number.
    """

    def __init__(self, count: int | None = None, *, threads: int | None = None) -> None:
        if count is not None and count < 1:
            raise InputError(f"there must be at least 1 worker, got {count}")
        self.count, self.threads = count, threads or 1
        _ray()

    def __call__(self, work: SharedWork) -> None:
        """As `crew.Crew`."""
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            _start(ray)
        try:
            self._run(ray, work)
        finally:
            if ours:
                ray.shutdown()

    def _run(self, ray: Any, work: SharedWork) -> None:
        needs = self.needs(work.stage)
        actor = ray.remote(num_cpus=0)(Desk).remote(work.chunks)
        task = ray.remote(max_retries=0, **needs)(_work)
        order = ray.put(work.order)
        desk = cast(Desk, _Remote(ray, actor))
        running = {task.remote(order, n, actor, self.threads): n for n in range(self._size(ray, needs, work))}
        hired, errors = len(running), list[BaseException]()
        try:
            while running:
                for future in ray.wait([*running], timeout=SECONDS_BETWEEN_LOOKS)[0]:
                    worker, cause = running.pop(future), "without an error"
                    try:
                        ray.get(future)
                    except ray.exceptions.RayTaskError as error:
                        errors.append(error.cause)
                    except ray.exceptions.RayError as error:
                        cause = str(error).partition("\n")[0]
                    if not errors and bury(desk, worker, work, cause):
                        running[task.remote(order, hired, actor, self.threads)] = hired
                        hired += 1
                work.report(*desk.counts())
                if errors or work.stopped():
                    desk.stop()
        finally:
            for future in running:
                ray.cancel(future, force=True)
        if errors:
            raise errors[0]

    def needs(self, stage: Stage) -> dict[str, int]:
        """What each worker reserves. Raises `InputError` where the purifier is bound to one GPU of this machine."""
        cuda = find(stage.settings(), "device") == "cuda"
        if cuda and not may_move(stage):
            raise InputError("Ray chooses the GPU of each worker: give the device as cuda, without a number")
        return {"num_cpus": self.threads, "num_gpus": int(cuda)}

    def _size(self, ray: Any, needs: dict[str, int], work: SharedWork) -> int:
        have = ray.cluster_resources()
        room = int(min(have.get(kind, 0) // needs[name] for name, kind in _KINDS.items() if needs[name]))
        if room < 1:
            raise InputError(f"the Ray cluster has no place for a worker of {needs}; it has {have}")
        return min(self.count or room, len(work.chunks))


_KINDS = {"num_cpus": "CPU", "num_gpus": "GPU"}


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'pureebm[ray]'") from error
    return ray


def _start(ray: Any) -> None:
    """Connect, and keep our own answer to SIGTERM: Ray's would abort the process, and a job stops in good order."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class _Remote:
    """The desk as the first process sees it: every method waits for its answer."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return lambda *arguments: self._ray.get(method.remote(*arguments))


class _Window:
    """The desk as a worker sees it."""

    def __init__(self, actor: Any, worker: int) -> None:
        self._actor, self._worker = actor, worker

    def next(self) -> int | None:
        return cast("int | None", self._ask(self._actor.next))

    def report(self, done: int, failed: int) -> bool:
        return bool(self._ask(self._actor.report, done, failed))

    def _ask(self, method: Any, *arguments: int) -> Any:
        ray = _ray()
        try:
            return ray.get(method.remote(self._worker, *arguments))
        except ray.exceptions.RayActorError:
            raise Interrupted("the first process of this job is gone") from None


def _work(order: bytes, number: int, actor: Any, threads: int) -> None:
    """A worker's life."""
    torch.set_num_threads(threads)
    try:
        work_chunks(order, number, _Window(actor, number))
    except Interrupted:
        pass
