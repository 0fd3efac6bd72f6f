"""Jobs with several processes: the bytes of one process, whatever happens to the others."""

from __future__ import annotations

import multiprocessing
import threading
import time
from pathlib import Path

import pytest
from tests.purify.job_fakes import FakeSource, Killer, Shift, purify_with_a_worker, tree, write_source

from pureebm.errors import InputError, Interrupted, ItemError, PureebmError
from pureebm.purify.job import JobConfig, JobProgress, run
from pureebm.purify.processes import Processes, may_move, visible_device
from pureebm.purify.stages import Chain, Highest

pytestmark = pytest.mark.usefixtures("small_chunks")
CONFIG = JobConfig(batch_size=2)  # eight images of 16x16: a batch is a chunk


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(write_source(tmp_path / "in" / "set.npy", 100), broken=[5, 60])


@pytest.fixture
def whole(source: FakeSource, tmp_path: Path) -> dict[str, bytes]:
    run(source, tmp_path / "whole" / "out", Shift(), CONFIG)
    return tree(tmp_path / "whole" / "out")


def test_two_workers_give_the_bytes_of_one_and_progress_is_summed(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    seen: list[JobProgress] = []
    stage = Shift(delay=0.02)
    record = run(source, tmp_path / "out", stage, CONFIG, progress=seen.append, crew=Processes(2))  # type: ignore[arg-type]
    assert tree(tmp_path / "out") == whole
    assert stage.n_batches == 0  # nothing was computed here
    assert record.counts["purified"] == 98 and record.counts["failed"] == 2
    done = [report.done for report in seen]
    assert done == sorted(done) and (done[0], seen[-1].done, seen[-1].total, seen[-1].failed) == (0, 100, 100, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    mark, seen = tmp_path / "killed", list[JobProgress]()
    run(source, tmp_path / "out", Killer(4, mark), CONFIG, progress=seen.append, crew=Processes(2))  # type: ignore[arg-type]
    assert mark.exists() and tree(tmp_path / "out") == whole
    assert (seen[-1].done, seen[-1].failed) == (100, 2)


def test_workers_that_always_die_end_the_job_which_can_be_repeated(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(0, 4)))
    with pytest.raises(PureebmError, match="SIGKILL.*before it had finished a chunk"):
        run(source, tmp_path / "out", Killer(0), CONFIG, crew=Processes(1))
    assert run(source, tmp_path / "out", Shift(), CONFIG).resumed == 28
    assert tree(tmp_path / "out") == whole


def test_what_a_worker_raises_is_raised_here(source: FakeSource, tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"a/000(05|60).jpg: truncated") as caught:
        run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, on_error="fail"), crew=Processes(1))
    assert caught.value.exit_code == 2
    full = FakeSource(source.path, full_disk_at=1)
    with pytest.raises(InputError, match="the disk is full"):
        run(full, tmp_path / "full", Shift(), CONFIG, crew=Processes(1))


def test_stop_reaches_the_workers_and_the_job_goes_on_later(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    stop = threading.Event()

    def after_thirty(progress: JobProgress) -> None:
        if progress.done >= 30:
            stop.set()

    with pytest.raises(Interrupted, match="repeat the same command"):
        run(
            source,
            tmp_path / "out",
            Shift(delay=0.05),
            CONFIG,
            progress=after_thirty,  # type: ignore[arg-type]
            stop=stop,
            crew=Processes(1),
        )
    assert not (tmp_path / "out").exists()
    assert 16 <= run(source, tmp_path / "out", Shift(), CONFIG).resumed < 100
    assert tree(tmp_path / "out") == whole


def test_when_the_first_process_is_killed_the_next_one_waits_for_its_workers(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    target = tmp_path / "out"
    first = multiprocessing.get_context("spawn").Process(target=purify_with_a_worker, args=(source.path, target))
    first.start()
    place = target.with_name(".out.pureebm-partial")
    while not list((place / "journal").glob("*.parquet")) and first.is_alive():
        time.sleep(0.01)
    first.kill()
    first.join()
    assert (place / "shard-0-of-1-worker-0").exists()
    run(source, target, Shift(), CONFIG)
    assert tree(target) == whole
    assert not place.exists()


def test_a_purifier_that_cannot_be_sent_is_refused(source: FakeSource, tmp_path: Path) -> None:
    class Local(Shift):
        pass

    with pytest.raises(InputError, match="cannot be sent to other processes"):
        run(source, tmp_path / "out", Local(), CONFIG, crew=Processes(1))
    with pytest.raises(InputError, match="at least 1 worker"):
        Processes(0)


def test_workers_are_spread_over_the_devices_unless_one_was_named() -> None:
    assert [visible_device(i, 3, {}) for i in range(4)] == ["0", "1", "2", "0"]
    assert [visible_device(i, 2, {"CUDA_VISIBLE_DEVICES": "5,7"}) for i in range(3)] == ["5", "7", "5"]
    assert visible_device(1, 1, {}) is None and visible_device(1, 0, {}) is None

    def on(device: str) -> Shift:
        stage = Shift()
        stage.device = device  # type: ignore[attr-defined]
        return stage

    assert may_move(on("cuda")) and may_move(Chain([Shift(), on("cuda")]))
    assert may_move(Highest(Shift(), 0.5, by=on("cuda")))
    assert not any(may_move(stage) for stage in (Shift(), on("cpu"), on("cuda:1"), Chain([on("cuda"), on("cuda:0")])))
