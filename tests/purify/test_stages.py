"""Stages and chains: precision is settled by a check, chains compose, and nothing is purified by accident."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pureebm.energy import engine
from pureebm.energy.networks import LocalEnergy
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


def test_noise_that_adapts_asks_for_the_energies_of_a_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), residual=True)
    torch.nn.init.normal_(energy.head.weight, std=0.2)
    config = LangevinConfig(n_steps=2, step_size=0.1, temperature=0.1, adapt_above=1e-3, adapt_most=1e3)
    adapting = LangevinStage(energy, config, precision="float32")
    images, ids = torch.rand(2, 3, 16, 16), ["a", "b"]
    asked: list[int] = []
    forward = adapting.score.energy  # type: ignore[union-attr]
    monkeypatch.setattr(adapting.score, "energy", lambda x: asked.append(len(x)) or forward(x))
    fresh = adapting.purify_batch(images, ids, seed=1)
    adapting.energies(images)
    assert torch.equal(adapting.purify_batch(images, ids, seed=1), fresh) and asked == [2, 2]
    adapting.purify_batch(images.clone(), ids, seed=1)
    assert asked == [2, 2, 2]  # another batch, as far as the stage knows
    adapting.energies(images)
    images.add_(0.1)
    adapting.purify_batch(images, ids, seed=1)
    assert asked == [2] * 5  # written to meanwhile
    images.sub_(0.1)
    torch.testing.assert_close(fresh, langevin(energy, images, config, noise=CounterNoise(1, ids)))


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


def local() -> LocalEnergy:
    torch.manual_seed(0)
    energy = LocalEnergy((8,), (1,))
    for parameter in energy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return energy


def test_a_known_network_takes_the_exact_engine_and_the_record_says_so() -> None:
    images, ids = torch.rand(3, 3, 16, 20) * 2 - 1, ["a", "b", "c"]
    config = LangevinConfig(n_steps=3, step_size=0.03, temperature=1e-2)
    exact, eager = (LangevinStage(local(), config, precision="float32", engine=name) for name in ("auto", "eager"))
    out = exact.purify_batch(images, ids, seed=1)
    assert torch.allclose(out, eager.purify_batch(images, ids, seed=1), atol=1e-5)
    assert torch.allclose(exact.energies(images), eager.energies(images), rtol=1e-4, atol=1e-5)
    assert exact.settings()["engine"] == "exact: LocalEnergy has an explicit graph"
    assert eager.settings()["engine"] == "eager: the eager engine was asked for"
    assert "no explicit graph" in stage().settings()["engine"]
    out += 1  # an ordinary tensor, not one of inference mode
    assert not out.is_inference()


def test_an_exact_engine_that_is_wrong_on_the_first_batch_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.CHECK_LIMIT, "float32", -1.0)
    stage = LangevinStage(local(), LangevinConfig(n_steps=1), precision="float32")
    Chain([stage]).prepare(torch.rand(2, 3, 16, 16))
    assert stage.settings()["engine"] == "eager: the exact engine was left, since its gradient differs from autograd's"


@pytest.mark.parametrize(("limit", "expected"), [(0.5, "bfloat16"), (1e-6, "float32")])
def test_precision_is_settled_with_the_exact_engine_too(
    limit: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(stages, "SELF_CHECK_LIMIT", limit)
    automatic = LangevinStage(local(), LangevinConfig(n_steps=1), precision="auto")
    automatic.prepare(torch.rand(2, 3, 16, 16))
    told = automatic.settings()
    assert told["precision"] == automatic.score.precision == expected and told["engine"].startswith("exact: ")
