"""`pureebm purify --workers`: several processes, the bytes of one."""

import sys
from pathlib import Path

import numpy as np
import pytest


def test_workers_share_the_work_and_the_bytes_are_those_of_one_process(pureebm, tiny_model, tmp_path):
    source = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(source, images=rng.integers(0, 256, (600, 16, 16, 3), dtype=np.uint8), labels=np.arange(600) % 10)
    targets = [tmp_path / name / "out.npz" for name in ("one", "two")]
    assert pureebm("purify", source, targets[0], "--model", tiny_model).code == 0
    done = pureebm("purify", source, targets[1], "--model", tiny_model, "--workers", 2, "--threads", 1)
    assert done.code == 0 and "over all workers" in done.err
    for name in ("out.npz", "out.npz.pureebm/pureebm-manifest.parquet", "out.npz.pureebm/pureebm-report.html"):
        one, two = ((target.parent / name).read_bytes() for target in targets)
        assert one == two, name


def test_senseless_workers_are_refused(pureebm, image_folder, tiny_model, tmp_path):
    for options in (["--workers", 0], ["--engine", "spark"]):
        done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, *options)
        assert done.code == 2 and options[0] in done.err
    assert not (tmp_path / "out").exists()


def test_a_missing_ray_names_the_extra(pureebm, image_folder, tiny_model, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = pureebm("purify", image_folder, tmp_path / "out", "--model", tiny_model, "--engine", "ray")
    assert done.code == 2 and "pip install 'pureebm[ray]'" in done.err
    assert not Path(tmp_path / "out").exists()
