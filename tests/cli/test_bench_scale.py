"""Whole jobs, measured: one process each, the same bytes whoever computed them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pureebm.errors import InputError
from pureebm.evaluation.scale import measure_jobs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    return path


def test_jobs_are_measured_and_leave_a_card_and_a_picture(pureebm, source: Path, tiny_model: Path) -> None:
    out = source.parent / "results"
    words = ("bench", "scale", source, "--model", tiny_model, "--images", "4,12", "--threads", 1, "--out", out)
    told = pureebm(*words, "--json").json
    assert [row["images"] for row in told["jobs"]] == [4, 12] and {row["workers"] for row in told["jobs"]} == {1}
    for row in told["jobs"]:
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])
        assert 50 < row["peak_mb"] < 5000
    assert told["jobs"][0]["sha256"] != told["jobs"][1]["sha256"]
    card = json.loads(Path(told["card"]).read_text())
    assert card["jobs"] == told["jobs"] and card["identical"] is True and card["processor"]
    with Image.open(Path(told["card"]).with_suffix(".png")) as picture:
        assert picture.width > 500
    assert list(source.parent.glob("*")) and not list(source.parent.glob("*.pureebm"))  # targets are gone


@pytest.mark.slow
def test_more_workers_write_the_same_bytes(source: Path, tiny_model: Path) -> None:
    jobs = measure_jobs(source, model=str(tiny_model), images=[12], workers=[1, 2], threads=2)
    assert [(row["workers"], row["threads"]) for row in jobs] == [(1, 2), (2, 1)]
    assert jobs[0]["sha256"] == jobs[1]["sha256"]


def test_what_cannot_be_measured_is_refused(source: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="holds 12 images, 13 were asked for"):
        measure_jobs(source, model=str(tiny_model), images=[13], workers=[1], threads=1)
    with pytest.raises(InputError, match="must be 1 or more"):
        measure_jobs(source, model=str(tiny_model), images=[4], workers=[0], threads=1)
    with pytest.raises(InputError, match="failed; mend it first: .*unknown model"):
        measure_jobs(source, model="nowhere", images=[4], workers=[1], threads=1)
