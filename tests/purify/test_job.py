"""The job, on a fake data set and a fake purifier: every image once, whole targets only, nothing silent."""

from __future__ import annotations

import json
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.purify.job_fakes import FakeSource, Shift, tree, write_source

from pureebm.energy.weights import DEFAULT_MODEL, load_model
from pureebm.errors import InputError, Interrupted, ItemError, MismatchError
from pureebm.purify.job import JobConfig, JobProgress, plan, run
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig

pytestmark = pytest.mark.usefixtures("small_chunks")
CONFIG = JobConfig(batch_size=2)  # of 32x32, so 8 of 16x16


@pytest.fixture
def source(tmp_path: Path) -> FakeSource:
    return FakeSource(write_source(tmp_path / "in" / "set.npy", 45))


def manifest(target: Path) -> list[dict[str, object]]:
    return pq.read_table(target / "pureebm-manifest.parquet").to_pylist()


def test_every_image_is_purified_once_and_the_record_counts_it(source: FakeSource, tmp_path: Path) -> None:
    record = run(source, tmp_path / "out", Shift(), CONFIG)
    rows = manifest(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"a/{index:05d}.jpg" for index in range(45)]
    assert [row["target_name"] for row in rows] == [f"a/{index:05d}.png" for index in range(45)]
    assert record.counts | {"unchanged": 0} == dict(total=45, purified=45, copied=0, skipped=0, failed=0, unchanged=0)
    assert (record.status, record.exit_code, record.steps, record.resumed) == ("complete", 0, 3, 0)
    assert json.loads((tmp_path / "out" / "pureebm-run.json").read_text()) == json.loads(json.dumps(record.to_json()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]  # nothing is left beside the target


def test_manifest_tells_energies_and_psnr_of_what_is_stored(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "out", Shift(), CONFIG)
    old = source.pixels[4].astype(np.float64)
    lines = json.loads((tmp_path / "out" / "images.json").read_text())
    row = manifest(tmp_path / "out")[4]
    assert row["sha256_after"] == lines[4][1] != row["sha256_before"]
    assert row["energy_before"] == pytest.approx((old / 127.5 - 1).mean(), abs=1e-6)
    shift = float(row["energy_after"]) - float(row["energy_before"])  # the mean is the fake's energy
    assert 0 < shift < 0.1
    assert float(row["psnr"]) == pytest.approx(-20 * np.log10(shift / 2), abs=1)


def test_batches_have_one_shape_whatever_is_left_over(source: FakeSource, tmp_path: Path) -> None:
    stage = Shift()
    record = run(source, tmp_path / "out", stage, JobConfig(batch_size=1))  # 4 of 16x16; the last chunk has 5 images
    assert stage.shapes == {(4, 3, 16, 16)} and record.batches == {"4x3x16x16": 12}


def test_sizes_are_purified_apart_and_keep_their_order(tmp_path: Path) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 20, size=32)
    source = FakeSource(path, shapes={3: (16, 32), 4: (32, 16), 9: (16, 32)})
    stage = Shift()
    run(source, tmp_path / "out", stage, JobConfig(batch_size=4))
    assert stage.shapes == {(4, 3, 32, 32), (8, 3, 16, 32), (8, 3, 32, 16)}
    heights = [line[2] for line in json.loads((tmp_path / "out" / "images.json").read_text())]
    assert [index for index, height in enumerate(heights) if height == 16] == [3, 9]


def test_limit_takes_the_first_images_and_they_are_as_in_the_whole_set(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "all", Shift(), CONFIG)
    record = run(source, tmp_path / "some", Shift(), JobConfig(batch_size=2, limit=11))
    assert record.counts["total"] == 11
    lines = [json.loads((tmp_path / name / "images.json").read_text()) for name in ("all", "some")]
    assert lines[0][:11] == lines[1]


@pytest.mark.parametrize("single_file", [False, True])
def test_shards_in_any_order_give_the_bytes_of_one_process(tmp_path: Path, single_file: bool) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 45)
    source = FakeSource(path, single_file=single_file, broken=[20])
    names = ("one", "many") if not single_file else ("one.npy", "many.npy")
    for name in names:
        (tmp_path / name).mkdir()
    one, many = (tmp_path / name / "out.npy" for name in names)
    run(source, one, Shift(), CONFIG)
    records = [run(source, many, Shift(), JobConfig(batch_size=2, shard=(index, 3))) for index in (2, 3, 1)]
    assert [record.status for record in records] == ["shard-done", "shard-done", "complete"]
    assert records[-1].counts["total"] == 45
    assert tree(one) == tree(many) and len(tree(many)) == 3


def test_a_shard_that_comes_when_all_is_done_does_nothing(source: FakeSource, tmp_path: Path) -> None:
    target, stage = tmp_path / "out", Shift()
    first = run(source, target, Shift(), CONFIG)
    before = tree(target)
    assert run(source, target, stage, JobConfig(batch_size=2, shard=(1, 2))) == first
    assert stage.n_batches == 0 and tree(target) == before
    assert run(source, target, stage, CONFIG) == first
    with pytest.raises(InputError, match="exists and is complete"):
        run(source, target, stage, JobConfig(batch_size=2, shard=(1, 2), seed=1))


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "whole" / "out", Shift(), CONFIG)
    stop, stage = threading.Event(), Shift()

    def after_twenty(progress: JobProgress) -> None:
        if progress.done >= 20:
            stop.set()

    target = tmp_path / "cut" / "out"
    with pytest.raises(Interrupted, match="repeat the same command"):
        run(source, target, stage, CONFIG, progress=after_twenty, stop=stop)
    assert not target.exists()
    again = Shift()
    record = run(source, target, again, CONFIG)
    assert record.resumed == 24 and stage.n_batches + again.n_batches == 6  # no batch is computed twice
    assert tree(target) == tree(tmp_path / "whole" / "out")


@pytest.mark.parametrize(
    ("stage", "config", "named"),
    [
        (Shift(0.2), JobConfig(batch_size=2), "stage.amount: was 0.1, is 0.2"),
        (Shift(), JobConfig(batch_size=2, seed=7), "seed: was 0, is 7"),
        (Shift(), JobConfig(batch_size=4), "batch_size: was 2, is 4"),
        (Shift(), JobConfig(batch_size=2, limit=40), "limit: was None, is 40"),
        (Shift(), JobConfig(batch_size=2, on_error="copy"), "on_error: was skip, is copy"),
    ],
)
def test_other_settings_are_refused_by_name_unless_overwrite(
    source: FakeSource, tmp_path: Path, stage: Shift, config: JobConfig, named: str
) -> None:
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(0, 2)))
    with pytest.raises(MismatchError, match=named):
        run(source, tmp_path / "out", stage, config)
    values = {name: getattr(config, name) for name in ("seed", "limit", "on_error", "batch_size")}
    assert run(source, tmp_path / "out", stage, JobConfig(**values, overwrite=True)).resumed == 0


def test_a_changed_source_is_refused(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(0, 2)))
    write_source(source.path, 45, seed=1)
    with pytest.raises(MismatchError, match="source has changed"):
        run(FakeSource(source.path), tmp_path / "out", Shift(), CONFIG)


def test_auto_batch_size_is_recorded_and_kept(source: FakeSource, tmp_path: Path) -> None:
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(0, 2)))
    record = run(source, tmp_path / "out", Shift(), JobConfig())
    assert record.settings["batch_size"] == 2 and record.resumed == 24


def test_auto_batch_size_is_one_where_sizes_differ(tmp_path: Path) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 12, size=40)
    differing = FakeSource(path, shapes={index: (20 + index, 40) for index in range(12)})
    assert plan(differing, tmp_path / "out", Shift(), JobConfig()).settings["batch_size"] == 1
    assert plan(FakeSource(path), tmp_path / "out", Shift(), JobConfig()).settings["batch_size"] == 64


@pytest.mark.parametrize(("on_error", "n_stored"), [("skip", 42), ("copy", 45)])
def test_bad_items_are_counted_named_and_never_purified(tmp_path: Path, on_error: str, n_stored: int) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 45)
    source = FakeSource(path, broken=[5], shapes={7: (8, 16)})
    record = run(source, tmp_path / "out", Shift(bad="00030"), JobConfig(batch_size=2, on_error=on_error))
    done = "skipped" if on_error == "skip" else "copied"
    assert (record.counts["failed"], record.counts[done], record.exit_code) == (3, 3, 1)
    bad = {row["id"]: row["message"] for row in manifest(tmp_path / "out") if row["status"] != "purified"}
    assert bad == {
        "a/00005.jpg": "truncated <b>file</b>",
        "a/00007.jpg": "16x8 pixels: both sides must have at least 16",
        "a/00030.jpg": "purifying gave values that are not finite",
    }
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())) == n_stored


def test_bad_items_do_not_change_their_neighbors(tmp_path: Path) -> None:
    path = write_source(tmp_path / "in" / "set.npy", 24)
    run(FakeSource(path), tmp_path / "good", Shift(), CONFIG)
    run(FakeSource(path, broken=[2, 9]), tmp_path / "bad", Shift(bad="00012"), CONFIG)
    good, bad = ({row["id"]: row["sha256_after"] for row in manifest(tmp_path / name)} for name in ("good", "bad"))
    assert {name for name in good if good[name] != bad[name]} == {f"a/{index:05d}.jpg" for index in (2, 9, 12)}


def test_on_error_fail_ends_the_job_without_a_target_and_may_be_changed(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "in" / "set.npy", 45), broken=[30])
    with pytest.raises(ItemError, match="a/00030.jpg: truncated") as caught:
        run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, on_error="fail"))
    assert caught.value.exit_code == 2 and not (tmp_path / "out").exists()
    record = run(source, tmp_path / "out", Shift(), CONFIG)
    assert record.resumed == 24 and record.counts["skipped"] == 1


def test_non_finite_energies_are_failures(source: FakeSource, tmp_path: Path) -> None:
    class Broken(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            energies = super().energies(images)
            energies[0] = float("inf")
            return energies

    record = run(source, tmp_path / "out", Broken(), CONFIG)
    assert record.counts["failed"] == 6  # the first of each batch
    assert manifest(tmp_path / "out")[0]["message"] == "its energy is inf"


def test_a_purifier_without_energy_leaves_energies_empty(source: FakeSource, tmp_path: Path) -> None:
    class Plain(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            return None

    assert run(source, tmp_path / "out", Plain(), CONFIG).exit_code == 0
    assert manifest(tmp_path / "out")[0]["energy_before"] is None


def test_a_purifier_that_does_nothing_is_reported(source: FakeSource, tmp_path: Path) -> None:
    record = run(source, tmp_path / "out", Shift(0.0, steps=0), CONFIG)
    assert record.exit_code == 1 and record.counts["unchanged"] == 45
    assert [warning.split(":")[0] for warning in record.warnings] == [
        "the number of steps is 0",
        "every purified image equals its original",
    ]
    assert {row["psnr"] for row in manifest(tmp_path / "out")} == {float("inf")}


def test_nothing_purified_is_reported(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "in" / "set.npy", 4), broken=range(4))
    record = run(source, tmp_path / "out", Shift(), JobConfig())
    assert record.warnings == ["no image was purified"] and record.exit_code == 1


def test_a_full_disk_is_a_sentence_and_the_job_goes_on_later(source: FakeSource, tmp_path: Path) -> None:
    source.full_disk_at = 2
    with pytest.raises(InputError, match=r"the disk is full .* repeat the same command"):
        run(source, tmp_path / "out", Shift(), CONFIG)
    assert not (tmp_path / "out").exists()
    source.full_disk_at = None
    assert run(source, tmp_path / "out", Shift(), CONFIG).resumed == 16


def test_what_a_loading_thread_raises_surfaces(source: FakeSource, tmp_path: Path) -> None:
    source.load_error = RuntimeError("the cable is out")
    with pytest.raises(RuntimeError, match="the cable is out"):
        run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, limit=40))
    source.load_error = None


def test_places_that_would_destroy_something_are_refused(source: FakeSource, tmp_path: Path) -> None:
    overwrite = JobConfig(overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    folder = FakeSource(source.path)
    folder.path = tmp_path / "in"  # a source that is a folder
    for target, reason in [
        (tmp_path / "in", "source itself"),
        (tmp_path / "in" / "out", "inside the source"),
        (tmp_path, "inside the target"),
        (tmp_path / "mine", "not ours to overwrite"),
    ]:
        with pytest.raises(InputError, match=reason):
            run(folder, target, Shift(), overwrite)
    assert (tmp_path / "mine" / "thesis.tex").exists() and not list(tmp_path.glob(".*"))


def test_a_file_source_needs_a_file_of_its_kind_as_target(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "set.npy", 4), single_file=True)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        run(source, tmp_path / "folder", Shift(), JobConfig())
    with pytest.raises(InputError, match=r"name it out\.npy, not out\.zip"):
        run(source, tmp_path / "out.zip", Shift(), JobConfig())


def test_a_complete_target_stays_unless_overwrite_and_until_the_new_one_is_ready(
    source: FakeSource, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "out"
    run(source, target, Shift(), CONFIG)
    old = tree(target)
    stage = Shift()
    assert run(source, target, stage, CONFIG).status == "complete" and stage.n_batches == 0
    with pytest.raises(InputError, match="exists and is complete"):
        run(source, target, Shift(0.3), CONFIG)
    assert tree(target) == old
    run(source, target, Shift(0.3), JobConfig(batch_size=2, shard=(0, 2), overwrite=True))
    assert tree(target) == old
    run(source, target, Shift(0.3), JobConfig(batch_size=2, shard=(1, 2), overwrite=True))
    assert tree(target) != old and [path.name for path in target.parent.iterdir()] == ["out"]


def test_overwrite_spares_a_file_that_another_program_made(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", images=np.zeros((3, 16, 16, 3), np.uint8))
    (tmp_path / "precious.npz").write_bytes(b"mine")
    with pytest.raises(InputError, match="not ours to overwrite"):
        run(tmp_path / "in.npz", tmp_path / "precious.npz", Shift(), JobConfig(overwrite=True))
    assert (tmp_path / "precious.npz").read_bytes() == b"mine"
    run(tmp_path / "in.npz", tmp_path / "out.npz", Shift(), JobConfig())
    run(tmp_path / "in.npz", tmp_path / "out.npz", Shift(0.3), JobConfig(overwrite=True))


def test_an_empty_folder_is_as_good_as_no_target(source: FakeSource, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(source, tmp_path / "out", Shift(), CONFIG).status == "complete"


def test_two_processes_on_one_shard_are_refused(source: FakeSource, tmp_path: Path) -> None:
    target, refusals = tmp_path / "out", []

    def meanwhile(progress: JobProgress) -> None:
        for config in (CONFIG, JobConfig(batch_size=2, shard=(0, 2)), JobConfig(seed=1, overwrite=True)):
            with pytest.raises(InputError) as caught:
                run(source, target, Shift(), config)
            refusals.append(str(caught.value))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, target, Shift(), CONFIG, progress=meanwhile)
    assert ["another process" in text or "worked on as shard-0-of-1" in text for text in refusals] == [True] * 3
    assert run(source, target, Shift(), CONFIG).status == "complete"


def test_shards_at_the_same_time_finish_once(source: FakeSource, tmp_path: Path) -> None:
    results = []

    def shard(index: int) -> None:
        results.append(run(source, tmp_path / "out", Shift(delay=0.01), JobConfig(batch_size=2, shard=(index, 3))))

    threads = [threading.Thread(target=shard, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "complete" in {record.status for record in results} and len(results) == 3
    run(source, tmp_path / "alone" / "out", Shift(), CONFIG)
    assert tree(tmp_path / "out") == tree(tmp_path / "alone" / "out")


@pytest.mark.parametrize(
    "wrong", [{"shard": (3, 2)}, {"shard": (0, 0)}, {"limit": 0}, {"batch_size": 0}, {"on_error": "ignore"}]
)
def test_senseless_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        JobConfig(**wrong)  # type: ignore[arg-type]


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        run(FakeSource(write_source(tmp_path / "set.npy", 0)), tmp_path / "out", Shift(), JobConfig())


def test_a_plan_counts_and_times_but_writes_nothing(source: FakeSource, tmp_path: Path) -> None:
    told = plan(source, tmp_path / "out", Shift(delay=0.05), CONFIG)
    assert (told.images, told.images_done, told.chunks, told.batch_shape) == (45, 0, 6, [8, 3, 16, 16])
    assert told.seconds is not None and 45 / 8 * 0.05 < told.seconds < 45 / 8 * 0.5
    assert told.bytes_needed == 45 * 16 * 16 * 3 < told.bytes_free
    json.dumps(told.to_json())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(0, 2)))
    assert plan(source, tmp_path / "out", Shift(), CONFIG).images_done == 24


def test_progress_counts_up_to_the_end(source: FakeSource, tmp_path: Path) -> None:
    seen: list[JobProgress] = []
    run(source, tmp_path / "out", Shift(), CONFIG, progress=seen.append)  # type: ignore[arg-type]
    assert [report.done for report in seen][0] == 0 and seen[-1].done == seen[-1].total == 45
    assert seen[-1].eta_seconds == 0 and seen[-1].images_per_second > 0


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        source = FakeSource(write_source(tmp_path / f"{n}.npy", n, size=64))
        tracemalloc.start()
        run(source, tmp_path / f"out-{n}", Shift(), JobConfig(batch_size=8))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(16)  # imports and caches
    assert peak(240) < peak(40) + 2**20  # the pixels of the larger set alone are 2.3 MiB more


def test_a_stage_that_chooses_by_a_batch_sees_the_same_one_in_every_process(source: FakeSource, tmp_path: Path) -> None:
    seen = []

    class Choosing(Shift):
        def prepare(self, images):  # type: ignore[no-untyped-def]
            seen.append(images.numpy())

    for index in (1, 0):
        run(source, tmp_path / "out", Choosing(), JobConfig(batch_size=2, shard=(index, 2)))
    assert len(seen) == 2 and seen[0].shape == (1, 3, 16, 16)
    np.testing.assert_array_equal(seen[0], seen[1])


def test_links_that_are_not_followed_and_files_that_are_no_images_are_told(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
        Image.new("RGB", (16, 16), (10, 200, 30)).save(place / "a.png")
    (folder / "labels.csv").write_text("a,1\n")
    record = run(folder, tmp_path / "plain", Shift(), CONFIG)
    assert record.notes == ["passed on as they are: labels.csv"] and not record.warnings and record.exit_code == 0
    (folder / "class").symlink_to(elsewhere)
    record = run(folder, tmp_path / "out", Shift(), CONFIG)
    assert record.warnings == ["not in the target: links to folders or out of the source, and the like: class"]
    assert record.exit_code == 1 and not (tmp_path / "out" / "class").exists()


def test_a_shard_that_has_nothing_to_do_is_no_failure(source: FakeSource, tmp_path: Path) -> None:
    record = run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, shard=(500, 999)))
    assert (record.status, record.counts["total"], record.warnings, record.exit_code) == ("shard-done", 0, [], 0)


def test_a_finished_target_of_other_settings_is_refused_with_the_difference(source, tmp_path: Path) -> None:
    run(source, tmp_path / "out", Shift(), CONFIG)
    with pytest.raises(MismatchError, match=r"exists and is complete, made with other settings:\n  seed: was 0, is 7"):
        run(source, tmp_path / "out", Shift(), JobConfig(batch_size=2, seed=7))


def test_failures_are_in_the_progress_when_they_happen(tmp_path: Path) -> None:
    seen: list[JobProgress] = []
    path = write_source(tmp_path / "in" / "set.npy", 6)
    run(FakeSource(path, broken=[1, 4]), tmp_path / "out", Shift(), JobConfig(batch_size=2), progress=seen.append)
    assert seen[-1].failed == 2


def test_images_that_met_stronger_noise_are_counted_in_record_and_report(tmp_path: Path) -> None:
    model = load_model(DEFAULT_MODEL)
    stage = LangevinStage(model.energy, LangevinConfig(**model.card["sampler"]), precision="float32")
    flat, noisy = np.full((6, 32, 32, 3), 90, np.uint8), np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3))
    np.savez(tmp_path / "in.npz", images=np.concatenate([flat, noisy.astype(np.uint8)]))
    record = run(tmp_path / "in.npz", tmp_path / "out.npz", stage, JobConfig())
    assert record.notes == ["stronger noise for images that look unnatural: 4 of 10"] and record.exit_code == 0
    page = (tmp_path / "out.npz.pureebm" / "pureebm-report.html").read_text()
    assert "4 look less natural than most" in page and "of another kind" in page
