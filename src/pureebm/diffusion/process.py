"""Purification by diffusion: noise an image up to a level of a DDPM's schedule, then walk it back to level 0.

With signal shares a_t (the cumulative products of 1 - beta_t; a is 1 beyond the last step), z ~ N(0, I), and the
network's estimate e of the noise in x at level t:

    forward   x  <-  sqrt(a_T) x + sqrt(1 - a_T) z
    estimate  x0  =  clip((x - sqrt(1 - a_t) e) / sqrt(a_t), -1, 1)
    reverse   x  <-  sqrt(a_s) x0 + sqrt(1 - a_s - v) (x - sqrt(a_t) x0) / sqrt(1 - a_t) + sqrt(v) z

from t to the next lower level s. With the variance of the posterior, v = (1 - a_s) (1 - a_t / a_s) / (1 - a_t), and
every level visited, this is DDPM's ancestral step (Ho, Jain & Abbeel, arXiv 2006.11239, equation 7); with v = 0 it is
DDIM's (Song, Meng & Ermon, arXiv 2010.02502, equation 12), which may leave out levels. Knows no files and no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.errors import InputError
from pureebm.types import Noise

N_LEVELS = 1000
BETA_START, BETA_END = 1e-4, 0.02

PAPER_LEVEL = 75  # from scratch; 125 for transfer learning

Predict = Callable[[Tensor, int], Tensor]
"""(N, C, H, W) at a level -> the estimate of its noise, of the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPMConfig:
    """How much noise is put on an image, and in how many steps it is taken off again."""

    level: Annotated[int, "noise level of the schedule's 1,000, and number of reverse steps"] = PAPER_LEVEL
    ddim: Annotated[int | None, "instead of these, so many steps of DDIM, which draws no noise on the way"] = None

    def __post_init__(self) -> None:
        if not 1 <= self.level < N_LEVELS:
            raise InputError(f"the level of noise must be 1 to {N_LEVELS - 1}, got {self.level}")
        if self.ddim is not None and not 1 <= self.ddim <= self.level:
            raise InputError(f"ddim must be 1 to {self.level} steps, as many as the level at most, got {self.ddim}")

    def levels(self) -> list[int]:
        """Those at which the network is asked, falling, and -1 at the end: evenly spaced below `level`."""
        count = self.ddim or self.level
        return [step * self.level // count - 1 for step in range(count, -1, -1)]


def signal_shares() -> list[float]:
    """a_0 .. a_999 of the linear schedule; a_-1, the last of the list, is that of the clean image."""
    betas = torch.linspace(BETA_START, BETA_END, N_LEVELS, dtype=torch.float64)
    shares: list[float] = torch.cumprod(1 - betas, 0).tolist()
    return [*shares, 1.0]


def diffuse(images: Tensor, z: Tensor, level: int) -> Tensor:
    """Images at a noise level: the forward process in one step."""
    share = signal_shares()[level]
    return math.sqrt(share) * images + math.sqrt(1 - share) * z


def reverse_step(x: Tensor, estimate: Tensor, share: float, next_share: float, z: Tensor | None) -> Tensor:
    """From signal share `share` to the larger `next_share`, by the estimate of the noise in x.

    Args:
        z: N(0, I) for an ancestral step; None for one of DDIM.
    """
    clean = ((x - math.sqrt(1 - share) * estimate) / math.sqrt(share)).clamp(-1, 1)
    variance = 0.0 if z is None else (1 - next_share) * (1 - share / next_share) / (1 - share)
    keep = math.sqrt(max(1 - next_share - variance, 0.0) / (1 - share))
    out = keep * x + (math.sqrt(next_share) - keep * math.sqrt(share)) * clean
    return out if z is None or not variance else out + math.sqrt(variance) * z


def ddpm(predict: Predict, images: Tensor, config: DDPMConfig, *, noise: Noise) -> Tensor:
    """Noise a batch and walk it back.

    Args:
        predict: Called once a reverse step. Must treat images independently.
        images: (N, C, H, W) float32 in [-1, 1]; left unchanged.
        config: How far, and in how many steps.
        noise: Draws N(0, I): step 0 for the forward process, k for the k-th reverse step.

    Returns:
        (N, C, H, W) float32 in [-1, 1].

    Source: arXiv 2405.18627, PureGen-DDPM.
    Differs: nothing; as in the authors' code the forward process goes to index `level`, and the reverse one begins at
        the index below.
    """
    shares, levels = signal_shares(), config.levels()
    x = diffuse(images, noise(0, images), config.level)
    for step, (level, following) in enumerate(zip(levels, levels[1:], strict=False), start=1):
        z = noise(step, x) if config.ddim is None and following >= 0 else None
        x = reverse_step(x, predict(x, level), shares[level], shares[following], z)
    return x
