"""The victim and surrogate of CPU experiments: a small residual network for 32x32 images.

It reads pixels unshuffled 2x2, so that most of its work is done at 8x8 and 4x4, where a CPU is
fast. Knows nothing of training, attacks or data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.errors import InputError

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2471, 0.2435, 0.2616)
"""Of CIFAR-10 in [0, 1], as PureGen's classifiers use them for every data set."""


class SmallResNet(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes); H and W multiples of 8.

    It normalizes its input itself, so attacks, training and tests all speak [-1, 1].

    Args:
        n_classes: number of logits.
        widths: channels at 1/2, 1/4 and 1/8 of the resolution.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_classes: int = 10, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers, got {list(widths)}")
        self.widths = tuple(widths)
        w0, w1, w2 = widths
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 2, persistent=False)
        self.stem = _ConvNorm(12, w0)
        self.stages = nn.Sequential(
            _ConvNorm(w0, w1, stride=2), _Residual(w1), _ConvNorm(w1, w2, stride=2), _Residual(w2)
        )
        self.head = nn.Linear(w2, n_classes)

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, widths[2]), what the linear head reads."""
        x = F.pixel_unshuffle((images - self.mean) / self.std, 2)
        h: Tensor = self.stages(self.stem(x.contiguous(memory_format=torch.channels_last)))
        return h.mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class _ConvNorm(nn.Module):
    def __init__(self, n_in: int, n_out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(h)), inplace=True)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _ConvNorm(width, width)
        self.second = _ConvNorm(width, width)

    def forward(self, h: Tensor) -> Tensor:
        main: Tensor = self.second(self.first(h))
        return h + main
