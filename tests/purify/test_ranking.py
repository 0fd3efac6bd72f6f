"""Filt and chains as jobs: the same images are chosen however a job is cut, and the rest stays as it is."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.purify.job_fakes import FakeSource, Shift, tree, write_source

from pureebm.errors import InputError, Interrupted, MismatchError
from pureebm.purify import ranking
from pureebm.purify.job import JobConfig, JobProgress, plan, run
from pureebm.purify.manifest import RECORD_NAME
from pureebm.purify.purifier import Purifier
from pureebm.purify.ranking import Ranking
from pureebm.purify.stages import Chain, Highest
from pureebm.purify.workplace import Workplace

pytestmark = pytest.mark.usefixtures("small_chunks")
CONFIG = JobConfig(batch_size=2)


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(write_source(tmp_path / "in" / "set.npy", 45), broken=[7])


def highest(share: float = 0.25, stage: Shift | Chain | None = None) -> Highest:
    return Highest(stage or Shift(0.2), share, by=Shift())


def rows(target: Path) -> list[dict[str, object]]:
    return pq.read_table(target / "pureebm-manifest.parquet").to_pylist()


def test_exactly_the_share_of_highest_energy_is_purified_and_the_rest_keeps_its_pixels(
    source: FakeSource, tmp_path: Path
) -> None:
    record = run(source, tmp_path / "out", highest(), CONFIG)
    energies = source.pixels.reshape(45, -1).mean(1)
    readable = [index for index in range(45) if index != 7]
    expected = set(sorted(readable, key=lambda index: -energies[index])[:11])
    found = rows(tmp_path / "out")
    assert {index for index, row in enumerate(found) if row["status"] == "purified"} == expected
    assert [row["status"] for row in found].count("kept") == 33 and found[7]["status"] == "skipped"
    stored = {line[0]: line[1] for line in json.loads((tmp_path / "out" / "images.json").read_text())}
    for index in readable:
        row = found[index]
        assert (row["sha256_before"] == stored[row["target_name"]]) == (index not in expected)
        assert row["energy_before"] == pytest.approx(energies[index] / 127.5 - 1, abs=1e-6)
        assert (row["psnr"] is None and row["energy_after"] == row["energy_before"]) == (index not in expected)
    assert record.counts == dict(total=45, purified=11, kept=33, copied=0, skipped=1, failed=1, unchanged=0)
    told = json.loads((tmp_path / "out" / RECORD_NAME).read_text())
    assert told["counts"]["kept"] == 33 and told["settings"]["stage"]["share"] == 0.25
    assert record.seconds["ranking"] > 0 and record.warnings == []
    page = (tmp_path / "out" / "pureebm-report.html").read_text()
    assert "11 of 45 images were purified" in page and "33 were kept as they were" in page


def test_what_is_chosen_is_purified_as_in_the_whole_set(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "all", Shift(0.2), CONFIG)
    run(source, tmp_path / "some", highest(), CONFIG)
    whole, some = (
        {line[0]: line[1] for line in json.loads((tmp_path / name / "images.json").read_text())}
        for name in ("all", "some")
    )
    purified = [row["target_name"] for row in rows(tmp_path / "some") if row["status"] == "purified"]
    assert len(purified) == 11 and all(whole[name] == some[name] for name in purified)


@pytest.mark.parametrize("stage", [highest(), highest(0.5, Chain([Shift(0.1), Shift(0.2)])), Chain([Shift(), Shift()])])
def test_shards_and_interrupted_jobs_give_the_bytes_of_one_whole_job(
    source: FakeSource, tmp_path: Path, stage: Highest | Chain
) -> None:
    whole = tmp_path / "whole" / "out"
    run(source, whole, stage, CONFIG)
    for index in (2, 1, 3):
        run(source, tmp_path / "shards" / "out", stage, JobConfig(batch_size=2, shard=(index, 3)))
    stop = threading.Event()

    def after_twenty(progress: JobProgress) -> None:
        if progress.done >= 20:
            stop.set()

    with pytest.raises(Interrupted, match="repeat the same command"):
        run(source, tmp_path / "cut" / "out", stage, CONFIG, progress=after_twenty, stop=stop)  # type: ignore[arg-type]
    assert run(source, tmp_path / "cut" / "out", stage, CONFIG).resumed > 0
    assert tree(tmp_path / "shards" / "out") == tree(tmp_path / "cut" / "out") == tree(whole)


def test_a_job_cut_off_while_it_ranks_begins_to_rank_again(source: FakeSource, tmp_path: Path) -> None:
    stop, stage = threading.Event(), highest()

    class Stopping(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            stop.set()
            return super().energies(images)

    stage.by = Stopping()
    with pytest.raises(Interrupted, match=r"8 of 45 images were ranked; repeat the same command to go on"):
        run(source, tmp_path / "cut" / "out", stage, CONFIG, stop=stop)
    stage.by = Shift()
    record = run(source, tmp_path / "cut" / "out", stage, CONFIG)
    run(source, tmp_path / "whole" / "out", stage, CONFIG)
    assert record.resumed == 0 and tree(tmp_path / "cut" / "out") == tree(tmp_path / "whole" / "out")


def test_the_set_is_ranked_once_for_all_shards_and_resumed_runs(
    source: FakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(ranking, "_make", lambda *given, make=ranking._make: (made.append("x"), make(*given))[1])
    for index in (0, 1):
        run(source, tmp_path / "out", highest(), JobConfig(batch_size=2, shard=(index, 2)))
    assert len(made) == 1


def test_shards_at_the_same_time_wait_for_one_ranking(source: FakeSource, tmp_path: Path) -> None:
    results, stage = [], Highest(Shift(0.2), 0.25, by=Shift())

    def shard(index: int) -> None:
        results.append(run(source, tmp_path / "out", stage, JobConfig(batch_size=2, shard=(index, 3))))

    threads = [threading.Thread(target=shard, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run(source, tmp_path / "alone" / "out", stage, CONFIG)
    assert len(results) == 3 and tree(tmp_path / "out") == tree(tmp_path / "alone" / "out")


def test_another_share_or_chain_is_refused_by_name(source: FakeSource, tmp_path: Path) -> None:
    shard = JobConfig(batch_size=2, shard=(0, 2))
    run(source, tmp_path / "out", highest(0.25, Chain([Shift(), Shift(0.2)])), shard)
    with pytest.raises(MismatchError, match=r"stage.share: was 0.25, is 0.5"):
        run(source, tmp_path / "out", highest(0.5, Chain([Shift(), Shift(0.2)])), shard)
    with pytest.raises(MismatchError, match=r"stage.of.stages.1.amount: was 0.2, is 0.3"):
        run(source, tmp_path / "out", highest(0.25, Chain([Shift(), Shift(0.3)])), shard)


def test_a_plan_counts_the_time_of_the_chosen_images_only(source: FakeSource, tmp_path: Path) -> None:
    slow = [Shift(0.1, delay=0.05), highest(0.1, Shift(0.1, delay=0.05))]
    whole, some = (plan(source, tmp_path / "out", stage, CONFIG) for stage in slow)
    assert whole.seconds is not None and some.seconds is not None
    assert 0.05 < some.seconds / whole.seconds < 0.2


def test_a_ranking_keeps_all_but_the_share_and_the_earlier_of_equals_is_purified() -> None:
    energies = np.array([1, 3, np.nan, 3, 2, 3], np.float32)
    kept = {share: Ranking(energies, 0.0).kept(share) for share in (0.2, 0.4, 1.0)}
    assert kept == {0.2: {0: 1, 3: 3, 4: 2, 5: 3}, 0.4: {0: 1, 4: 2, 5: 3}, 1.0: {}}


def test_the_ranking_stands_in_the_workplace_until_the_job_is_done(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "out", highest(), JobConfig(batch_size=2, shard=(0, 2)))
    found = ranking.read_ranking(Workplace(tmp_path / "out"))
    assert np.isnan(found.energies[7]) and np.isfinite(np.delete(found.energies, 7)).all() and len(found.energies) == 45
    run(source, tmp_path / "out", highest(), JobConfig(batch_size=2, shard=(1, 2)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_what_makes_no_sense_is_refused(source: FakeSource, tmp_path: Path) -> None:
    class Plain(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            return None

    with pytest.raises(InputError, match="this purifier has no energy"):
        run(source, tmp_path / "out", Highest(Shift(), 0.5, by=Plain()), CONFIG)
    with pytest.raises(InputError, match="put Highest around it"):
        Chain([highest(), Shift()])
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            highest(share)
    with pytest.raises(InputError, match="chosen among a whole set on disk"):
        Purifier(highest())(np.zeros((1, 16, 16, 3), np.uint8))
