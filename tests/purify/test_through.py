"""Purifiers with gradients: the same results as the purifiers themselves, and the right gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pureebm.energy.networks import LocalEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import load_model, save_model
from pureebm.errors import InputError
from pureebm.purify.through import differentiable, differentiable_langevin, known, straight_through
from pureebm.sampling.langevin import LangevinConfig, langevin
from pureebm.sampling.noise import CounterNoise

CONFIG = LangevinConfig(
    n_steps=3, step_size=0.1, temperature=0.02, step_size_end=0.05, temperature_end=0.01, noise=0.5, initial_noise=0.1
)


def quadratic(images: Tensor) -> Tensor:
    return images.square().sum(dim=(1, 2, 3)) / 2


@pytest.mark.parametrize("residual", [False, True])
def test_it_is_the_langevin_chain(residual: bool) -> None:
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), whiten=4.0, chroma=2.0, residual=residual)
    torch.nn.init.normal_(energy.head.weight, std=0.2)
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, CounterNoise(1, ["a", "b"])
    config = replace(CONFIG, adapt_above=0.01) if residual else CONFIG
    ours = differentiable_langevin(energy, images, config, noise=noise)
    torch.testing.assert_close(ours.detach(), langevin(energy, images, config, noise=noise), atol=1e-5, rtol=0)


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_a_gradient_shrinks_by_the_curvature_of_each_update(updates: int) -> None:
    # E = |x|^2 / 2: one update multiplies x, and so the gradient, by 1 - s^2 / 2T
    expected = 1.0
    for step in range(updates):
        step_size, temperature = CONFIG.at(step)
        expected *= 1 - step_size**2 / (2 * temperature)
    x = torch.rand(1, 3, 16, 16).requires_grad_()
    out = differentiable_langevin(quadratic, x, CONFIG, noise=CounterNoise(0, ["a"]), updates=updates)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("residual", [False, True])
def test_without_gradients_it_gives_the_same_images_and_builds_no_graph(residual: bool) -> None:
    torch.manual_seed(0)
    energy = LocalEnergy((4,), (1,), residual=residual).requires_grad_(False)
    torch.nn.init.normal_(energy.head.weight, std=0.2)
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, CounterNoise(1, ["a", "b"])
    config = replace(CONFIG, adapt_above=0.01) if residual else CONFIG
    with_graph = differentiable_langevin(energy, images, config, noise=noise)
    with torch.no_grad():
        without = differentiable_langevin(energy, images, config, noise=noise)
    assert with_graph.grad_fn is not None and without.grad_fn is None and not images.requires_grad
    assert torch.equal(with_graph, without)


def test_an_attacker_who_takes_no_gradient_runs_the_purifier_without_one(tiny_model: Path) -> None:
    enabled: list[bool] = []

    def purify(x: Tensor) -> Tensor:
        enabled.append(torch.is_grad_enabled())
        return x / 2

    x = torch.ones(1, 3, 16, 16, requires_grad=True)
    out = straight_through(purify)(x)
    assert enabled == [False] and torch.equal(out, x / 2)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.ones_like(x))
    exact = known(load_model(tiny_model), seed=3)(x)
    straight = known(load_model(tiny_model), seed=3, gradient="straight")(x)
    torch.testing.assert_close(straight, exact, atol=1e-6, rtol=0)


def test_both_kinds_of_model_pass_gradients_with_new_noise_at_every_call(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_model(path, Student((8,), (0,)), {})
    for model in (load_model(path), load_model(tiny_model)):
        through, x = differentiable(model, seed=1), torch.zeros(2, 3, 16, 16, requires_grad=True)
        first, second = through(x), through(x)
        assert first.shape == x.shape and (first - second).abs().mean() > 1e-3
        (gradient,) = torch.autograd.grad(first.sum(), x)
        assert gradient.abs().mean() > 0.5
        assert torch.equal(differentiable(model, seed=1)(x), first)
    with pytest.raises(InputError, match="takes no steps"):
        differentiable(load_model(path), steps=2)
    with pytest.raises(InputError, match="steps must be 1 to 3"):
        differentiable(load_model(tiny_model), steps=4)
