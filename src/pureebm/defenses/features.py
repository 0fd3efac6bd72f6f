"""What a network makes of a training set, as defenses look at it: un-augmented, in order, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pureebm.classifiers.base import Classifier
from pureebm.data.ranges import to_pm1
from pureebm.errors import InputError

_BATCH = 500


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8, on the network's device -> what its linear head reads: (N, D) float32 on the CPU.

    Raises:
        InputError: the network has no features and head.
    """
    read = as_classifier(network).features
    starts = range(0, len(images), _BATCH)
    return torch.cat([read(to_pm1(images[at : at + _BATCH]).permute(0, 3, 1, 2)).float().cpu() for at in starts])


def as_classifier(network: nn.Module) -> Classifier:
    """The network, if it has features and a linear head. Raises `InputError`."""
    if not isinstance(network, Classifier):
        raise InputError(
            f"this defense needs a network with features and a head (`Classifier`), got a {type(network).__name__}"
        )
    return network
