"""Files of Bullseye Polytope: poisons in normalized units, and the split of CIFAR-10 that they count in.

`poison_00799.pth` is a dict: `poison`, a list of (tensor (3, 32, 32), label), and `idx`, their indices in the 2,000
`others` of `CIFAR10_TRAIN_Split.pth`, which is a dict of two lists of (Pillow image, label). Target i is the
(50 + i)th image (from 0) of class 6 in `others`; it is the name of the folder around the poisons.

Source: ucsb-seclab/BullseyePoison. Normalized means (x - mean) / std, with the constants below and no others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pureebm.attacks.base import LabeledSet
from pureebm.attacks.importers.benchmark import target_goal
from pureebm.attacks.importers.imported import (
    OTHERS,
    ImportedPoisons,
    Pixels,
    assemble,
    from_pixel01,
    image_list,
    integers,
    load_object,
    stacked,
)
from pureebm.errors import InputError

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
FIRST_TARGET = 50


def read_poisons(
    path: Path,
    *,
    base: LabeledSet | None = None,
    split_file: Path | None = None,
    target: int | None = None,
    target_class: int = 6,
    eps: float | None = None,
) -> ImportedPoisons:
    """The poisons of one target.

    Args:
        path: A `poison_xxxxx.pth`.
        base: The `others` as a set. These, or the split that holds them, are needed for the goal.
        split_file: `CIFAR10_TRAIN_Split.pth`, which holds the `others`; needed for the goal without a base set.
        target: Which target; None: the number that the folder is named after.
        target_class: Class of the targets.
        eps: Budget in steps of 1/255 (25.5 in the paper), checked where the `others` are given.

    Raises:
        InputError: Not such a file, no such target, or the poisons exceed the budget.
    """
    value = load_object(path)
    if not isinstance(value, dict) or not {"poison", "idx"} <= value.keys() or not isinstance(value["poison"], list):
        raise InputError(f"{path}: not a file of Bullseye Polytope: a dict with 'poison' and 'idx'")
    pairs = value["poison"]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise InputError(f"{path}: 'poison' must be a list of (tensor, label)")
    images = stacked([_pixels(pair[0], str(path)) for pair in pairs], str(path))
    labels = integers([pair[1] for pair in pairs], f"{path}: labels")
    if len(set(labels)) != 1:
        raise InputError(f"{path}: all poisons must have one label, found {sorted(set(labels))[:10]}")
    others = base if base is not None or split_file is None else read_sets(split_file)["others"]
    number = target if target is not None or not path.parent.name.isdigit() else int(path.parent.name)
    goal, no_goal = None, {"no_goal": "give the `others` (split_file or base) and the number of the target (target)"}
    if others is not None and number is not None:
        candidates = others.rows_of(target_class)[FIRST_TARGET:]
        if not 0 <= number < len(candidates):
            raise InputError(f"target must be 0 .. {len(candidates) - 1} in the set that was given, got {number}")
        goal, no_goal = target_goal(others.images[candidates[number]], target_class, labels[0]), {}
    return assemble(
        format="bullseye-polytope",
        files=[path] if split_file is None else [path, split_file],
        rows=value["idx"],
        images=images,
        labels=labels,
        goal=goal,
        split=OTHERS,
        base=others,
        eps=eps,
        facts={"target": number, **no_goal},
    )


def read_sets(path: Path) -> dict[str, LabeledSet]:
    """`CIFAR10_TRAIN_Split.pth` -> "clean_train" and "others"."""
    value = load_object(path)
    if not isinstance(value, dict) or value.keys() != {"clean_train", "others"}:
        raise InputError(f"{path}: not a split of Bullseye Polytope: a dict of 'clean_train' and 'others'")
    sets = {name: image_list(part, f"{path}: {name}") for name, part in value.items()}
    n_classes = 1 + max(max(labels) for _, labels in sets.values())
    return {name: LabeledSet(images, torch.tensor(labels), n_classes) for name, (images, labels) in sets.items()}


def _pixels(tensor: object, name: str) -> Pixels:
    """(3, H, W) normalized floats -> (H, W, 3) uint8."""
    array = np.asarray(tensor)
    if array.ndim != 3 or array.shape[0] != 3 or array.dtype.kind != "f":
        raise InputError(f"{name}: poisons must be (3, H, W) floats, found {array.shape} {array.dtype}")
    return from_pixel01(array.transpose(1, 2, 0).astype(np.float64) * STD + MEAN, name)
