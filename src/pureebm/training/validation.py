"""How well an energy purifies held-out images: the number by which the best checkpoint is chosen.

Three perturbations of 8/255 that are made here stand for poisons; no attack, no victim is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.sampling.langevin import LangevinConfig, langevin
from pureebm.types import JSON, Energy

EPSILON = 16 / 255  # 8/255 of the range [0, 1], in units of [-1, 1]


def perturbations(images: Tensor, *, seed: int = 0) -> Mapping[str, Tensor]:
    """Perturbations of at most 8/255, each like `images` (N, C, H, W): one smooth pattern and one sinusoid for
    all images, and random signs of their own for each."""
    n, channels, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, -(-height // 2), -(-width // 2), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    wave = torch.sin(2 * math.pi * 6 * torch.arange(width) / width).expand(1, channels, height, width)
    signs = torch.randint(0, 2, images.shape, generator=generator).float() * 2 - 1
    patterns = {"smooth": (smooth / smooth.std()).clamp(-1, 1), "sinusoid": wave, "signs": signs}
    return {name: EPSILON * pattern.expand(images.shape).to(images) for name, pattern in patterns.items()}


class RepeatedNoise:
    """Noise that depends on the step alone: paired chains of equal shape meet the same (`Noise` protocol)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, step: int, like: Tensor, /) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.randn(like.shape, generator=generator).to(like.device)


def validate(energy: Energy, images: Tensor, sampler: LangevinConfig, *, seed: int = 0, batch: int = 128) -> JSON:
    """Purify held-out images, clean and perturbed, with the same noise in both.

    Args:
        images: (N, C, H, W) in [-1, 1].

    Returns:
        `figure`: mean squared distance of purified perturbed images to their clean originals, in [-1, 1]
        units: lower is better. `clean_psnr`: of purified clean images. And of each perturbation: `psnr` of
        its purified images, `survival`, the share of it that is left, `paired`, the share of images whose
        energy it raises, and `auroc` of its energies against the clean ones.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    clean = purified(energy, images, sampler, seed=seed, batch=batch)
    calm = energies(energy, images, batch=batch)
    kinds: JSON = {}
    for name, change in perturbations(images, seed=seed).items():
        poisoned = (images + change).clamp(-1, 1)
        change = poisoned - images
        after = purified(energy, poisoned, sampler, seed=seed, batch=batch)
        raised = energies(energy, poisoned, batch=batch)
        kinds[name] = {
            "squared_distance": _mean((after - images).square()),
            "psnr": psnr(after, images),
            "survival": float(((after - clean) * change).sum() / change.square().sum()),
            "paired": _mean((raised > calm).float()),
            "auroc": auroc(calm, raised),
        }
    figure = sum(kind["squared_distance"] for kind in kinds.values()) / len(kinds)
    return {"figure": figure, "clean_psnr": psnr(clean, images), "perturbations": kinds}


def purified(energy: Energy, images: Tensor, sampler: LangevinConfig, *, seed: int, batch: int) -> Tensor:
    """Langevin dynamics in batches with noise that repeats; clamped to [-1, 1]."""
    parts = [
        langevin(energy, part, sampler, noise=RepeatedNoise(seed + number))
        for number, part in enumerate(torch.split(images, batch))
    ]
    return torch.cat(parts).clamp(-1, 1)


def energies(energy: Energy, images: Tensor, *, batch: int = 128) -> Tensor:
    """(N,) energies, detached."""
    with torch.no_grad():
        return torch.cat([energy(part) for part in torch.split(images, batch)])


def psnr(images: Tensor, originals: Tensor) -> float:
    """Of all images together, in dB, for a range of [-1, 1]."""
    return -10 * math.log10(max(_mean((images - originals).square()) / 4, 1e-12))


def auroc(low: Tensor, high: Tensor) -> float:
    """Chance that a random value of `high` is above one of `low`; ties count half."""
    difference = high[:, None] - low[None, :]
    return _mean((difference > 0).float() + 0.5 * (difference == 0).float())


def _mean(values: Tensor) -> float:
    return cast(float, values.mean().item())
