"""Blended: a key image shines through every poisoned image, whose label is the target class. Dirty-label.

    x' = (1 - alpha) x + alpha key;  y' = target class

Source: Chen et al., arXiv 1712.05526; alpha = 0.2 in training and at test time and a tenth of the training set as in
BackdoorBench.
Differs: the key is drawn by a formula (colored ripples from three corners) instead of a picture of somebody's.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows
from pureebm.attacks.triggers import BlendTrigger
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How much of the key is seen, and how often."""

    budget: Annotated[float, "share of the training set that is poisoned"] = 0.1
    target_class: Annotated[int, "what triggered images are to be read as"] = 0
    alpha: Annotated[float, "weight of the key image, in training and at test time"] = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha must lie above 0 and be at most 1, got {self.alpha}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison random images of all classes. Raises `InputError` for a class that the set does not have."""
    began = time.perf_counter()
    trigger = BlendTrigger(key_image(*data.images.shape[1:3]), config.alpha)
    goal = TriggerGoal(data.check_class(config.target_class), trigger)
    rows = choose_rows(data, None, config.budget, seed=seed)
    images = trigger.apply(data.images[rows])
    labels = goal.wanted(data.labels[rows], data.n_classes)
    record = {"attack": "blended", "config": asdict(config), "seed": seed, "seconds": time.perf_counter() - began}
    return Poisoned(rows, images, labels, goal, record)


def key_image(height: int, width: int) -> Tensor:
    """(height, width, 3) uint8: in each color, ripples around another corner; the same for everybody."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    corners = ((0.0, 0.0, 3.0), (0.0, 1.0, 4.0), (1.0, 0.0, 5.0))  # top, left, ripples a side
    waves = [torch.cos(2 * torch.pi * n * torch.hypot(y - top, x - left)) for top, left, n in corners]
    return (127.5 + 127.5 * torch.stack(waves, dim=2)).round().to(torch.uint8)
