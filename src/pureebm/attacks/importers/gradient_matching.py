"""What Gradient Matching (Witches' Brew) exports with `--save`, told apart by what is there.

| mode      | files                                                                | poisons                       |
|-----------|----------------------------------------------------------------------|-------------------------------|
| packed    | poisons_packed_<date>.pth: [perturbations (P, 3, H, W), indices]     | base + perturbation           |
| limited   | train/<class>/<index>.png, targets/<intended class>/<index>.png      | all of train/                 |
| full      | the same and test/; train/ holds the whole training set              | images that differ from base  |
| numpy     | poisoned_training_data.npy (N, H, W, 3) 0..255, .._labels.npy         | images that differ from base  |
| benchmark | a folder of pickles: see `benchmark`                                 | all                           |

Perturbations are in units of standard deviations of their channel. Packed and numpy exports do not hold the target, the
others not its true class: that takes the test set.

Source: JonasGeiping/poisoning-gradient-matching.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import Goal, LabeledSet, TargetGoal
from pureebm.attacks.importers.benchmark import read_folder
from pureebm.attacks.importers.imported import (
    ImportedPoisons,
    assemble,
    integers,
    load_array,
    load_object,
    stacked,
)
from pureebm.data.pictures import decode
from pureebm.errors import InputError, ItemError

STDS = {"cifar10": (0.24703, 0.24349, 0.26159), "tinyimagenet": (0.2770, 0.2691, 0.2821)}
_DATA, _LABELS = "poisoned_training_data.npy", "poisoned_training_labels.npy"


def read_export(
    path: Path,
    *,
    base: LabeledSet | None = None,
    test: LabeledSet | None = None,
    eps: float | None = None,
    dataset: str = "cifar10",
    index: int | None = None,
) -> ImportedPoisons | list[ImportedPoisons]:
    """An export of any mode.

    Args:
        path: The `.pth` file, or the folder.
        base: The clean training set; needed by packed and numpy, and by full to tell poisons from the rest.
        test: The clean test set, for the true class of the target (limited, full).
        eps: Budget in steps of 1/255, to be checked where there is a base.
        dataset: Whose standard deviations a packed export is in: cifar10 or tinyimagenet.
        index: Of a benchmark export: only this numbered folder.

    Raises:
        InputError: Not such an export, a set is missing, or the poisons exceed the budget.
    """
    if path.is_file() and path.suffix == ".npy":
        path = path.parent
    if path.is_file():
        return _packed(path, base, eps, dataset)
    if (path / _DATA).is_file():
        return _numpy(path, base, eps)
    if (path / "train").is_dir():
        return _pictures(path, base, test, eps)
    return read_folder(path, base=base, eps=eps, index=index)


def _packed(path: Path, base: LabeledSet | None, eps: float | None, dataset: str) -> ImportedPoisons:
    if base is None:
        raise InputError(
            f"{path}: a packed export holds perturbations only; give the clean training set (SOURCE, base)"
        )
    if dataset not in STDS:
        raise InputError(f"unknown data set {dataset!r}; a packed export is in the units of {' or '.join(STDS)}")
    value = load_object(path)
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(f"{path}: not a packed export: [perturbations, indices]")
    delta, rows = np.asarray(value[0]), torch.tensor(integers(value[1], f"{path}: indices")).long()
    shape = (len(rows), 3, *base.images.shape[1:3])
    if delta.dtype.kind != "f" or delta.shape != shape or not np.isfinite(delta).all():
        raise InputError(f"{path}: perturbations must be {shape} floats, found {delta.shape} {delta.dtype}")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(base):
        raise InputError(f"{path}: its indices do not fit the {len(base)} images of the set that was given")
    steps = 255 * delta.transpose(0, 2, 3, 1) * np.array(STDS[dataset])
    exact = base.images[rows].numpy() + steps
    images = torch.from_numpy(np.floor(exact.clip(0, 255) + 0.5).astype(np.uint8))
    return assemble(
        format="gradient-matching packed",
        files=[path],
        rows=rows,
        images=images,
        labels=base.labels[rows],
        goal=None,
        base=base,
        eps=eps,
        facts={
            "units": f"standard deviations of {dataset}",
            "largest_perturbation": round(float(np.abs(steps).max(initial=0)), 3),
            "no_goal": "a packed export does not say its target",
        },
    )


def _numpy(path: Path, base: LabeledSet | None, eps: float | None) -> ImportedPoisons:
    files = [path / _DATA, path / _LABELS]
    data, labels = load_array(files[0]), integers(load_array(files[1]), str(files[1]))
    if data.ndim != 4 or data.shape[3] != 3 or len(data) != len(labels):
        raise InputError(f"{files[0]}: must be (N, H, W, 3) with N = {len(labels)} labels, found {data.shape}")
    images = np.empty(data.shape, np.uint8)
    for start in range(0, len(data), 1000):
        part = np.asarray(data[start : start + 1000])
        if not ((part == np.rint(part)) & (part >= 0) & (part <= 255)).all():
            raise InputError(f"{files[0]}: pixels must be whole numbers 0 .. 255")
        images[start : start + 1000] = part
    rows, changed = torch.arange(len(images)), torch.from_numpy(images)
    rows, changed, what = _changed(rows, changed, torch.tensor(labels), base, path)
    return assemble(
        format="gradient-matching numpy",
        files=files,
        rows=rows,
        images=changed,
        labels=what,
        goal=None,
        base=base,
        eps=eps,
        facts={"no_goal": "a numpy export does not say its target"},
    )


def _pictures(path: Path, base: LabeledSet | None, test: LabeledSet | None, eps: float | None) -> ImportedPoisons:
    classes = sorted(entry.name for entry in (path / "train").iterdir() if entry.is_dir())
    rows, images, labels = _indexed(path / "train", classes)
    goal, no_goal = _goal(path / "targets", classes, test)
    full = (path / "test").is_dir()
    if full:
        rows, images, labels = _changed(rows, images, labels, base, path)
    return assemble(
        format=f"gradient-matching {'full' if full else 'limited'}",
        files=[path / "train", path / "targets"],
        rows=rows,
        images=images,
        labels=labels,
        goal=goal,
        base=base,
        eps=eps,
        facts={"classes": classes, **no_goal},
    )


def _changed(
    rows: Tensor, images: Tensor, labels: Tensor, base: LabeledSet | None, path: Path
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of a whole training set that differ from the clean one."""
    if base is None:
        raise InputError(
            f"{path}: holds the whole training set and not which are poisons; give the clean set (SOURCE, base)"
        )
    if len(rows) != len(base) or images.shape[1:] != base.images.shape[1:] or int(rows.max()) >= len(base):
        shapes = f"{tuple(images.shape)}, the set that was given {tuple(base.images.shape)}"
        raise InputError(f"{path}: has the shape {shapes}")
    if not labels.equal(base.labels[rows]):
        raise InputError(f"{path}: its labels are not those of the set that was given: another data set or order")
    differs = (images != base.images[rows]).flatten(1).any(1)
    return rows[differs], images[differs], labels[differs]


def _goal(folder: Path, classes: list[str], test: LabeledSet | None) -> tuple[Goal | None, dict[str, str]]:
    rows, images, intended = _indexed(folder, classes)
    if test is None:
        return None, {"no_goal": "the true class of its target is in the test set only (test)"}
    if int(rows.max()) >= len(test) or not images.equal(test.images[rows]):
        raise InputError(f"{folder}: these are not the images of the test set that was given")
    return TargetGoal(images, test.labels[rows], intended), {}


def _indexed(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """<class>/<index>.png -> indices, (N, H, W, 3) uint8 images, labels."""
    files = sorted((file for file in folder.glob("*/*.png")), key=lambda file: (file.stem.zfill(20), file.parent.name))
    if not files or not all(file.stem.isdigit() and file.parent.name in classes for file in files):
        raise InputError(f"{folder}: must hold <class>/<index>.png, of the classes {', '.join(classes)[:200]}")
    try:
        pictures = [decode(file.read_bytes(), str(file)).pixels for file in files]
    except ItemError as error:
        raise InputError(str(error)) from error
    labels = [classes.index(file.parent.name) for file in files]
    return torch.tensor([int(file.stem) for file in files]), stacked(pictures, str(folder)), torch.tensor(labels)
