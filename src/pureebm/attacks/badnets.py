"""BadNets: a small white square in a corner, and the label of the attacker's choice. Dirty-label, visible.

    x' = x with the square pasted;  y' = target class (all-to-one)  or  (y + 1) mod C (all-to-all)

Source: Gu et al., arXiv 1708.06733; sizes and shares as in BackdoorBench (a 3 x 3 white square at the lower right of
32 x 32 px, a tenth of the whole training set, drawn from all classes).
Differs: all-to-all is an option of the attack rather than of the label transform; nothing else.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows
from pureebm.attacks.triggers import PatchTrigger
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The square and the labels."""

    budget: Annotated[float, "share of the training set that is poisoned"] = 0.1
    target_class: Annotated[int, "what triggered images are to be read as"] = 0
    all_to_all: Annotated[bool, "every class is to be read as the next one instead"] = False
    patch_size: Annotated[int, "side of the white square in pixels"] = 3
    margin: Annotated[int, "its distance to the right and lower border"] = 0

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.margin < 0:
            raise InputError(f"patch_size must be >= 1 and margin >= 0, got {self.patch_size} and {self.margin}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison random images of all classes. Raises `InputError` for a class or square that does not fit the set."""
    began = time.perf_counter()
    goal = TriggerGoal(None if config.all_to_all else data.check_class(config.target_class), square(data, config))
    rows = choose_rows(data, None, config.budget, seed=seed)
    images = goal.trigger.apply(data.images[rows], seed=seed)
    labels = goal.wanted(data.labels[rows], data.n_classes)
    record = {"attack": "badnets", "config": asdict(config), "seed": seed, "seconds": time.perf_counter() - began}
    return Poisoned(rows, images, labels, goal, record)


def square(data: LabeledSet, config: Config) -> PatchTrigger:
    """The white square at its place in images of this set's size."""
    height, width = data.images.shape[1:3]
    top, left = height - config.patch_size - config.margin, width - config.patch_size - config.margin
    if min(top, left) < 0:
        raise InputError(f"a square of {config.patch_size} px does not fit into images of {width} x {height}")
    white = torch.full((config.patch_size, config.patch_size, 3), 255, dtype=torch.uint8)
    return PatchTrigger(white, (top, left))
