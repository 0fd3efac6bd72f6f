"""`pureebm score`."""

import pyarrow.parquet as pq
import pytest
import torch

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
