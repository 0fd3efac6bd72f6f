"""Records of BackdoorBench: `record/<name>/attack_result.pt`.

A dict with the states of two data sets, `bd_train` and `bd_test`. In each, `poison_indicator` flags images of the clean
set, and `bd_data_container` holds for those the poisoned image, its new and its original label: the image
itself, or the path of a PNG file below BackdoorBench's folder. The trigger is not stored, but triggered test images
are: they are the goal, to be read as their new labels. The weights in the record are ignored.

Source: SCLBD/BackdoorBench. WaNet's cross samples, warped with their label kept, count as poisons, as they do there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.importers.imported import ImportedPoisons, assemble, integer, integers, load_object, stacked
from pureebm.data.pictures import decode
from pureebm.errors import InputError, ItemError


def read_result(
    path: Path, *, root: Path | None = None, base: LabeledSet | None = None, eps: float | None = None
) -> ImportedPoisons:
    """A record.

    Args:
        path: An attack_result.pt.
        root: BackdoorBench's folder, which the paths of images start at. Nothing outside of it is opened.
        base: The clean training set, to measure the change.
        eps: Budget in steps of 1/255; many of these attacks have none.

    Raises:
        InputError: Not such a record, an image is missing or leads out of `root`, or the change exceeds eps.
    """
    record = load_object(path)
    if not isinstance(record, dict) or not {"bd_train", "bd_test", "num_classes", "img_size"} <= record.keys():
        raise InputError(f"{path}: not a record of BackdoorBench: a dict with bd_train, bd_test, num_classes, img_size")
    height, width, *_ = integers(record["img_size"], f"{path}: img_size")
    rows, images, labels, originals = _samples(record["bd_train"], root, f"{path}: bd_train", (height, width))
    _, test_images, intended, true = _samples(record["bd_test"], root, f"{path}: bd_test", (height, width))
    n_classes = integer(record["num_classes"], f"{path}: num_classes")
    if not all(0 <= label < n_classes for label in labels + intended):
        raise InputError(f"{path}: labels must be 0 .. {n_classes - 1}")
    goal = TargetGoal(test_images, torch.tensor(true).long(), torch.tensor(intended).long())
    return assemble(
        format="backdoorbench",
        files=[path],
        rows=rows,
        images=images,
        labels=labels,
        goal=goal if len(intended) else None,
        split=f"train of {record.get('clean_data')}",
        base=base,
        eps=eps,
        clean_label=False,
        facts={
            "relabeled": sum(new != old for new, old in zip(labels, originals, strict=True)),
            "measured": "the goal holds the triggered test images: read as their new labels, they are the success",
        },
    )


def _samples(
    state: Any, root: Path | None, name: str, size: tuple[int, int]
) -> tuple[list[int], Tensor, list[int], list[int]]:
    """Of one data set's poisons: indices ascending, (P, H, W, 3) uint8 images, new labels, original labels."""
    found = [] if state is None else _chosen(state, name)
    if not found:
        return [], torch.zeros(0, *size, 3, dtype=torch.uint8), [], []
    images, new, old = [], [], []
    for index, entry in found:
        image, label, original = _sample(entry, root, f"{name}: image {index}")
        images.append(image)
        new.append(label)
        old.append(original)
    stack = stacked(images, name)
    if tuple(stack.shape[1:3]) != size:
        raise InputError(f"{name}: images of {tuple(stack.shape[1:3])}, but img_size says {size}")
    return [index for index, _ in found], stack, new, old


def _chosen(state: Any, name: str) -> list[tuple[int, Any]]:
    """(index, entry) of the images that are flagged and not left out by the subset."""
    try:
        entries = state["bd_data_container"]["data_dict"]
        flags = np.asarray(state["poison_indicator"]).reshape(-1)
        kept = integers(state["original_index_array"], f"{name}: original_index_array")
    except (KeyError, TypeError):
        raise InputError(f"{name}: not a data set's state of BackdoorBench") from None
    by_index = {integer(key, f"{name}: keys"): entry for key, entry in entries.items()}
    if not all(0 <= index < len(flags) for index in kept):
        raise InputError(f"{name}: original_index_array leaves the {len(flags)} images that are flagged")
    flagged = sorted(index for index in set(kept) if flags[index])
    if missing := [index for index in flagged if index not in by_index]:
        raise InputError(f"{name}: no poisoned image for {len(missing)} of the flagged ones, the first {missing[0]}")
    return [(index, by_index[index]) for index in flagged]


def _sample(entry: Any, root: Path | None, name: str) -> tuple[Any, int, int]:
    match entry:
        case {"path": str() as path, "other_info": [label, original, *_]}:
            return _file(path, root, name), integer(label, name), integer(original, name)
        case (np.ndarray() as image, label, original, *_):
            return image, integer(label, name), integer(original, name)
    raise InputError(f"{name}: neither (image, label, original label) nor a path with them")


def _file(path: str, root: Path | None, name: str) -> Any:
    """The pixels of an image file, which must lie below `root`."""
    if root is None:
        raise InputError(f"{name}: stands in the file {path!r:.200}; give BackdoorBench's folder (root)")
    file = (root / path).resolve()
    if Path(path).is_absolute() or not file.is_relative_to(root.resolve()):
        raise InputError(f"{name}: its path {path!r:.200} leads out of {root}; refused")
    try:
        return decode(file.read_bytes(), str(file)).pixels
    except (OSError, ItemError) as error:
        raise InputError(f"{name}: {error}") from error
