"""What every importer gives, and what they share: number ranges, index lists, budgets, checksums.

Knows no format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pureebm.attacks.base import Goal, LabeledSet, Poisoned, TargetGoal
from pureebm.data import torch_files
from pureebm.errors import InputError
from pureebm.types import JSON

TRAIN = "train"
OTHERS = "CIFAR10_TRAIN_Split others"
MAX_PIXELS = 2**29

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedPoisons:
    """Poisons that another program made.

    rows: (P,) int64 ascending, the training images that they replace, counted in `split`. images: (P, H, W, 3) uint8.
    labels: (P,) int64. goal: None where the files do not say it. judged: the one test image by which the benchmark
    judges a trigger. record: format, files with their sha256, and what was measured (`max_change` in steps of 1/255).
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    goal: Goal | None
    split: str = TRAIN
    judged: TargetGoal | None = None
    record: JSON = field(default_factory=dict)

    def poisoned(self) -> Poisoned:
        """The same in the words of our own attacks, for a base set that is `split`.

        Raises:
            InputError: The files did not say what the poisons are for.
        """
        if self.goal is None:
            why = self.record.get("no_goal", "its files hold none")
            raise InputError(f"{self.record.get('format', 'this import')} has no goal: {why}")
        return Poisoned(self.rows, self.images, self.labels, self.goal, self.record)


def assemble(
    *,
    format: str,
    files: Sequence[Path],
    rows: Any,
    images: Tensor,
    labels: Any,
    goal: Goal | None,
    split: str = TRAIN,
    judged: TargetGoal | None = None,
    base: LabeledSet | None = None,
    eps: float | None = None,
    slack: float = 0.5,
    clean_label: bool = True,
    facts: JSON | None = None,
) -> ImportedPoisons:
    """Order, check and describe what an importer read.

    rows, labels: anything `integers` takes. base: the clean set that rows count; with it the largest change is
    measured. eps: the budget in steps of 1/255; a change of more than eps + slack is refused (slack: rounding to 8
    bits, half a step; a whole one where a format truncates). clean_label: whether the poisons have the labels of their
    bases. facts: more of the record.

    Raises:
        InputError: Lengths differ, a row stands twice or is not in the base set, the base has another label, or the
            change is over budget.
    """
    name = str(files[0])
    order, what = torch.tensor(integers(rows, f"{name}: indices")), torch.tensor(integers(labels, f"{name}: labels"))
    order, what = order.reshape(-1).long(), what.reshape(-1).long()
    if not len(order) == len(what) == len(images):
        raise InputError(f"{name}: {len(images)} poisons, but {len(order)} indices and {len(what)} labels")
    rows, places = order.sort()
    if len(rows) and (int(rows[0]) < 0 or len(rows.unique()) < len(rows)):
        raise InputError(f"{name}: indices must be 0 or more, each once")
    images, labels = images[places], what[places]
    change = None if base is None else max_change(images, rows, base, name)
    if base is not None and clean_label and not labels.equal(base.labels[rows]):
        raise InputError(f"{name}: its labels are not those of the set that was given: another data set or order")
    if change is not None and eps is not None and change > eps + slack:
        raise InputError(f"{name}: a poison differs from its base by {change} steps of 1/255, more than eps = {eps:g}")
    record: JSON = {"format": format, "files": [described(file) for file in files], "split": split}
    record |= {"poisons": len(rows), "eps": eps, "max_change": change} | (facts or {})
    return ImportedPoisons(
        rows=rows, images=images, labels=labels, goal=goal, split=split, judged=judged, record=record
    )


def described(path: Path) -> JSON:
    """Name and checksum of a file, or of a folder: of the names and checksums of all files in it."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{file.relative_to(path).as_posix()} {described(file)['sha256']}\n" for file in inside]
        return {"folder": str(path), "files": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}
    with path.open("rb") as stream:
        return {"file": str(path), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def max_change(images: Tensor, rows: Tensor, base: LabeledSet, name: str) -> int:
    """The largest difference between poisons and their bases, in steps of 1/255."""
    if not len(rows):
        return 0
    if int(rows[-1]) >= len(base):
        raise InputError(f"{name}: index {int(rows[-1])} is beyond the {len(base)} images of the set that was given")
    originals = base.images[rows]
    if originals.shape != images.shape:
        shapes = f"{tuple(images.shape[1:])}, those of the set that was given {tuple(originals.shape[1:])}"
        raise InputError(f"{name}: its images have the shape {shapes}")
    return int((images.int() - originals.int()).abs().max())


def integers(values: Any, name: str) -> list[int]:
    """Whole numbers in any of the wrappings that the formats use (lists, arrays, tensors of one value each)."""
    try:
        found = np.array([np.asarray(value).reshape(()) for value in values])
    except (TypeError, ValueError):
        raise InputError(f"{name} must be whole numbers") from None
    if found.dtype.kind not in "iuf" or (found.dtype.kind == "f" and not np.array_equal(found, np.rint(found))):
        raise InputError(f"{name} must be whole numbers")
    return [int(value) for value in found]


def integer(value: Any, name: str) -> int:
    """One whole number, as `integers` takes them."""
    return integers([value], name)[0]


def image_list(value: Any, name: str) -> tuple[Tensor, list[int]]:
    """[(image, label), ..] -> (N, H, W, 3) uint8 and N labels."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(pair, list | tuple) and len(pair) >= 2 for pair in value
    ):
        raise InputError(f"{name}: must be a list of (image, label)")
    return stacked([pair[0] for pair in value], name), integers([pair[1] for pair in value], f"{name}: labels")


def stacked(images: Sequence[Any], name: str) -> Tensor:
    """Equal-sized (H, W, 3) uint8 arrays -> (N, H, W, 3)."""
    if not images:
        raise InputError(f"{name}: holds no images")
    shapes = {getattr(image, "shape", None) for image in images}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 3 or shape[2] != 3 or any(image.dtype != np.uint8 for image in images):
        raise InputError(f"{name}: its images must be 8-bit RGB, all of one size")
    if len(images) * shape[0] * shape[1] > MAX_PIXELS:
        raise InputError(f"{name}: {len(images):,} images of {shape[0]} x {shape[1]} are more than fit in memory here")
    return torch.from_numpy(np.stack(images))


def from_pixel01(values: Any, name: str) -> Pixels:
    """Finite floats, 0 for black and 1 for white, any shape -> uint8, clamped and rounded to nearest."""
    array = np.asarray(values)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise InputError(f"{name}: must be finite floats, found {array.dtype}")
    rounded: Pixels = np.floor(array.astype(np.float64).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return rounded


def load_array(path: Path) -> NDArray[Any]:
    """A `.npy` file, without pickles; as large as its header says or refused.

    Raises:
        InputError: It cannot be read as one.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: not a .npy file of one array")
    return array


def load_object(path: Path) -> Any:
    """A pickle or PyTorch file, through the safe reader."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return torch_files.load(path)
