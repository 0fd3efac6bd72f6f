"""The victim and surrogate of CPU experiments: a small residual network for 32x32 images.

A 4x4 convolution of stride 2 reads every pixel and halves the image at once, so that all further work is done at
16x16, 8x8 and 4x4, where a CPU is fast. Knows nothing of training, attacks or data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


class SmallResNet(Classifier):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes); H and W multiples of 8.

    Args:
        n_classes: number of logits.
        widths: channels at 1/2, 1/4 and 1/8 of the resolution.
    """

    def __init__(self, n_classes: int = 10, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers, got {list(widths)}")
        self.widths = tuple(widths)
        w0, w1, w2 = widths
        self.stem = nn.Sequential(_ConvNorm(3, w0, kernel=4, stride=2), _Residual(w0))
        self.stages = nn.Sequential(_ConvNorm(w0, w1, stride=2), _Residual(w1), _ConvNorm(w1, w2, stride=2))
        self.last = _Residual(w2)
        self.head = nn.Linear(w2, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [-1, 1] -> the 1/8 maps (N, widths[2], H/8, W/8) before and after the last block."""
        before = self.stages(self.stem(self.normalize(images)))
        return [before, self.last(before)]


class _ConvNorm(nn.Module):
    def __init__(self, n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=1, bias=False)
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
