"""A job on any kind of source that is cut off anywhere and repeated gives the bytes of a job that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
from tests.data.kinds import KINDS, N
from tests.purify.job_fakes import Shift, tree
from tests.purify.test_killed import PowerCut, _cut_after

from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.purify import batches, report
from pureebm.purify.job import JobConfig, run

NEW_KINDS = [name for name in KINDS if name != "folder"]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NEW_KINDS)
def test_cut_off_at_any_rename_then_repeat_is_byte_identical(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = KINDS[name], JobConfig(batch_size=8)
    path = kind.make(tmp_path, True)
    whole = tmp_path / "whole" / kind.target
    record = run(path, whole, Shift(), config)
    assert record.counts["purified"] == N - 1 and record.exit_code == 1
    assert record.settings["source"]["kind"] == kind.source_kind
    for moment in range(0, 200, 4):
        target = tmp_path / str(moment) / kind.target
        left = [moment]
        with monkeypatch.context() as patch:
            for function in ("rename", "replace"):
                patch.setattr(os, function, _cut_after(left, getattr(os, function)))
            try:
                run(path, target, Shift(), config)
                break
            except PowerCut:
                pass
        run(path, target, Shift(), config)
        assert tree(target) == tree(whole), f"cut off before rename {moment}"
    assert moment > 6


def purify_slowly(path: Path, target: Path, delay: float) -> None:
    """What the process does that is killed."""
    batches.CHUNK_ITEMS = 2
    report._plots = lambda rows: []
    run(path, target, Shift(delay=delay), JobConfig(batch_size=8))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "webdataset" else pytest.mark.slow) for name in NEW_KINDS]
)
def test_sigkill_then_repeat_is_byte_identical(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path, whole = kind.make(tmp_path, True), tmp_path / "whole" / kind.target
    processes, moments = multiprocessing.get_context("forkserver"), random.Random(name)
    processes.set_forkserver_preload(["tests.purify.test_kinds", "matplotlib.backends.backend_svg"])

    def start(target: Path, delay: float = 0.0):  # type: ignore[no-untyped-def]
        process = processes.Process(target=purify_slowly, args=(path, target, delay))
        process.start()
        return process

    start(whole).join()
    target = tmp_path / "killed" / kind.target
    journal = target.parent / f".{kind.target}.pureebm-partial" / "journal"
    for wanted in (1, 3):
        process = start(target, 0.03)
        while process.is_alive() and len(list(journal.glob("*.parquet"))) < wanted:
            time.sleep(0.001)
        process.join(moments.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode != 0
    again = start(target)
    again.join()
    assert again.exitcode == 0 and tree(target) == tree(whole)
    assert not journal.parent.exists()


@pytest.mark.parametrize("name", NEW_KINDS)
def test_shards_of_the_work_in_any_order_make_the_same_bytes(name: str, tmp_path: Path, small_chunks: None) -> None:
    kind = KINDS[name]
    path, targets = kind.make(tmp_path, False), [tmp_path / one / kind.target for one in ("whole", "parts")]
    run(path, targets[0], Shift(), JobConfig(batch_size=8))
    for shard in (1, 0):
        run(path, targets[1], Shift(), JobConfig(batch_size=8, shard=(shard, 2)))
    assert tree(targets[0]) == tree(targets[1])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", NEW_KINDS)
def test_a_limit_keeps_the_first_images_and_a_job_that_fails_leaves_no_target(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path, True)
    target = tmp_path / "few" / kind.target
    record = run(path, target, Shift(), JobConfig(batch_size=8, limit=4))
    again = target / "list.csv" if name == "csv" else target
    assert record.counts["total"] == 4 and len(open_source(again)) == record.counts["purified"] >= 3
    with pytest.raises(Exception, match="not an image"):
        run(path, tmp_path / "failed" / kind.target, Shift(), JobConfig(batch_size=8, on_error="fail"))
    assert not (tmp_path / "failed" / kind.target).exists()


def test_the_target_of_an_archive_is_an_archive_of_its_kind(tmp_path: Path) -> None:
    path = KINDS["zip"].make(tmp_path, False)
    with pytest.raises(InputError, match="name it out.zip, not out.tar"):
        run(path, tmp_path / "out.tar", Shift(), JobConfig())
