"""The Poisoning Benchmark's setups and poison folders; Gradient Matching and PureGen store theirs likewise.

A setups file is a pickled list of dicts: which training images to poison (`base indices`, of `base class`) so that
which test image (`target index`, of `target class`) is read as the base class. "Target class" is the true class here.

A poison folder holds poisons.pickle, a list of (Pillow image, label); base_indices.pickle, parallel to it; and
target.pickle, (image, true class), for a triggered attack with a patch (3, h, w) in [0, 1] and its [left, top]. A
folder of such folders, 0 .. 99, is read as all of them. perturbation_norms.pickle, in [0, 1] units, may stand there.

Source: aks2203/poisoning-benchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pureebm.attacks.base import Goal, LabeledSet, TargetGoal, TriggerGoal
from pureebm.attacks.importers.imported import (
    TRAIN,
    ImportedPoisons,
    assemble,
    from_pixel01,
    image_list,
    integer,
    integers,
    load_object,
)
from pureebm.attacks.triggers import PatchTrigger
from pureebm.errors import InputError
from pureebm.types import JSON


def read_setups(
    path: Path, *, base: LabeledSet | None = None, test: LabeledSet | None = None, index: int | None = None
) -> list[ImportedPoisons]:
    """The setups as poisonings that are yet to be made: `images` are the untouched bases.

    Args:
        path: A file of `poison_setups/`.
        base: The training set that the setups count in.
        test: The test set, likewise.
        index: Only this setup.

    Raises:
        InputError: A set is missing, or an image is not of the class that the setup says: another data set or order.
    """
    if base is None or test is None:
        raise InputError(
            f"{path}: setups hold indices only; give the training set (SOURCE, base) and the test set (test)"
        )
    setups = load_object(path)
    keys = {"target class", "target index", "base class", "base indices"}
    if not isinstance(setups, list) or not all(isinstance(setup, dict) and keys <= setup.keys() for setup in setups):
        raise InputError(f"{path}: not a setups file: a list of dicts with the keys {', '.join(sorted(keys))}")
    if index is not None and not 0 <= index < len(setups):
        raise InputError(f"{path}: has setups 0 .. {len(setups) - 1}, not {index}")
    chosen = range(len(setups)) if index is None else [index]
    return [_setup(path, number, setups[number], base, test) for number in chosen]


def _setup(path: Path, number: int, setup: dict[str, Any], base: LabeledSet, test: LabeledSet) -> ImportedPoisons:
    name = f"{path}: setup {number}"
    rows = torch.tensor(integers(setup["base indices"], f"{name}: base indices")).long()
    poison_class, target = integer(setup["base class"], name), integer(setup["target index"], name)
    true_class = integer(setup["target class"], name)
    if not 0 <= target < len(test) or len(rows) == 0 or not 0 <= int(rows.min()) <= int(rows.max()) < len(base):
        raise InputError(f"{name}: its indices do not fit {len(base)} training and {len(test)} test images")
    if (base.labels[rows] != poison_class).any() or int(test.labels[target]) != true_class:
        raise InputError(f"{name}: the images at its indices have other classes; these sets are not what it counts in")
    return assemble(
        format="benchmark-setups",
        files=[path],
        rows=rows,
        images=base.images[rows],
        labels=[poison_class] * len(rows),
        goal=target_goal(test.images[target], true_class, poison_class),
        base=base,
        facts={"setup": number, "target_index": target},
    )


def read_folder(
    path: Path,
    *,
    base: LabeledSet | None = None,
    eps: float | None = None,
    index: int | None = None,
    split: str = TRAIN,
) -> ImportedPoisons | list[ImportedPoisons]:
    """A poison folder, or every numbered one in a folder.

    Args:
        path: The folder that holds poisons.pickle, or one that holds folders 0, 1, ..
        base: The clean set that base_indices.pickle counts in, to measure the change.
        eps: Budget in steps of 1/255, checked with one step of slack, as the benchmark does: some of its images were
            truncated to 8 bits.
        index: Only this numbered folder.
        split: What the indices count in.

    Raises:
        InputError: A file is missing or is not what the format says, or the poisons exceed the budget.
    """
    if (path / "poisons.pickle").is_file() and index is None:
        return _folder(path, base=base, eps=eps, split=split)
    names = [entry.name for entry in path.iterdir() if entry.name.isdigit()] if path.is_dir() else []
    if index is not None:
        names = [name for name in names if int(name) == index]
    if not names:
        what = "neither poisons.pickle nor numbered folders" if index is None else f"no folder {index}"
        raise InputError(f"{path}: holds {what}")
    return [_folder(path / name, base=base, eps=eps, split=split) for name in sorted(names, key=int)]


def _folder(path: Path, *, base: LabeledSet | None, eps: float | None, split: str) -> ImportedPoisons:
    files = [path / name for name in ("poisons.pickle", "base_indices.pickle", "target.pickle")]
    images, labels = image_list(load_object(files[0]), str(files[0]))
    if len(set(labels)) != 1:
        raise InputError(f"{files[0]}: all poisons must have one label, found {sorted(set(labels))[:10]}")
    goal, judged = _goal(load_object(files[2]), labels[0], str(files[2]))
    norms = path / "perturbation_norms.pickle"
    stated: JSON = {}
    if norms.is_file():
        stated = {"stated_max_change": round(255 * float(np.max(np.asarray(load_object(norms), np.float64))), 3)}
        files.append(norms)
    return assemble(
        format="benchmark",
        files=files,
        rows=load_object(files[1]),
        images=images,
        labels=labels,
        goal=goal,
        judged=judged,
        split=split,
        base=base,
        eps=eps,
        slack=1,
        facts=stated,
    )


def _goal(target: Any, poison_class: int, name: str) -> tuple[Goal, TargetGoal | None]:
    """The goal, and for a patch the one image that carries it in the benchmark."""
    if not isinstance(target, list | tuple) or len(target) not in (2, 4):
        raise InputError(f"{name}: must be (image, class), or (image, class, patch, [left, top])")
    (image, *_), (true_class, *_) = image_list([target[:2]], name)
    if len(target) == 2:
        return target_goal(image, true_class, poison_class), None
    patch = np.asarray(target[2])
    left, top = integers(target[3], f"{name}: place of the patch")
    if patch.ndim != 3 or patch.shape[0] != 3:
        raise InputError(f"{name}: the patch must have the shape (3, h, w), not {patch.shape}")
    h, w = patch.shape[1:]
    if not (0 <= top <= image.shape[0] - h and 0 <= left <= image.shape[1] - w):
        raise InputError(f"{name}: a patch of {h} x {w} at row {top}, column {left} leaves the image")
    pixels = torch.from_numpy(from_pixel01(patch, f"{name}: the patch")).permute(1, 2, 0).contiguous()
    trigger = PatchTrigger(pixels, (top, left))
    patched = target_goal(trigger.apply(image[None])[0], true_class, poison_class)
    return TriggerGoal(poison_class, trigger, source_class=true_class), patched


def target_goal(image: torch.Tensor, true_class: int, intended_class: int) -> TargetGoal:
    """The goal of one (H, W, 3) target."""
    return TargetGoal(image[None], torch.tensor([true_class]), torch.tensor([intended_class]))
