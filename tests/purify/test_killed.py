"""A job that is cut off anywhere and repeated gives the bytes of a job that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from tests.purify.job_fakes import purify_slowly, tree, write_source

DELAY = 0.03


class PowerCut(BaseException):
    pass


def test_sigkill_at_twenty_random_moments_then_repeat_is_byte_identical(tmp_path: Path) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 60)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.purify.job_fakes", "matplotlib.backends.backend_svg"])

    def start(target: Path):  # type: ignore[no-untyped-def]
        process = processes.Process(target=purify_slowly, args=(path, target, False, DELAY))
        process.start()
        return process

    whole = tmp_path / "whole" / "out"
    start(whole).join()
    moments, killed = random.Random(0), 0
    for trial in range(20):
        target = tmp_path / str(trial) / "out"
        process = start(target)
        journal = target.parent / ".out.pureebm-partial" / "journal"
        while process.is_alive() and len(list(journal.glob("*.parquet"))) < trial * 9 // 20:
            time.sleep(0.001)  # by what is done, not by the clock: the machine may be busy
        process.join(moments.random() * 2 * DELAY)
        process.kill()
        process.join()
        killed += process.exitcode != 0
        if process.exitcode != 0 and not (target.exists() and len(list(target.parent.iterdir())) == 1):
            start_again = start(target)  # unless the job was over, and only the process was not
            start_again.join()
            assert start_again.exitcode == 0
        assert tree(target) == tree(whole), f"killed in trial {trial} of 20"
        assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert killed >= 10


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("single_file", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_cut_off_at_every_rename_then_repeat_is_byte_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single_file: bool, overwrite: bool
) -> None:
    from tests.purify.job_fakes import FakeSource, Shift

    from pureebm.purify.job import JobConfig, run

    path = write_source(tmp_path / "in" / "set.npy", 12)
    source, config = FakeSource(path, single_file=single_file), JobConfig(batch_size=2, overwrite=overwrite)
    whole = tmp_path / "whole" / "out.npy"
    run(source, whole, Shift(), config)
    for moment in range(100):
        target = tmp_path / str(moment) / "out.npy"
        if overwrite:
            run(source, target, Shift(0.5), config)
        left = [moment]
        with monkeypatch.context() as patch:
            for name in ("rename", "replace"):
                patch.setattr(os, name, _cut_after(left, getattr(os, name)))
            try:
                run(source, target, Shift(), config)
                break
            except PowerCut:
                pass
        run(source, target, Shift(), config)
        assert tree(target) == tree(whole), f"cut off before rename {moment}"
        expected = {"out.npy", "out.npy.pureebm"} if single_file else {"out.npy"}
        assert {path.name for path in target.parent.iterdir()} == expected
    assert moment > 6


def _cut_after(left: list[int], real):  # type: ignore[no-untyped-def]
    def rename(*paths: Path, **options: bool) -> None:
        if left[0] == 0:
            raise PowerCut
        left[0] -= 1
        real(*paths, **options)

    return rename


@pytest.mark.usefixtures("small_chunks")
def test_cut_off_while_cleaning_up_then_repeat_is_done_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.purify.job_fakes import FakeSource, Shift

    from pureebm.purify import workplace
    from pureebm.purify.job import JobConfig, run

    source, config = FakeSource(write_source(tmp_path / "in" / "set.npy", 12)), JobConfig(batch_size=2)
    run(source, tmp_path / "whole" / "out", Shift(), config)
    for moment in range(10):
        target, left = tmp_path / str(moment) / "out", [moment]
        with monkeypatch.context() as patch:
            patch.setattr(workplace.shutil, "rmtree", _cut_after(left, workplace.shutil.rmtree))
            try:
                run(source, target, Shift(), config)
                break
            except PowerCut:
                pass
        assert len(list(target.parent.iterdir())) == 2
        assert run(source, target, Shift(), config).status == "complete"
        assert tree(target) == tree(tmp_path / "whole" / "out")
        assert [path.name for path in target.parent.iterdir()] == ["out"]
    assert moment > 2
