"""ResNet-18 and -34 for small images: a 3x3 stem without pooling, then four stages of basic blocks.

Modules are named as in the published checkpoints (conv1, bn1, layer1..4, shortcut.0/.1); their `linear` is `head` here
(see `weights.load_published`). Knows nothing of training, attacks or data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


class ResNet(Classifier):
    """Images (N, 3, size, size) in [-1, 1] -> logits (N, n_classes).

    Args:
        n_classes: number of logits.
        depths: basic blocks in each of the four stages: (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
        width: channels of the first stage; they double from stage to stage.
        size: side of the images. The head reads the last map averaged over windows of 4 x 4 pixels: 512 features at
            32 px (and below), 2048 at 64 px.
    """

    def __init__(
        self, n_classes: int = 10, *, depths: Sequence[int] = (2, 2, 2, 2), width: int = 64, size: int = 32
    ) -> None:
        super().__init__()
        if len(depths) != 4 or min(depths) < 1:
            raise InputError(f"depths must be four numbers above 0, got {list(depths)}")
        self.grid = max(size // 32, 1)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, depths[0], stride=1)
        self.layer2 = _stage(width, 2 * width, depths[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, depths[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, depths[3], stride=2)
        self.head = nn.Linear(8 * width * self.grid**2, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        h = F.relu(self.bn1(self.conv1(self.normalize(images))))
        h = self.layer3(self.layer2(self.layer1(h)))
        found = []
        for block in self.layer4:
            h = block(h)
            found.append(h)
        return found

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.maps(images)[-1], self.grid).flatten(1)


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, h: Tensor) -> Tensor:
        main = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(h)))))
        return F.relu(main + self.shortcut(h))


def _stage(n_in: int, n_out: int, depth: int, *, stride: int) -> nn.Sequential:
    later = [_Block(n_out, n_out, 1) for _ in range(depth - 1)]
    return nn.Sequential(_Block(n_in, n_out, stride), *later)
