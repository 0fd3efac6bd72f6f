"""What the training of an energy minimises, as functions of tensors that were drawn elsewhere.

    warm start          mean |f(x + s z) - x|^2 / s^2                           f: the network's `restore`
    score matching      mean |x + s z - grad E(x + s z) / unit - x|^2 / s^2      (per pixel, over the batch)
    maximum likelihood  (mean E(positive) - mean E(negative)) / temperature

Nothing here knows of optimisers, banks or files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pureebm.types import Energy


def denoised(energy: Energy, images: Tensor, *, unit: float = 1.0, create_graph: bool = False) -> Tensor:
    """x - grad E(x) / unit: where one step down the energy leads. (N, C, H, W) -> the same."""
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=create_graph)
    return x.detach() - gradient / unit


def warm_start_loss(restore: Callable[[Tensor], Tensor], clean: Tensor, sigma: Tensor, z: Tensor) -> Tensor:
    """Loss of `restore` as a blind denoiser.

    Args:
        clean: (N, C, H, W). sigma: (N, 1, 1, 1). z: standard normal, like `clean`.
    """
    return weighted_error(restore(clean + sigma * z), clean, sigma)


def score_matching_loss(energy: Energy, clean: Tensor, sigma: Tensor, z: Tensor, *, unit: float = 1.0) -> Tensor:
    """Loss of the energy's gradient as a blind denoiser: multi-scale denoising score matching.

    At its optimum E / unit = s^2 * (-log density of images with noise s) near images with noise s, so that
    Langevin dynamics with temperature unit * s^2 samples noisy images of that s.

    Source: Li, Chen & Sommer, arXiv 1910.07762, equation 9 (their sigma_0 is our unit).
    Differs: each error is divided by s^2, so that every noise level weighs alike; s is drawn continuously.
    """
    guess = denoised(energy, clean + sigma * z, unit=unit, create_graph=True)
    return weighted_error(guess, clean, sigma)


def weighted_error(guess: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """Mean over images of (mean squared error) / sigma^2: 1 for a guess that removes no noise."""
    return ((guess - clean).square().mean(dim=(1, 2, 3)) / sigma.flatten().square()).mean()


def maximum_likelihood_loss(energy: Energy, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """The paper's loss, whose gradient is that of the negative log likelihood. Batches (N, C, H, W)."""
    energies = energy(torch.cat([positive, negative]))
    return (energies[: len(positive)].mean() - energies[len(positive) :].mean()) / temperature
