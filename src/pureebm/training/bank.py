"""The persistent negatives of maximum-likelihood training: chains that go on from step to step."""

from __future__ import annotations

import torch
from torch import Tensor


class Bank:
    """A fixed number of images, from which batches are drawn and to which they return.

    Args:
        images: (size, C, H, W) float32, where the chains begin.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) indices of different images."""
        return torch.randperm(len(self.images), generator=generator)[:n]

    def put(self, indices: Tensor, negatives: Tensor) -> None:
        """Replace the images at `indices` (n,) by `negatives` (n, C, H, W)."""
        self.images[indices] = negatives.to(self.images.device)


def rejuvenate(negatives: Tensor, current: Tensor, rate: float, noise: float, generator: torch.Generator) -> Tensor:
    """Replace each negative with chance `rate` by the current image at its place, with `noise` added.

    Args:
        negatives, current: (N, C, H, W); `current` is the (already noisy) data batch.
    """
    replaced = torch.rand(len(negatives), 1, 1, 1, generator=generator) < rate
    z = torch.randn(current.shape, generator=generator).to(current.device)
    return torch.where(replaced.to(current.device), current + noise * z, negatives)
