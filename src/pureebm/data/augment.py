"""The random changes of a training image: what victims, surrogates and triggers all go through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 2
"""Zero pixels around an image before its random crop. Short runs underfit: 2 trains better than the usual 4."""


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop of the zero-padded image and horizontal flip: uint8 (N, H, W, 3) -> the same.

    One offset and one coin for each image, drawn on the CPU from `generator`.
    """
    n, height, width, _ = pixels.shape
    device = pixels.device
    offsets = torch.randint(0, 2 * PAD + 1, (2, n, 1), generator=generator).to(device)
    flip = torch.rand((n, 1), generator=generator).to(device) < 0.5
    columns = torch.arange(width, device=device)
    rows = torch.arange(height, device=device) + offsets[0]  # (N, H)
    columns = torch.where(flip, columns.flip(0), columns) + offsets[1]  # (N, W)
    padded = F.pad(pixels, (0, 0, PAD, PAD, PAD, PAD))
    every = torch.arange(n, device=device)[:, None, None]
    return padded[every, rows[:, :, None], columns[:, None, :]]
