"""The desk: every chunk is handed out, none of the dead's is lost, none is counted twice."""

from __future__ import annotations

import pytest
from tests.purify.job_fakes import Shift

from pureebm.errors import PureebmError
from pureebm.purify.crew import Desk, SharedWork, bury


class Pages:
    """A journal that holds these chunks."""

    def __init__(self, *chunks: int) -> None:
        self.chunks = set(chunks)

    def finished(self) -> set[int]:
        return self.chunks


def shared(journal: Pages) -> SharedWork:
    """Work of ten images a chunk, of which one failed."""
    return SharedWork(
        order=b"",
        chunks=[],
        stage=Shift(),
        journal=journal,  # type: ignore[arg-type]
        settle=lambda chunks: (10 * len(chunks), len(chunks)),
        report=lambda done, failed: None,
        stopped=lambda: False,
    )


def test_each_chunk_is_handed_out_once_and_counts_are_summed() -> None:
    desk = Desk([3, 5, 8])
    assert [desk.next(0), desk.next(1), desk.next(0), desk.next(1)] == [3, 5, 8, None]
    assert (desk.report(0, 7, 1), desk.report(1, 2, 0), desk.report(0, 9, 1)) == (False, False, False)
    assert desk.counts() == (11, 1)


def test_a_desk_that_stops_hands_out_nothing_and_says_so() -> None:
    desk = Desk([0])
    desk.stop()
    assert desk.next(0) is None and desk.report(0, 1, 0) is True


def test_of_a_dead_worker_the_journal_counts_and_the_rest_is_done_by_the_next_one_first() -> None:
    desk = Desk([0, 1, 2, 3, 4])
    assert [desk.next(0), desk.next(0), desk.next(0), desk.next(1)] == [0, 1, 2, 3]
    desk.report(0, 17, 2)
    desk.report(1, 4, 0)
    assert bury(desk, 0, shared(Pages(0)), "by signal SIGKILL")
    assert desk.counts() == (14, 1)
    assert [desk.next(2), desk.next(2), desk.next(2)] == [1, 2, 4]


def test_a_worker_that_left_nothing_undone_needs_no_other() -> None:
    desk = Desk([0])
    desk.next(0)
    assert not bury(desk, 0, shared(Pages(0)), "with exit code 0")


def test_a_worker_that_died_without_a_chunk_ends_the_job_in_words() -> None:
    desk = Desk([0, 1])
    desk.next(0)
    with pytest.raises(PureebmError, match=r"by signal SIGKILL.*Repeat the same command to go on"):
        bury(desk, 0, shared(Pages()), "by signal SIGKILL")
    assert desk.next(1) is None
