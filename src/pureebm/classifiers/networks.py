"""The networks that victims and surrogates can be, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import nn

from pureebm.classifiers.base import Classifier
from pureebm.classifiers.densenet import DenseNet
from pureebm.classifiers.hlb import HLBNet
from pureebm.classifiers.mobilenet import MobileNetV2
from pureebm.classifiers.resnet import ResNet
from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.classifiers.timm_network import TimmClassifier
from pureebm.errors import InputError

NETWORKS: Mapping[str, Callable[..., Classifier]] = MappingProxyType(
    {
        "small-resnet": lambda n_classes, size: SmallResNet(n_classes),
        "resnet18": lambda n_classes, size: ResNet(n_classes, size=size),
        "resnet34": lambda n_classes, size: ResNet(n_classes, depths=(3, 4, 6, 3), size=size),
        "mobilenet-v2": lambda n_classes, size: MobileNetV2(n_classes),
        "densenet121": lambda n_classes, size: DenseNet(n_classes),
        "hlb-tiny": lambda n_classes, size: HLBNet(n_classes, widths=(32, 128, 128), momentum=0.7),
        "hlb-small": lambda n_classes, size: HLBNet(n_classes, widths=(64, 256, 256), momentum=0.7),
        "hlb-medium": lambda n_classes, size: HLBNet(n_classes, widths=(128, 384, 384), momentum=0.6),
        "hlb-large": lambda n_classes, size: HLBNet(n_classes, widths=(128, 512, 512), momentum=0.6, heavy=True),
    }
)
"""Name -> (n_classes, size of the images) -> network. Beside these, `timm:NAME` makes any network of timm."""

_TIMM = "timm:"


def build_network(name: str, n_classes: int, *, size: int = 32, seed: int) -> Classifier:
    """A fresh network, its weights a function of `seed` alone; the global random state stays as it is.

    Args:
        name: one of `NETWORKS`, or `timm:NAME`.
        n_classes: number of logits.
        size: side of the images.

    Raises:
        InputError: the name is not known, or timm is not installed.
    """
    check_network_name(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(_TIMM):
            return TimmClassifier(name.removeprefix(_TIMM), n_classes, size=size)
        return NETWORKS[name](n_classes, size)


def check_network_name(name: str) -> None:
    """Raises `InputError`, with the known names, for one that is not known; timm is not asked."""
    if name not in NETWORKS and not name.startswith(_TIMM):
        close = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"unknown network {name!r}; {hint}Known: {', '.join(NETWORKS)}, and {_TIMM}NAME")


def replace_head(network: Classifier, n_classes: int, *, seed: int) -> None:
    """Give `network` a fresh linear head, a function of `seed` alone: what transfer learning begins with."""
    old = network.head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, n_classes, bias=old.bias is not None)
    network.head = new.to(old.weight.device)
