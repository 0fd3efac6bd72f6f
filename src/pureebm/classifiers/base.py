"""What a victim and a surrogate are to everybody else: images to logits, with the features in between.

Knows nothing of training, attacks or data sets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2471, 0.2435, 0.2616)
"""Of CIFAR-10 in [0, 1], as PureGen's classifiers use them for every data set."""


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes).

    It normalizes its input itself, so that attacks, training and tests all speak [-1, 1]. A subclass sets
    `head`, an `nn.Linear` that reads what `features` returns, and implements `maps`.
    """

    mean: Tensor
    std: Tensor
    head: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1) * 2, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(x - mean) / std, channels-last: what the first convolution reads."""
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The outputs (N, C, h, w) of the last stage's residual blocks, in order; at least one, the last is pooled."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, head.in_features), what the linear head reads."""
        return self.maps(images)[-1].mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits
