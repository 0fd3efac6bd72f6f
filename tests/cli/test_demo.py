"""`pureebm demo`, here with a tiny network; the figures of the bundled one need its weights and a minute."""

import math
from pathlib import Path

import pytest


def test_the_demo_writes_both_sets_and_names_the_report(pureebm, tiny_model, tmp_path):
    out = tmp_path / "demo"
    done = pureebm("demo", "--out", out, "--model", tiny_model, "--json")
    assert done.code == 0
    result = done.json
    assert (result["clean"]["n_images"], result["poisoned"]["n_images"]) == (224, 16)
    assert all(math.isfinite(value) for group in ("clean", "poisoned") for value in result[group].values())
    assert 0 <= result["paired_share"] <= 1
    assert Path(result["report"]).is_file()
    assert len(list((out / "untrusted").rglob("*.png"))) == len(list((out / "purified").rglob("*.png"))) == 240
    again = pureebm("demo", "--out", out, "--model", tiny_model)
    assert (again.code, again.out) == (0, "")
    assert result["report"] in again.err


def test_the_demo_does_not_write_into_a_folder_that_holds_something_else(pureebm, tiny_model, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    done = pureebm("demo", "--out", tmp_path, "--model", tiny_model)
    assert done.code == 2 and "no former demonstration" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_bundled_model_lowers_the_trigger_in_the_demo(pureebm, tmp_path):
    result = pureebm("demo", "--out", tmp_path / "demo", "--json").json
    assert result["paired_share"] >= 0.9
    assert result["auroc_before"] >= 0.75 and result["auroc_after"] < 0.65
    assert result["trigger_survival"] < 0.15
    assert result["poisoned"]["energy_after"] < 2 * result["clean"]["energy_after"]
    assert result["clean"]["energy_after"] < result["clean"]["energy_before"] and result["clean"]["psnr"] > 30
