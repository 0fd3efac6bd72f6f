from __future__ import annotations

import pytest
import torch

from pureebm.attacks.base import LabeledSet


def random_set(n: int, *, seed: int, n_classes: int = 10, size: int = 8) -> LabeledSet:
    images = torch.randint(0, 256, (n, size, size, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    return LabeledSet(images, torch.arange(n) % n_classes, n_classes)


@pytest.fixture
def base() -> LabeledSet:
    """100 random training images of 8 x 8 pixels, ten of each class: image i is of class i % 10."""
    return random_set(100, seed=0)


@pytest.fixture
def test_set() -> LabeledSet:
    """40 random test images."""
    return random_set(40, seed=1)
