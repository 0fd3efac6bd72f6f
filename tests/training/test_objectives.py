"""Losses against closed forms and slow restatements."""

from __future__ import annotations

import pytest
import torch

from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.training.objectives import denoised, maximum_likelihood_loss, score_matching_loss, warm_start_loss


def draws(n: int, shape: tuple[int, ...] = (3, 16, 16), seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    clean, z = torch.randn(n, *shape, generator=g), torch.randn(n, *shape, generator=g)
    return clean, 0.1 + 0.3 * torch.rand(n, 1, 1, 1, generator=g), z


def test_score_matching_of_gaussian_data_is_least_at_the_coefficient_of_its_score():
    # x ~ N(0, v), x~ = x + s z: E[x | x~] = x~ v / (v + s^2), so U(x~) = c |x~|^2 / 2 is best at
    # c = s^2 / (v + s^2), and its loss per pixel is the posterior variance over s^2: v / (v + s^2).
    v, s, unit = 0.25, 0.3, 0.1
    clean, _, z = draws(256)
    clean, sigma = v**0.5 * clean, torch.full((256, 1, 1, 1), s)
    c = torch.tensor(0.5, requires_grad=True)

    def loss(coefficient):
        return score_matching_loss(
            lambda x: unit * coefficient * x.square().sum((1, 2, 3)) / 2, clean, sigma, z, unit=unit
        )

    best = s**2 / (v + s**2)
    (slope,) = torch.autograd.grad(loss(c), c)
    # the loss is a parabola in c: its minimum follows from slope and curvature 2 (v + s^2) / s^2
    assert 0.5 - slope.item() * s**2 / (2 * (v + s**2)) == pytest.approx(best, rel=0.02)
    assert loss(torch.tensor(best)).item() == pytest.approx(v / (v + s**2), rel=0.02)


@pytest.mark.parametrize(
    "network", [LocalEnergy((4, 4), (1, 1)), SNGANEnergy(4, train_size=16)], ids=["local", "sngan"]
)
def test_score_matching_equals_its_slow_restatement_image_by_image(network):
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clean, sigma, z = draws(3)
    expected = 0.0
    for x, s, noise in zip(clean, sigma, z, strict=True):
        noisy = (x + s * noise).requires_grad_()
        network(noisy[None]).sum().backward()
        expected += ((noisy - noisy.grad / 0.7 - x).square().mean() / s.item() ** 2).item() / 3
    network.zero_grad()
    loss = score_matching_loss(network, clean, sigma, z, unit=0.7)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert sum(p.grad.abs().sum() for p in network.parameters() if p.grad is not None) > 0  # through grad E


def test_a_perfect_denoiser_has_warm_start_loss_zero_and_an_idle_one_has_one():
    clean, sigma, z = draws(512)
    assert warm_start_loss(lambda noisy: noisy - sigma * z, clean, sigma, z).item() == pytest.approx(0, abs=1e-9)
    assert warm_start_loss(lambda noisy: noisy, clean, sigma, z).item() == pytest.approx(1, rel=0.01)


def test_denoised_is_one_step_down_the_energy():
    x = torch.randn(2, 3, 4, 4)
    assert torch.allclose(denoised(lambda y: 3 * y.square().sum((1, 2, 3)) / 2, x, unit=2.0), x - 1.5 * x)


def test_the_likelihood_loss_and_its_gradient_are_those_of_the_paper():
    # E = w * sum(x): the loss is w (mean sum x+ - mean sum x-) / T, its gradient that without w.
    w, t = torch.tensor(2.0, requires_grad=True), 0.5
    positive, negative = torch.randn(5, 3, 4, 4), torch.randn(7, 3, 4, 4)
    loss = maximum_likelihood_loss(lambda x: w * x.sum((1, 2, 3)), positive, negative, t)
    slope = (positive.sum((1, 2, 3)).mean() - negative.sum((1, 2, 3)).mean()) / t
    loss.backward()
    assert loss.item() == pytest.approx(2 * slope.item(), rel=1e-4)
    assert w.grad.item() == pytest.approx(slope.item(), rel=1e-4)
