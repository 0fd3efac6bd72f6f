"""Any network of the timm library as a classifier (`timm:NAME`; an extra). Imported when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


class TimmClassifier(Classifier):
    """Images (N, 3, H, W) in [-1, 1] -> logits; the network's own head gives way to a linear one.

    Args:
        name: as timm lists it, say "resnet18" or "vit_tiny_patch16_224". Weights are fresh.
        n_classes: number of logits.
        size: side of the images, for networks that must know it.

    Raises:
        InputError: timm is not installed, or has no network of that name.
    """

    def __init__(self, name: str, n_classes: int = 10, *, size: int = 32) -> None:
        super().__init__()
        try:
            timm: Any = importlib.import_module("timm")
        except ImportError as error:
            raise InputError(f"timm:{name} needs the extra: pip install pureebm[timm]") from error
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name}*")[:5]) or "see timm.list_models()"
            raise InputError(f"timm has no network {name!r}; similar: {close}")
        self.network: Any = _create(timm, name, size)
        self.head = nn.Linear(int(self.network.num_features), n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The network's last map; tokens (N, T, C) as (N, C, T, 1)."""
        found: Tensor = self.network.forward_features(self.normalize(images))
        return [found.transpose(1, 2).unsqueeze(3) if found.ndim == 3 else found]

    def features(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.network(self.normalize(images))
        return pooled


def _create(timm: Any, name: str, size: int) -> Any:
    """With the image's size where the network takes one."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=0)
