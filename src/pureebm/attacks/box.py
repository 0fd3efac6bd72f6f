"""The box that a perturbation is optimized in: images in [-1, 1] at most eps steps of 1/255 from their originals.

Its walls lie on the grid of 8-bit pixels and within black and white, so that images inside stay inside when they are
rounded. Knows nothing of attacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pureebm.attacks.base import within
from pureebm.data.ranges import to_pm1, to_uint8


@dataclass(frozen=True, slots=True)
class Box:
    """What images may become. originals: (P, H, W, 3) uint8 on the CPU; low, high: (P, 3, H, W) in [-1, 1]."""

    originals: Tensor
    eps: int
    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, originals: Tensor, eps: int, *, device: str = "cpu") -> Box:
        """The box of half-width eps around (P, H, W, 3) uint8 images, cut at black and white."""
        low = (originals.int() - eps).clamp(min=0).to(torch.uint8)
        high = (originals.int() + eps).clamp(max=255).to(torch.uint8)
        return cls(originals, eps, as_batch(low, device), as_batch(high, device))

    def start(self) -> Tensor:
        """The originals as a new (P, 3, H, W) batch in [-1, 1], where the box is."""
        return as_batch(self.originals, str(self.low.device))

    @torch.no_grad()
    def clamp_(self, images: Tensor) -> Tensor:
        """Move (P, 3, H, W) images into the box, in place."""
        return torch.minimum(torch.maximum(images, self.low, out=images), self.high, out=images)

    def rounded(self, images: Tensor) -> Tensor:
        """(P, 3, H, W) in [-1, 1] -> (P, H, W, 3) uint8 on the CPU, inside the box."""
        pixels = to_uint8(images.detach()).permute(0, 2, 3, 1).contiguous().cpu()
        return within(pixels, self.originals, self.eps)


def as_batch(pixels: Tensor, device: str = "cpu") -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1], channels-last, on a device."""
    return to_pm1(pixels.to(device)).permute(0, 3, 1, 2)
