"""MobileNetV2 for small images: inverted residuals with depthwise convolutions, three halvings instead of five.

Modules are named as in the published CIFAR checkpoints, with `head` for their `linear`. Knows nothing of training,
attacks or data sets.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks, stride of the first block."""


class MobileNetV2(Classifier):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes); the head reads 1280 features."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks: list[nn.Module] = []
        n_in = 32
        for expansion, n_out, depth, stride in STAGES:
            for index in range(depth):
                blocks.append(_Block(n_in, n_out, expansion * n_in, stride if index == 0 else 1))
                n_in = n_out
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(n_in, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.head = nn.Linear(1280, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last resolution's blocks (160 channels three times, 320) and the map of 1280 channels that is pooled."""
        h = F.relu(self.bn1(self.conv1(self.normalize(images))))
        found = []
        for block in self.layers:
            h = block(h)
            found.append(h)
        return [*found[-4:], F.relu(self.bn2(self.conv2(h)))]


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to its input where the resolution stays."""

    def __init__(self, n_in: int, n_out: int, n_mid: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(n_in, n_mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_mid)
        self.conv2 = nn.Conv2d(n_mid, n_mid, 3, stride=stride, padding=1, groups=n_mid, bias=False)
        self.bn2 = nn.BatchNorm2d(n_mid)
        self.conv3 = nn.Conv2d(n_mid, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride == 1 and n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, h: Tensor) -> Tensor:
        wide = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(h))))))
        main: Tensor = self.bn3(self.conv3(wide))
        return main + self.shortcut(h) if self.stride == 1 else main
