"""Purifiers that gradients flow through, for attackers who know the purifier and optimize through it.

All map (N, 3, H, W) in [-1, 1] to the same shape. Noise is fresh at every call unless the same is asked for (`known`),
so that an attacker who averages over calls attacks the distribution of results and not one draw of it. Under
`torch.no_grad` they give the same images and build no graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pureebm.energy.student import Student
from pureebm.energy.weights import LoadedModel
from pureebm.errors import InputError
from pureebm.sampling.langevin import LangevinConfig, energy_and_gradient, noise_scale
from pureebm.types import Energy, Noise

Through = Callable[[Tensor], Tensor]


def known(
    model: LoadedModel, *, steps: int | None = None, seed: int = 0, noise: str = "fresh", gradient: str = "exact"
) -> Through:
    """What an attacker who knows a purifier makes of it: `differentiable`, with its randomness and its gradient.

    Args:
        noise: "fresh" at every call, or "fixed": the same at all.
        gradient: "exact", or "straight": none is taken, as if nothing were purified.
    """
    through = differentiable(model, steps=steps, seed=seed)  # checks
    if noise == "fixed":
        through = lambda x: differentiable(model, steps=steps, seed=seed)(x)  # noqa: E731
    return straight_through(through) if gradient == "straight" else through


def straight_through(purify: Through) -> Through:
    """The same images, but gradients pass as if nothing were done: for an attacker who can run the purifier and not
    differentiate it.

    Source: BPDA, Athalye et al., arXiv 1802.00420.
    """

    def through(x: Tensor) -> Tensor:
        with torch.no_grad():
            moved = purify(x.detach()) - x
        return x + moved

    return through


def differentiable(model: LoadedModel, *, steps: int | None = None, seed: int = 0) -> Through:
    """The purifier that a loaded model is, differentiable.

    Args:
        model: a student, at level 1; or an energy with its own sampler.
        steps: of an energy: how many updates of its chain, from the first; None for all. Memory and time grow with
            them.
        seed: of the noise, which goes on from call to call.

    Raises:
        InputError: steps for a student, or more than the sampler has.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(step: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    network = model.network
    if isinstance(network, Student):
        if steps is not None:
            raise InputError(f"{model.name!r} is a one-pass student: it takes no steps")
        return lambda x: network(x, normal(0, x), normal(1, x), torch.ones(len(x), device=x.device))
    config = LangevinConfig(**model.card.get("sampler", {}))
    if steps is not None and not 1 <= steps <= config.n_steps:
        raise InputError(f"steps must be 1 to {config.n_steps}, the model's own, got {steps}")
    return lambda x: differentiable_langevin(model.energy, x, config, noise=normal, updates=steps)


def differentiable_langevin(
    energy: Energy, images: Tensor, config: LangevinConfig, *, noise: Noise, updates: int | None = None
) -> Tensor:
    """What `sampling.langevin` computes, as a graph that gradients flow through: with second derivatives of the energy.

    Args:
        updates: only the first so many of the chain, with the step sizes that they have in the whole of it.

    The factor of noise that adapts to an image counts as a constant.
    """
    coordinates = getattr(energy, "whitening", None)

    def color(z: Tensor) -> Tensor:
        return coordinates.color(z) if coordinates else z

    scale = noise_scale(energy, images.detach(), config) if config.adapt_above else torch.ones(())
    x = images if images.requires_grad else images.detach()
    if torch.is_grad_enabled() and not x.requires_grad:
        x = x.requires_grad_()
    if config.initial_noise:
        x = x + config.initial_noise * color(scale * noise(0, x))
    for step in range(config.n_steps if updates is None else updates):
        step_size, temperature = config.at(step)
        x = x - step_size**2 / (2 * temperature) * color(color(_gradient(energy, x)))
        x = x + config.noise * step_size * color(scale.pow(config.fade(step)) * noise(step + 1, x))
    return x


def _gradient(energy: Energy, images: Tensor) -> Tensor:
    """As of `sampling.langevin.energy_and_gradient`, but part of the graph if there is one."""
    if not torch.is_grad_enabled():
        return energy_and_gradient(energy, images)[1]
    if getattr(energy, "residual", False):
        field: Tensor = energy.residual_field(images)[1]  # type: ignore[attr-defined]
        return field
    return torch.autograd.grad(energy(images).sum(), images, create_graph=True)[0]
