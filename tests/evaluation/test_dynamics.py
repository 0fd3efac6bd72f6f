"""Long chains where their end is known, and the card with its picture."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from pureebm.attacks.narcissus import Config as NarcissusConfig
from pureebm.energy.weights import load_model
from pureebm.evaluation import dynamics
from pureebm.evaluation.arrays import LabeledImages
from pureebm.evaluation.dynamics import follow, run_dynamics, told
from pureebm.evaluation.quick import QuickData, Trigger
from pureebm.sampling.langevin import LangevinConfig


def quadratic(images: Tensor) -> Tensor:
    return images.square().sum((1, 2, 3)) / 2


def test_on_a_quadratic_energy_all_chains_meet_and_the_mid_run_is_the_half_life() -> None:
    drift, n = 0.1, 24
    config = LangevinConfig(n_steps=5, step_size=math.sqrt(2 * drift) * 0.1, temperature=0.01)
    clean = torch.zeros(n, 3, 16, 16)
    found = follow(quadratic, clean, clean + 0.3, config, n_steps=200)
    assert found.steps == [0, 1, 2, 5, 10, 20, 50, 100, 200]
    # 1 - (1 - drift)^k >= 1/2; the noise is the same in both distances
    assert found.crossing == pytest.approx(math.ceil(math.log(2) / -math.log(1 - drift)), abs=1)
    card = told(found)
    assert card["auroc"]["noise"][0] == 1.0 and card["auroc"]["poisoned"][0] == 1.0
    assert 0.25 < card["auroc"]["noise"][-1] < 0.75
    # the stationary variance of x <- (1 - d) x + s z is s^2 / (1 - (1 - d)^2); the energy is half its sum
    expected = 0.5 * clean[0].numel() * config.step_size**2 / (1 - (1 - drift) ** 2)
    for values in found.energies.values():
        assert values[-1].mean().item() == pytest.approx(expected, rel=0.05)


def test_a_model_without_drift_never_forgets_where_its_chains_began() -> None:
    config = LangevinConfig(n_steps=5, step_size=1e-3, temperature=1.0)
    found = follow(quadratic, torch.zeros(8, 3, 16, 16), torch.full((8, 3, 16, 16), 0.3), config, n_steps=50)
    assert found.crossing is None
    assert told(found)["auroc"]["noise"][-1] == 1.0


def test_the_card_holds_what_was_followed_and_stands_beside_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 32, 32, 3), generator=generator).to(torch.uint8)
    data = QuickData(tmp_path, tmp_path)
    data.test = LabeledImages(images, torch.arange(6))  # type: ignore[misc]
    trigger = Trigger("t", 0, torch.full((3, 32, 32), 8 / 127.5), 0)
    monkeypatch.setattr(dynamics, "load_triggers", lambda *_: [trigger])
    model = load_model("residual-32")
    config = replace(LangevinConfig(**model.card["sampler"]), n_steps=2)
    card = run_dynamics(model, config, data, n_steps=3, n_images=4, out=tmp_path, command="pureebm bench dynamics")
    (path,) = (tmp_path / "dynamics").glob("residual-32-*.json")
    stored = json.loads(path.read_text())
    assert stored["steps"] == [0, 1, 2, 3] and stored["settings"]["n_steps"] == 2
    assert stored["eps"] == NarcissusConfig().eps
    assert [len(values) for values in stored["energies"]["noise"]] == [4] * 4
    assert stored["distances"]["to_start"][0] == 0.0 < stored["distances"]["to_clean"][0]
    with Image.open(card["picture"]) as picture:
        assert min(picture.size) > 500
