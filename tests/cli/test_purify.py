"""`pureebm purify` from end to end, on generated images and a tiny network."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_folder_of_images_comes_out_purified(pureebm, image_folder, tiny_model, tmp_path):
    target = tmp_path / "out"
    done = pureebm("purify", image_folder, target, "--model", tiny_model, "--json")
    assert done.code == 0
    assert done.json["counts"]["purified"] == 64
    assert done.json["steps"] == 3
    assert Path(done.json["report"]).is_file()
    rows = pq.read_table(target / "pureebm-manifest.parquet").to_pylist()
    names = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.png"))
    assert [row["id"] for row in rows] == names
    for name in names:
        assert (pixels(target / name) != pixels(image_folder / name)).any()


def test_the_summary_for_people_names_counts_and_report(pureebm, image_folder, tiny_model, tmp_path):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, "--limit", 8)
    assert (done.code, done.out) == (0, "")
    assert "8 images: 8 purified" in done.err
    assert f"report: {tmp_path / 'out' / 'pureebm-report.html'}" in done.err


def test_a_finished_command_repeated_says_so_and_changes_nothing(pureebm, image_folder, tiny_model, tmp_path):
    words = ("purify", image_folder, tmp_path / "out", "--model", tiny_model)
    first = pureebm(*words, "--json")
    record = tmp_path / "out" / "pureebm-run.json"
    stamp = record.stat().st_mtime_ns
    again = pureebm(*words, "--json")
    assert (again.code, again.json) == (first.code, first.json) and record.stat().st_mtime_ns == stamp
    other = pureebm(*words, "--seed", 1)
    assert other.code == 2 and "seed: was 0, is 1" in other.err and "--overwrite" in other.err


def test_seed_and_steps_reach_the_sampler(pureebm, image_folder, tiny_model, tmp_path):
    def first_pixels(name, *options):
        assert pureebm("purify", image_folder, tmp_path / name, "--model", tiny_model, "--limit", 2, *options).code == 0
        return pixels(tmp_path / name / "cat" / "000.png")

    same = first_pixels("a"), first_pixels("b", "--seed", 0, "--steps", 3, "--temperature", 1e-2)
    assert (same[0] == same[1]).all()
    for name, options in {
        "c": ["--seed", 1],
        "d": ["--steps", 4],
        "e": ["--noise", 0],
        "f": ["--step-size", 0.1],
    }.items():
        assert (first_pixels(name, *options) != same[0]).any(), options


def test_a_purifier_that_did_nothing_is_seen_in_the_exit_code(pureebm, image_folder, tiny_model, tmp_path):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, "--steps", 0)
    assert done.code == 1
    assert "nothing was purified" in done.err


def test_a_dry_run_tells_the_plan_and_writes_nothing(pureebm, image_folder, tiny_model, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    arguments = ["purify", image_folder, tmp_path / "out", "--model", tiny_model, "--dry-run"]
    planned = pureebm(*arguments, "--json")
    assert planned.code == 0
    assert planned.json["images"] == 64
    assert planned.json["seconds"] > 0 and planned.json["bytes_needed"] > 0
    told = pureebm(*arguments)
    assert (told.code, told.out) == (0, "")
    assert "64 images" in told.err and "nothing was written" in told.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_on_a_finished_target_says_what_the_command_says(pureebm, image_folder, tiny_model, tmp_path):
    (image_folder / "cat" / "text.png").write_text("no image")
    arguments = ["purify", image_folder, tmp_path / "out", "--model", tiny_model]
    assert pureebm(*arguments).code == 1
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    told = pureebm(*arguments, "--dry-run")
    assert (told.code, told.out) == (0, "")
    assert told.err.startswith("nothing to do: the same command has finished")
    planned = pureebm(*arguments, "--dry-run", "--json")
    assert planned.code == 0 and planned.json["finished"] is True
    assert (planned.json["images"], planned.json["images_done"], planned.json["seconds"]) == (65, 65, 0)
    other = pureebm(*arguments, "--dry-run", "--seed", 1)
    assert other.code == 2 and "seed: was 0, is 1" in other.err
    again = pureebm(*arguments, "--dry-run", "--overwrite", "--json")
    assert again.code == 0 and (again.json["finished"], again.json["images_done"]) == (False, 0)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before


def test_an_unreadable_image_is_one_or_refused_as_on_error_says(pureebm, image_folder, tiny_model, tmp_path):
    (image_folder / "cat" / "text.png").write_text("no image")
    codes = {}
    for on_error in ("skip", "copy", "fail"):
        arguments = ["purify", image_folder, tmp_path / on_error, "--model", tiny_model, "--on-error", on_error]
        done = pureebm(*arguments, "--json")
        codes[on_error] = done.code
        assert "cat/text.png" in done.json["error"] if on_error == "fail" else done.json["counts"]["failed"] == 1
    assert codes == {"skip": 1, "copy": 1, "fail": 2}
    assert not (tmp_path / "fail").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "some"], "--steps must be 'auto' or a whole number"),
        (["--batch-size", "0"], "--batch-size must be 'auto' or a whole number of at least 1, got '0'"),
        (["--shard", "5/4"], "5/4"),
        (["--device", "abacus"], "--device 'abacus' is not here"),
        (["--step-size", "nan"], "step_size must be above 0 and finite, got nan"),
        (["--temperature", "-1"], "temperature must be above 0 and finite, got -1.0"),
        (["--model", "lokal-32"], "unknown model 'lokal-32'"),
        (["--precision", "half"], "'half' is not one of"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_a_bad_option_is_named_and_nothing_is_written(pureebm, image_folder, tiny_model, tmp_path, options, message):
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, *options, "--json")
    assert done.code == done.json["exit_code"] == 2
    assert message in done.json["error"]
    assert not list(tmp_path.glob("*out*"))


def test_a_missing_source_and_an_existing_target_are_refused(pureebm, image_folder, tiny_model, tmp_path):
    missing = pureebm("purify", tmp_path / "none", tmp_path / "out", "--model", tiny_model)
    assert missing.code == 2 and "none" in missing.err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    existing = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model)
    assert existing.code == 2 and "exists" in existing.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_interrupted_jobs_exit_with_130_resume_and_end_in_the_same_bytes(pureebm, tiny_model, tmp_path):
    source, target = tmp_path / "images.npz", tmp_path / "out.npz"
    rng = np.random.default_rng(0)
    np.savez(source, images=rng.integers(0, 256, (700, 16, 16, 3), dtype=np.uint8), labels=np.arange(700) % 10)
    settings = ["--model", str(tiny_model), "--steps", "20", "--threads", "1", "--json"]
    for chunk, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        done = interrupted_after(chunk, number, source, target, settings)
        assert done.returncode == 130
        assert json.loads(done.stdout)["exit_code"] == 130
        assert done.stderr.splitlines()[-1].endswith("repeat the same command to go on")
        assert not target.exists()
    refused = pureebm("purify", source, target, *settings, "--seed", 1)
    assert refused.code == 2 and "seed: was 0, is 1" in refused.json["error"]
    resumed = pureebm("purify", source, target, *settings)
    assert resumed.code == 0 and resumed.json["resumed"] == 2 * resumed.json["settings"]["chunk_items"]
    assert pureebm("purify", source, tmp_path / "whole" / "out.npz", *settings).code == 0
    for name in ("out.npz", "out.npz.pureebm/pureebm-manifest.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def interrupted_after(
    chunk: int, number: int, source: Path, target: Path, settings: list[str]
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which gets a signal as soon as `chunk` is in the journal."""
    command = [sys.executable, "-m", "pureebm.cli.main", "purify", str(source), str(target), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        journal = target.with_name(f".{target.name}.pureebm-partial") / "journal" / f"{chunk:06d}.parquet"
        deadline = time.monotonic() + 60
        while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
