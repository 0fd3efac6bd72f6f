"""The one place where images change their number range.

At rest images are integers (uint8 0..255, uint16 0..65535); in motion float32 in [-1, 1] ("pm1").
[0, 1] ("pixel01") is the range in which budgets are quoted: eps = 8 means 8/255 there, 16/255 in pm1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pureebm.data.base import Pixels
from pureebm.errors import InputError


def to_pm1(pixels: Tensor) -> Tensor:
    """Integer pixels (uint8 or uint16, any shape) -> float32 in [-1, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels.float() / 127.5 - 1
    if pixels.dtype == torch.uint16:
        return pixels.to(torch.int32).float() / 32767.5 - 1
    raise InputError(f"pixels must be uint8 or uint16, got {pixels.dtype}")


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8, clamped and rounded to nearest (never truncated, never wrapped)."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_uint16(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint16, clamped and rounded to nearest."""
    scaled = ((images.double().clamp(-1, 1) + 1) * 32767.5).round()
    return scaled.to(torch.int32).to(torch.uint16)


def stack(pixels: list[Pixels]) -> Tensor:
    """Equal-sized (H, W, 3) arrays -> (N, 3, H, W) float32 in [-1, 1]."""
    batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return to_pm1(batch)


def unstack(images: Tensor, *, like: list[Pixels]) -> list[Pixels]:
    """(N, 3, H, W) in [-1, 1] -> N arrays (H, W, 3), each of the integer type of its entry in `like`."""
    images = images.detach().cpu().permute(0, 2, 3, 1)
    convert = {np.dtype(np.uint8): to_uint8, np.dtype(np.uint16): to_uint16}
    return [convert[old.dtype](new).numpy() for new, old in zip(images, like, strict=True)]
