"""What the tests of the importers write with: Pillow images, and poisons at a given distance from their bases."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pureebm.attacks.base import LabeledSet


def picture(pixels: Tensor) -> Image.Image:
    """(H, W, 3) uint8 -> a Pillow image."""
    return Image.fromarray(pixels.numpy())


def moved(base: LabeledSet, rows: list[int], eps: int, seed: int = 0) -> Tensor:
    """The images of these rows, changed by -eps .. eps, the largest change being eps."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randint(-eps, eps + 1, (len(rows), *base.images.shape[1:]), generator=generator)
    images = (base.images[rows].int() + delta).clamp(0, 255)
    pixel = int(base.images[rows[0], 0, 0, 0])
    images[0, 0, 0, 0] = pixel + eps if pixel + eps <= 255 else pixel - eps
    return images.to(torch.uint8)


def dump(path: Path, value: object, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path
