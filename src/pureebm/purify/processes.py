"""Several processes on one machine that share a job: `run(..., crew=Processes(4))`, `pureebm purify --workers 4`.

Each worker is a fresh (spawned) process with a pipe to the first one, which does nothing but answer. A pipe that ends
tells of a dead worker at once. On a machine with several CUDA devices worker i sees device i alone.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from pureebm.errors import InputError, Interrupted
from pureebm.purify.crew import Desk, SharedWork, bury
from pureebm.types import Stage

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Processes:
    """A crew of `count` processes.

    Args:
        count: at least 1. Never more are started than there are chunks.
        threads: processor threads of each; by default those of this process are shared out.

    As with every use of multiprocessing, a script that calls it needs the guard `if __name__ == "__main__":`.
    """

    def __init__(self, count: int, *, threads: int | None = None) -> None:
        if count < 1:
            raise InputError(f"there must be at least 1 worker, got {count}")
        self.count = count
        self.threads = threads or max(1, torch.get_num_threads() // count)

    def __call__(self, work: SharedWork) -> None:
        """As `crew.Crew`."""
        desk, staff = Desk(work.chunks), dict[Connection, tuple[int, SpawnProcess]]()
        errors: list[BaseException] = []
        try:
            for number in range(min(self.count, len(work.chunks))):
                self._start(work, number, staff)
            while staff:
                for pipe in wait([*staff]):
                    assert isinstance(pipe, Connection)
                    number, process = staff[pipe]
                    if _serve(pipe, number, desk, errors):
                        work.report(*desk.counts())
                    else:
                        del staff[pipe]
                        pipe.close()
                        process.join()
                        if bury(desk, number, work, _cause(process)):
                            self._start(work, number + self.count, staff)
                    if work.stopped() or errors:
                        desk.stop()
        finally:
            for _, process in staff.values():
                process.kill()
                process.join()
        if errors:
            raise errors[0]
        work.report(*desk.counts())

    def _start(self, work: SharedWork, number: int, staff: dict[Connection, tuple[int, SpawnProcess]]) -> None:
        """A replacement has a number of its own, and the device of the one that it replaces."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(work.order, number, theirs, self.threads), daemon=True)
        seen = (
            visible_device(number % self.count, torch.cuda.device_count(), os.environ) if may_move(work.stage) else None
        )
        with _environment(seen):
            process.start()
        theirs.close()  # else the pipe would not end with the worker
        staff[ours] = number, process


def visible_device(worker: int, n_devices: int, environment: Mapping[str, str]) -> str | None:
    """What CUDA_VISIBLE_DEVICES must be for a worker, counted from 0; None where nothing is to be shared out."""
    if n_devices < 2:
        return None
    names = environment.get(_VISIBLE, "").split(",") if environment.get(_VISIBLE) else list(map(str, range(n_devices)))
    return names[worker % n_devices]


def may_move(stage: Stage) -> bool:
    """On CUDA, and on no device that was named by its number."""
    cuda = [device for device in _devices(stage) if device.type == "cuda"]
    return bool(cuda) and all(device.index is None for device in cuda)


def _devices(stage: Stage) -> Iterator[torch.device]:
    """Those of a purifier and of the purifiers in it."""
    if hasattr(stage, "device"):
        yield torch.device(stage.device)
    for inner in (*getattr(stage, "stages", ()), getattr(stage, "stage", None), getattr(stage, "by", None)):
        if inner is not None:
            yield from _devices(inner)


@contextmanager
def _environment(visible: str | None) -> Iterator[None]:
    """What a process that is started inside sees."""
    before = os.environ.get(_VISIBLE)
    if visible is not None:
        os.environ[_VISIBLE] = visible
    try:
        yield
    finally:
        if visible is not None:
            del os.environ[_VISIBLE]
            if before is not None:
                os.environ[_VISIBLE] = before


def _serve(pipe: Connection, number: int, desk: Desk, errors: list[BaseException]) -> bool:
    """Answer one question; False if the worker is gone."""
    try:
        match pipe.recv():
            case ("next",):
                pipe.send(desk.next(number))
            case ("report", done, failed):
                pipe.send(desk.report(number, done, failed))
            case ("error", error):
                errors.append(error)
        return True
    except (EOFError, ConnectionError):
        return False


def _cause(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


class _Window:
    """The desk through a pipe. A question without an answer means that the first process is gone."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def next(self) -> int | None:
        return self._ask("next")  # type: ignore[no-any-return]

    def report(self, done: int, failed: int) -> bool:
        return bool(self._ask("report", done, failed))

    def _ask(self, *question: object) -> Any:
        try:
            self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise Interrupted("the first process of this job is gone") from None


def _work(order: bytes, number: int, pipe: Connection, threads: int) -> None:
    """A worker's life. Ctrl-C reaches every process of a terminal: the first one decides for all."""
    from pureebm.purify.job import work_chunks

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        work_chunks(order, number, _Window(pipe))
    except Interrupted:
        pass
    except BaseException as error:
        error.add_note("in a worker:\n" + traceback.format_exc())
        pipe.send(("error", _sendable(error)))


def _sendable(error: BaseException) -> BaseException:
    """The error itself if it survives a pipe, else one with its words."""
    try:
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else RuntimeError(repr(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
