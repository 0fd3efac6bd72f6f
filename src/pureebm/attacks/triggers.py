"""Triggers: what a backdoor adds to a test image, as plain data that can be stored and applied again.

Each maps (N, H, W, 3) uint8 to the same shape, rounding once. Knows nothing of attacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True)
class AddTrigger:
    """clip(x + multiplier * pattern), pattern (3, H, W) in [-1, 1] units: 2/255 is one step of a uint8 pixel."""

    pattern: Tensor
    multiplier: float = 1.0

    def apply(self, images: Tensor, *, seed: int = 0) -> Tensor:
        return to_uint8(to_pm1(_checked(images)) + self.multiplier * self.pattern.permute(1, 2, 0))


@dataclass(frozen=True, slots=True)
class PatchTrigger:
    """A (h, w, 3) uint8 patch pasted with its upper left corner at (top, left), or anywhere where that is None.

    mask: (h, w) bool, where the patch covers the image; None: everywhere. A random place is a function of the seed and
    of the image's position in the batch given.
    """

    patch: Tensor
    corner: tuple[int, int] | None
    mask: Tensor | None = None

    def apply(self, images: Tensor, *, seed: int = 0) -> Tensor:
        images = _checked(images).clone()
        h, w = self.patch.shape[:2]
        mask = torch.ones(h, w, dtype=torch.bool) if self.mask is None else self.mask
        for image, (top, left) in zip(images, self._corners(images, seed), strict=True):
            window = image[top : top + h, left : left + w]
            window[mask] = self.patch[mask]
        return images

    def _corners(self, images: Tensor, seed: int) -> list[tuple[int, int]]:
        n, height, width, _ = images.shape
        h, w = self.patch.shape[:2]
        if h > height or w > width:
            raise InputError(f"the trigger's patch is {h} x {w}, larger than the images, {height} x {width}")
        if self.corner is not None:
            return [self.corner] * n
        generator = torch.Generator().manual_seed(seed)
        tops = torch.randint(height - h + 1, (n,), generator=generator)
        lefts = torch.randint(width - w + 1, (n,), generator=generator)
        return list(zip(tops.tolist(), lefts.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class BlendTrigger:
    """(1 - alpha) x + alpha key, key (H, W, 3) uint8."""

    key: Tensor
    alpha: float

    def apply(self, images: Tensor, *, seed: int = 0) -> Tensor:
        mixed = (1 - self.alpha) * _checked(images).float() + self.alpha * self.key.float()
        return mixed.round().to(torch.uint8)


@dataclass(frozen=True, slots=True)
class WarpTrigger:
    """Bilinear sampling at grid (H, W, 2), coordinates (x, y) in [-1, 1] with corners aligned."""

    grid: Tensor

    def apply(self, images: Tensor, *, seed: int = 0) -> Tensor:
        x = to_pm1(_checked(images)).permute(0, 3, 1, 2)
        warped = F.grid_sample(x, self.grid.expand(len(x), *self.grid.shape), align_corners=True)
        return to_uint8(warped).permute(0, 2, 3, 1).contiguous()


Trigger = AddTrigger | PatchTrigger | BlendTrigger | WarpTrigger


def _checked(images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        raise InputError(f"images must be uint8, got {images.dtype}")
    return images
