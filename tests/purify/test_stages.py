"""Stages and chains: precision is settled by a check, chains compose, and nothing is purified by accident."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pureebm.errors import InputError
from pureebm.purify import stages
from pureebm.purify.stages import Chain, LangevinStage
from pureebm.sampling.langevin import LangevinConfig, langevin
from pureebm.sampling.noise import CounterNoise


def quadratic(images: Tensor) -> Tensor:
    return images.square().sum(dim=(1, 2, 3)) / 2


def stage(**values: float) -> LangevinStage:
    config = LangevinConfig(n_steps=4, step_size=0.1, temperature=0.1, **values)
    return LangevinStage(quadratic, config, precision="float32")


def test_a_stage_is_langevin_with_the_noise_of_seed_and_ids() -> None:
    images = torch.rand(3, 3, 16, 16)
    expected = langevin(quadratic, images, stage().config, noise=CounterNoise(5, ["a", "b", "c"]))
    assert torch.equal(stage().purify_batch(images, ["a", "b", "c"], seed=5), expected)


def test_a_chain_runs_its_stages_in_order_with_fresh_noise() -> None:
    images, ids = torch.rand(2, 3, 16, 16), ["a", "b"]
    first = stage().purify_batch(images, ids, seed=3)
    second = stage().purify_batch(first, ids, seed=4)
    assert torch.equal(Chain([stage(), stage()]).purify_batch(images, ids, seed=3), second)


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(InputError, match="would purify nothing"):
        Chain([])


def rounding(images: Tensor) -> Tensor:
    """An energy that bfloat16 spoils: a small difference of large numbers."""
    weight = torch.full((1, images[0].numel()), 1.003)
    x = images.flatten(1)
    return torch.nn.functional.linear(x * 1000, weight).squeeze(1) - 1003 * x.sum(dim=1) + x.square().sum(dim=1)


@pytest.mark.parametrize(("energy", "expected"), [(quadratic, "bfloat16"), (rounding, "float32")])
def test_bfloat16_is_taken_only_if_the_gradient_survives_it(
    energy: object, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "has_fast_bfloat16", lambda device: True)
    automatic = LangevinStage(energy, LangevinConfig(n_steps=1), precision="auto")  # type: ignore[arg-type]
    Chain([automatic]).prepare(torch.rand(2, 3, 16, 16))
    assert automatic.settings()["precision"] == expected


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="got 'half'"):
        LangevinStage(quadratic, LangevinConfig(), precision="half")
