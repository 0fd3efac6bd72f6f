"""What several processes that share one job agree on: who does which chunk, and what becomes of it when one dies.

A crew (`processes.Processes` on one machine, `integrations.ray.RayCrew` on many) starts workers, each of which runs
`job.work_chunks`: it asks a `Desk` for chunks, reports after every batch, and enters what it has stored in the job's
journal. Only the journal says that a chunk is done, so that a worker may die at any moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pureebm.errors import PureebmError
from pureebm.purify.manifest import Journal
from pureebm.types import Stage


class DeskWindow(Protocol):
    """A worker's side of the desk."""

    def next(self) -> int | None:
        """A chunk to do, or None when there is nothing left."""
        ...

    def report(self, done: int, failed: int) -> bool:
        """Images that this worker has settled so far, and how many of them failed; True asks it to stop."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWork:
    """What a crew is given."""

    order: bytes
    """Pickled; `job.work_chunks` understands it in any process that sees the same files."""
    chunks: Sequence[int]
    stage: Stage
    journal: Journal
    settle: Callable[[Sequence[int]], tuple[int, int]]
    """Images done and failed in chunks that are in the journal."""
    report: Callable[[int, int], None]
    """To be called with the images that the whole crew has done and failed so far."""
    stopped: Callable[[], bool]


Crew = Callable[[SharedWork], None]
"""Does all the chunks, or returns early if `stopped`. Raises what a worker raised."""


class Desk:
    """Hands out chunks, counts what workers report, and takes back the chunks of the dead."""

    def __init__(self, chunks: Sequence[int]) -> None:
        self._left = deque(chunks)
        self._given: dict[int, list[int]] = {}
        self._counts: dict[int, tuple[int, int]] = {}
        self._stopping = False

    def next(self, worker: int) -> int | None:
        """As `DeskWindow.next`."""
        if self._stopping or not self._left:
            return None
        chunk = self._left.popleft()
        self._given.setdefault(worker, []).append(chunk)
        return chunk

    def report(self, worker: int, done: int, failed: int) -> bool:
        """As `DeskWindow.report`."""
        self._counts[worker] = done, failed
        return self._stopping

    def counts(self) -> tuple[int, int]:
        """Images done and failed, over all workers."""
        return sum(done for done, _ in self._counts.values()), sum(failed for _, failed in self._counts.values())

    def stop(self) -> None:
        """Hand out no more, and ask all workers to end after their batch."""
        self._stopping = True

    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def given(self, worker: int) -> list[int]:
        """All chunks that a worker has got."""
        return list(self._given.get(worker, []))

    def take_back(self, chunks: Sequence[int]) -> None:
        """To be given out again, before all others."""
        self._left.extendleft(reversed(chunks))


def bury(desk: Desk, worker: int, work: SharedWork, cause: str) -> bool:
    """Settle the account of a worker that has ended: what it had and is not in the journal goes back to the desk.

    Returns:
        Whether another worker is needed in its place.

    Raises:
        PureebmError: it had finished nothing: the next one would fare alike.
    """
    finished = work.journal.finished()
    given = desk.given(worker)
    kept, lost = [c for c in given if c in finished], [c for c in given if c not in finished]
    desk.report(worker, *work.settle(kept))
    if not lost or desk.stopped():
        return False
    if not kept:
        desk.stop()
        raise PureebmError(
            f"a worker ended ({cause}) before it had finished a chunk; what is done is kept. Repeat the same command"
            " to go on; with fewer workers if memory is short"
        )
    desk.take_back(lost)
    return True
