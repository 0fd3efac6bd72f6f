"""A job on a local Ray with two workers: the bytes of one process, also when a worker is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.purify.job_fakes import FakeSource, Killer, Shift, tree, write_source

from pureebm.errors import InputError, ItemError
from pureebm.purify.job import JobConfig, JobProgress, run

ray = pytest.importorskip("ray")
from pureebm.integrations.ray import RayCrew  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_chunks")]
CONFIG = JobConfig(batch_size=2)  # eight images of 16x16: a batch is a chunk


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(write_source(tmp_path / "in" / "set.npy", 100), broken=[5, 60])


@pytest.fixture
def whole(source: FakeSource, tmp_path: Path) -> dict[str, bytes]:
    run(source, tmp_path / "whole" / "out", Shift(), CONFIG)
    return tree(tmp_path / "whole" / "out")


def test_two_ray_workers_give_the_bytes_of_one_process(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    seen: list[JobProgress] = []
    record = run(source, tmp_path / "out", Shift(delay=0.02), CONFIG, progress=seen.append, crew=RayCrew(2))  # type: ignore[arg-type]
    assert tree(tmp_path / "out") == whole and record.counts["failed"] == 2
    assert (seen[-1].done, seen[-1].failed) == (100, 2)


def test_a_ray_worker_killed_in_the_middle_loses_nothing(
    source: FakeSource, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    mark, seen = tmp_path / "killed", list[JobProgress]()
    run(source, tmp_path / "out", Killer(4, mark), CONFIG, progress=seen.append, crew=RayCrew())  # type: ignore[arg-type]
    assert mark.exists() and tree(tmp_path / "out") == whole
    assert (seen[-1].done, seen[-1].failed) == (100, 2)


def test_a_purifier_on_cuda_reserves_a_gpu_and_leaves_the_choice_to_ray() -> None:
    class OnCuda(Shift):
        device = "cuda"

        def settings(self) -> dict[str, object]:
            return super().settings() | {"device": "cuda"}

    assert RayCrew(threads=3).needs(Shift()) == {"num_cpus": 3, "num_gpus": 0}
    assert RayCrew().needs(OnCuda()) == {"num_cpus": 1, "num_gpus": 1}
    OnCuda.device = "cuda:1"
    with pytest.raises(InputError, match="without a number"):
        RayCrew().needs(OnCuda())


def test_what_a_ray_worker_raises_is_raised_here(source: FakeSource, tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"a/000(05|60).jpg: truncated") as caught:
        run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, on_error="fail"), crew=RayCrew(1))
    assert caught.value.exit_code == 2
