"""SIG: a faint horizontal wave on images of the target class; labels stay true. Clean-label, no surrogate.

    x'[i, j] = clip(x[i, j] + delta * sin(2 pi j frequency / width))

A victim takes the wave for a feature of the class, and images of other classes carrying it for the class.

Source: Barni et al., arXiv 1902.11237; delta = 40 of 255, frequency 6, and a tenth of the whole training set as in
BackdoorBench, which means every image of the class on CIFAR-10. A budget above the class's size means all of it.
Differs: rounded to nearest where BackdoorBench truncates.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows
from pureebm.attacks.triggers import AddTrigger
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The wave and how many images carry it."""

    budget: Annotated[float, "share of the whole training set; at most all images of the target class"] = 0.1
    target_class: Annotated[int, "class whose images are poisoned, and what triggered images are to be read as"] = 0
    delta: Annotated[float, "amplitude of the wave in steps of 1/255"] = 40.0
    frequency: Annotated[float, "waves across the image"] = 6.0

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 255 or not self.frequency > 0:
            raise InputError(f"delta must be in (0, 255] and frequency above 0, got {self.delta} and {self.frequency}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison random images of the target class. Raises `InputError` for a class that the set does not have."""
    began = time.perf_counter()
    goal = TriggerGoal(data.check_class(config.target_class), wave(data.images.shape[1], data.images.shape[2], config))
    rows = choose_rows(data, config.target_class, config.budget, seed=seed, whole_class_at_most=True)
    images = goal.trigger.apply(data.images[rows])
    record = {"attack": "sig", "config": asdict(config), "seed": seed, "seconds": time.perf_counter() - began}
    return Poisoned(rows, images, data.labels[rows], goal, record)


def wave(height: int, width: int, config: Config) -> AddTrigger:
    """The same row of a sine everywhere, in all colors."""
    row = config.delta / 127.5 * torch.sin(2 * torch.pi * torch.arange(width) * config.frequency / width)
    return AddTrigger(row.expand(3, height, width).contiguous())
