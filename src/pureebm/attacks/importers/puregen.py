"""What PureGen stores: its poison folders are those of other programs, its purified outputs are its own.

Poisons/<mode>/<kind>/<data key>/<target>.pth is a tuple: a list of (Pillow image, label), the indices of the poisons,
and the target: the intended class, or for a trigger the noise itself, (1, 3, H, W) in [-1, 1] units. <data key>.pt is a
whole purified set, a list of (Pillow image, label). Indices count in CIFAR-10's training set, and for
BullseyePolytope in the `others` of its split. NTG/x_train_<data set>_ntga_<network>.npy holds a whole set in [0, 1],
y_train_<data set>.npy its labels, one-hot.

Source: SunayBhat1/PureGen_PoisonDefense.
Differs: floats are rounded to 8 bits, not truncated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pureebm.attacks.base import AvailabilityGoal, Goal, LabeledSet, TriggerGoal
from pureebm.attacks.importers.benchmark import read_folder
from pureebm.attacks.importers.bullseye import read_poisons
from pureebm.attacks.importers.imported import (
    OTHERS,
    TRAIN,
    ImportedPoisons,
    assemble,
    from_pixel01,
    image_list,
    integer,
    integers,
    load_array,
    load_object,
)
from pureebm.attacks.importers.narcissus import pattern_of, read_trigger
from pureebm.attacks.triggers import AddTrigger
from pureebm.errors import InputError
from pureebm.types import JSON


def read_any(
    path: Path,
    *,
    base: LabeledSet | None = None,
    eps: float | None = None,
    index: int | None = None,
    split: str | None = None,
) -> ImportedPoisons | list[ImportedPoisons]:
    """Anything below PureGen_Poisons, or a file below PureGen_PurifiedData/../Poisons.

    Args:
        path: A poison folder or a folder of them, a trigger, a Bullseye Polytope file, an NTGA array or an output.
        base: The set that the poisons count in.
        eps: Budget in steps of 1/255.
        index: Only this numbered folder.
        split: What an output's indices count in; None: what its path says.

    Raises:
        InputError: It is none of these, or the poisons exceed the budget.
    """
    if path.is_dir():
        return read_folder(path, base=base, eps=eps, index=index)
    if path.suffix == ".npy":
        if path.name.startswith("x_train_"):
            return read_ntga(path, base=base, eps=eps)
        return read_trigger(path, base=base, eps=eps)
    if isinstance(load_object(path), dict):
        return read_poisons(path, base=base, eps=eps)
    return read_output(path, base=base, eps=eps, split=split)


def read_output(
    path: Path, *, base: LabeledSet | None = None, eps: float | None = None, split: str | None = None
) -> ImportedPoisons:
    """Poisons after PureGen (or before, under the data key Baseline). Arguments as of `read_any`."""
    value = load_object(path)
    if not isinstance(value, tuple) or len(value) != 3:
        raise InputError(f"{path}: not poisons of PureGen: (list of (image, label), indices, target)")
    images, labels = image_list(value[0], str(path))
    goal: Goal | None = None
    facts: JSON = {"data_key": path.parent.name}
    if np.ndim(value[2]) >= 3:
        if len(set(labels)) != 1:
            raise InputError(f"{path}: poisons of a trigger must have one label, found {sorted(set(labels))[:10]}")
        goal = TriggerGoal(labels[0], AddTrigger(pattern_of(value[2], str(path), eps=None, space="pm1")))
    else:
        facts |= {"intended_class": integer(value[2], f"{path}: target")}
        facts |= {"no_goal": "the target's image stands in target.pickle of the poison folder"}
    return assemble(
        format="puregen",
        files=[path],
        rows=value[1],
        images=images,
        labels=labels,
        goal=goal,
        split=split or (OTHERS if "BullseyePolytope" in path.parts else TRAIN),
        base=base,
        eps=eps,
        facts=facts,
    )


def read_set(path: Path) -> LabeledSet:
    """A whole (purified) set, `<data key>.pt`."""
    images, labels = image_list(load_object(path), str(path))
    return LabeledSet(images, torch.tensor(labels), 1 + max(labels))


def read_ntga(
    path: Path, *, base: LabeledSet | None = None, labels: Path | None = None, eps: float | None = None
) -> ImportedPoisons:
    """An availability-poisoned training set; every image counts as a poison.

    Args:
        path: x_train_<data set>_ntga_<network>.npy.
        base: The clean images in the same order.
        labels: One-hot (N, C) or (N,); None: y_train_<data set>.npy beside it.
        eps: Budget in steps of 1/255.
    """
    data = load_array(path)
    target = labels or path.with_name(f"y_train_{path.stem.removeprefix('x_train_').partition('_')[0]}.npy")
    classes = load_array(target)
    if data.ndim != 4 or data.shape[3] != 3 or len(data) != len(classes):
        raise InputError(f"{path}: must be (N, H, W, 3) with N = {len(classes)} labels, found {data.shape}")
    if len(data) and not 0 <= float(data.min()) <= float(data.max()) <= 1.001:
        raise InputError(f"{path}: pixels must be 0 .. 1, found {float(data.min()):.3f} .. {float(data.max()):.3f}")
    parts = [from_pixel01(data[start : start + 1000], str(path)) for start in range(0, len(data), 1000)]
    one_hot = classes.ndim == 2 and classes.shape[1] > 1
    return assemble(
        format="ntga",
        files=[path, target],
        rows=range(len(data)),
        images=torch.from_numpy(np.concatenate(parts)),
        labels=classes.argmax(1) if one_hot else integers(classes.reshape(-1), str(target)),
        goal=AvailabilityGoal(),
        split="train of NTGA (its own shuffle)",
        base=base,
        eps=eps,
    )
