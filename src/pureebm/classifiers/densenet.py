"""DenseNet for small images (121 layers by default): every layer reads the maps of all layers before it.

Modules are named as in the published CIFAR checkpoints, with `head` for their `linear`. Knows nothing of training,
attacks or data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier


class DenseNet(Classifier):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes).

    Args:
        n_classes: number of logits.
        depths: layers in each of the four dense blocks; the channels are halved between two blocks.
        growth: channels that each layer adds; 32 makes 1024 features.
    """

    def __init__(self, n_classes: int = 10, *, depths: Sequence[int] = (6, 12, 24, 16), growth: int = 32) -> None:
        super().__init__()
        n = 2 * growth
        self.conv1 = nn.Conv2d(3, n, 3, padding=1, bias=False)
        self.dense1, n = _dense(n, growth, depths[0])
        self.trans1, n = _Transition(n, n // 2), n // 2
        self.dense2, n = _dense(n, growth, depths[1])
        self.trans2, n = _Transition(n, n // 2), n // 2
        self.dense3, n = _dense(n, growth, depths[2])
        self.trans3, n = _Transition(n, n // 2), n // 2
        self.dense4, n = _dense(n, growth, depths[3])
        self.bn = nn.BatchNorm2d(n)
        self.head = nn.Linear(n, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Behind each layer of the last dense block; the last one normalized, as it is pooled."""
        h = self.trans1(self.dense1(self.conv1(self.normalize(images))))
        h = self.trans3(self.dense3(self.trans2(self.dense2(h))))
        found = []
        for layer in self.dense4:
            h = layer(h)
            found.append(h)
        return [*found[:-1], F.relu(self.bn(h))]


class _Layer(nn.Module):
    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(h))))))
        return torch.cat([new, h], dim=1)


class _Transition(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(n_in)
        self.conv = nn.Conv2d(n_in, n_out, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(h))), 2)


def _dense(n_in: int, growth: int, depth: int) -> tuple[nn.Sequential, int]:
    """A dense block, and its number of output channels."""
    return nn.Sequential(*(_Layer(n_in + i * growth, growth) for i in range(depth))), n_in + depth * growth
