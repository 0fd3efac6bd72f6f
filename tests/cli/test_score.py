"""`pureebm score`."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pureebm.data.open import open_source
from pureebm.data.ranges import stack
from pureebm.energy.weights import load_model


def test_energies_are_the_networks_own_highest_first(pureebm, image_folder, tiny_model, tmp_path):
    out = tmp_path / "scores.parquet"
    done = pureebm("score", image_folder, "--out", out, "--model", tiny_model, "--json")
    assert done.code == 0
    rows = pq.read_table(out, columns=["id", "energy"]).to_pylist()
    loaded = open_source(image_folder).load(0, 64)
    with torch.no_grad():
        energies = load_model(tiny_model).energy(stack([item.picture.pixels for item in loaded])).tolist()
    expected = sorted(zip(energies, (item.item.id for item in loaded), strict=True), reverse=True)
    assert [row["id"] for row in rows] == [name for _, name in expected]
    assert [row["energy"] for row in rows] == pytest.approx([energy for energy, _ in expected], rel=1e-4)
    assert done.json["count"] == 64
    assert [row["id"] for row in done.json["top"]] == [row["id"] for row in rows[:10]]
    assert done.json["energies"]["max"] == rows[0]["energy"]


def test_people_see_the_ten_highest(pureebm, image_folder, tiny_model, tmp_path):
    done = pureebm("score", image_folder, "--out", tmp_path / "s.parquet", "--model", tiny_model, "--limit", 20)
    assert (done.code, done.out) == (0, "")
    assert sum(".png" in line for line in done.err.splitlines()) == 10
    assert "20 energies, highest first" in done.err


def test_scores_are_never_written_into_the_source(pureebm, tmp_path, tiny_model) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = Image.new("RGB", (16, 16), (10, 200, 30))
    image.save(folder / "a.png")
    before = (folder / "a.png").read_bytes()
    for out in (folder / "a.png", folder / "scores.parquet"):
        done = pureebm("score", folder, "--out", out, "--model", tiny_model)
        assert done.code == 2 and "lies in the source" in done.err
    np.savez(tmp_path / "set.npz", images=np.zeros((2, 16, 16, 3), np.uint8))
    assert pureebm("score", tmp_path / "set.npz", "--out", tmp_path / "set.npz", "--model", tiny_model).code == 2
    assert (folder / "a.png").read_bytes() == before and [path.name for path in folder.iterdir()] == ["a.png"]
