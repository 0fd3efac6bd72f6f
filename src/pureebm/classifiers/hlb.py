"""The networks of the HyperLight benchmark: shallow and wide, for training in minutes.

A 2x2 convolution to 24 channels, three groups of two 3x3 convolutions (three and a residual in the heavy one), the
largest value of each channel, a linear head without bias. The first filters of each 3x3 convolution start as the
identity. Knows nothing of training, attacks or data sets.

Source: the HyperLight rows of PureGen (arXiv 2405.18627).
Differs: the factor 1/9 of the logits is applied to the features, which is the same function; the pooling window is the
whole last map (3 x 3 at 32 px), so that other sizes work; `hlb-large` has its own widths, which a slip of the original
code replaced by the small ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier

N_STEM = 24
FEATURE_SCALE = 1 / 9
DEFAULT_MOMENTUM = 0.6


class HLBNet(Classifier):
    """Images (N, 3, H, W) in [-1, 1] -> logits (N, n_classes); H and W at least 16.

    Args:
        n_classes: number of logits.
        widths: channels of the three groups.
        momentum: share of the old running statistics that stays at each update, in the stem's and each group's first
            normalization; the others keep 0.6. (torch counts the other share.)
        heavy: groups of three convolutions, the last two bridged by a residual.
    """

    def __init__(
        self,
        n_classes: int = 10,
        *,
        widths: Sequence[int] = (64, 256, 256),
        momentum: float = DEFAULT_MOMENTUM,
        heavy: bool = False,
    ) -> None:
        super().__init__()
        w1, w2, w3 = widths
        self.stem = nn.Conv2d(3, N_STEM, 2, bias=False)
        self.norm = BiasNorm(N_STEM, momentum)
        self.groups = nn.ModuleList(
            _Group(n_in, n_out, momentum, heavy) for n_in, n_out in ((N_STEM, w1), (w1, w2), (w2, w3))
        )
        self.head = nn.Linear(w3, n_classes, bias=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The outputs of the last group's convolutions."""
        h = F.gelu(self.norm(self.stem(self.normalize(images))))
        found = [h]
        for group in self.groups:
            found = group(found[-1])
        return found

    def features(self, images: Tensor) -> Tensor:
        return self.maps(images)[-1].amax(dim=(2, 3)) * FEATURE_SCALE


class BiasNorm(nn.BatchNorm2d):
    """Batch normalization whose scale is 1 for good; only its bias trains."""

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__(width, eps=1e-12, momentum=1 - momentum)
        del self.weight
        self.register_buffer("weight", torch.ones(width), persistent=False)


class _Group(nn.Module):
    def __init__(self, n_in: int, n_out: int, momentum: float, heavy: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(n_in, n_out), BiasNorm(n_out, momentum)
        self.conv2, self.norm2 = _conv(n_out, n_out), BiasNorm(n_out, DEFAULT_MOMENTUM)
        self.heavy = heavy
        if heavy:
            self.conv3, self.norm3 = _conv(n_out, n_out), BiasNorm(n_out, DEFAULT_MOMENTUM)

    def forward(self, h: Tensor) -> list[Tensor]:
        first = F.gelu(self.norm1(F.max_pool2d(self.conv1(h), 2)))
        second = F.gelu(self.norm2(self.conv2(first)))
        if not self.heavy:
            return [first, second]
        return [first, second, F.gelu(self.norm3(self.conv3(second))) + first]


def _conv(n_in: int, n_out: int) -> nn.Conv2d:
    conv = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:n_in])
    return conv
