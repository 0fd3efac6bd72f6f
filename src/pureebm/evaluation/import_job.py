"""Put poisons that other programs made (`attacks.importers`) into a data set on disk, or say what their files hold.

All images of the source may be trained on, but for those that the poisons are to have misread: a victim that trains on
a target learns what it shows. These stay in the target data set and are listed in its record as held out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, Poisoned, TargetGoal
from pureebm.attacks.importers import ImportedPoisons, import_poisons, import_sets, options_of
from pureebm.attacks.importers.benchmark import target_goal
from pureebm.attacks.storage import describe_goal
from pureebm.classifiers.networks import check_network_name
from pureebm.data.durable import write_file
from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.evaluation.poisoned_set import (
    DEFAULT_VICTIM,
    PoisonSettings,
    SourceSet,
    load_extractors,
    refuse_victim_of_transfer,
    write_poisoned,
)
from pureebm.purify.workplace import check_places
from pureebm.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings(PoisonSettings):
    """What an import needs besides the options of its format."""

    goal_image: Annotated[int | None, "place in the test set of what is misread, where the files do not say"] = None


def describe_import(
    format: str, path: Path, options: Mapping[str, Any], settings: ImportSettings, *, source: Path | None = None
) -> JSON:
    """What the files hold; measured against the images of `source`, if it is given. Writes nothing.

    Args:
        format: a name of `importers.FORMATS`.
        options: of the format, as `importers.options_of` lists them, but for its sets of images.

    Returns:
        "format", "path", "class_names" and "setups": for each poisoning the importer's record (poisons, split, eps,
        max_change, files with their sha256), how many poisons have each label, the images' size, and the goal.
    """
    if source is not None:
        data = SourceSet.read(open_source(source), test=settings.test)
        base, test, names = data.whole, data.test, data.names
    else:
        test = None if settings.test is None else SourceSet.read(open_source(settings.test)).whole
        base, names = None, None
    found = _read(format, path, options, settings, base, test)
    return {"format": format, "path": str(path), "class_names": names, "setups": [_described(one) for one in found]}


def run_import(
    format: str,
    path: Path,
    source: Path,
    target: Path,
    options: Mapping[str, Any],
    settings: ImportSettings,
    *,
    report: Callable[[str], None] = lambda line: None,
    command: str = "",
) -> JSON:
    """Write `source` to `target` with the poisons in the places of their bases; return the record beside it.

    Args:
        format, path, options: as for `describe_import`.
        report, command: as for `attack_job.run_attack`.

    Raises:
        InputError: the files, the source, the target or an option are refused, or it is not clear which of several
            poisonings is meant; nothing was written.
    """
    began = time.perf_counter()
    check_network_name(settings.victim or DEFAULT_VICTIM)
    refuse_victim_of_transfer(settings)
    if settings.verify and settings.test is None:
        raise InputError("--verify measures on images that nobody trains on; give them by --test")
    opened = open_source(source)
    there = check_places(opened, target, overwrite=settings.overwrite)
    data = SourceSet.read(opened, test=settings.test)
    found = _read(format, path, options, settings, data.whole, data.test)
    if len(found) > 1:
        raise InputError(f"{path} holds {len(found)} setups; choose one by --index (without TARGET, all are listed)")
    poisoned = found[0].poisoned()
    _check(poisoned, data.whole, path)
    data = replace(data, held_out=_shown_targets(poisoned, data.whole))
    return write_poisoned(
        data,
        there,
        poisoned,
        {"attack": f"import {format}", "config": {k: _plain(v) for k, v in options.items()}, "import": poisoned.record},
        settings,
        began=began,
        extractors=load_extractors(settings, size=data.whole.images.shape[1]),
        report=report,
        command=command,
    )


def run_import_set(path: Path, target: Path | None = None, *, name: str | None = None, overwrite: bool = False) -> JSON:
    """Describe the whole sets of a file (`importers.import_sets`); with a target, write one as `.npz`.

    Args:
        name: of the set to write; needed where there are several.

    Raises:
        InputError: no such file, set or name, or the target is there already.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    sets = import_sets(path)
    told = {
        key: {"images": len(one), "size": _size(one.images), "labels": _counts(one.labels)} for key, one in sets.items()
    }
    if target is not None:
        if name is None and len(sets) > 1:
            raise InputError(f"{path} holds the sets {', '.join(sets)}; choose one by --set")
        _write_set(sets, name or next(iter(sets)), target, overwrite)
    return {"path": str(path), "sets": told, "target": None if target is None else str(target)}


def _write_set(sets: Mapping[str, LabeledSet], name: str, target: Path, overwrite: bool) -> None:
    if name not in sets:
        raise InputError(f"there is no set {name!r}; there are {', '.join(sets)}")
    if target.suffix != ".npz":
        raise InputError(f"a set is written as .npz; name it {target.stem}.npz, not {target.name}")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists; name another, or replace it with --overwrite")
    arrays = {"images": sets[name].images.numpy(), "labels": sets[name].labels.numpy()}
    target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _read(
    format: str,
    path: Path,
    options: Mapping[str, Any],
    settings: ImportSettings,
    base: LabeledSet | None,
    test: LabeledSet | None,
) -> list[ImportedPoisons]:
    sets = {"base": base, "test": test}
    given = {name: one for name, one in sets.items() if name in options_of(format)}
    found = import_poisons(format, path, **options, **given)
    every = found if isinstance(found, list) else [found]
    return every if settings.goal_image is None else [_aimed(one, settings.goal_image, test) for one in every]


def _aimed(found: ImportedPoisons, index: int, test: LabeledSet | None) -> ImportedPoisons:
    """The goal from the test set: this image is to be read as what the poisons are labeled."""
    if found.goal is not None:
        raise InputError("the files say what the poisons are for; leave --goal-image out")
    if test is None or not 0 <= index < len(test):
        had = "there is none" if test is None else f"it has 0 .. {len(test) - 1}"
        raise InputError(f"--goal-image {index} is a place in the test set (--test); {had}")
    labels = sorted(set(found.labels.tolist()))
    if len(labels) != 1:
        raise InputError(f"--goal-image: poisons of one label say as what it is to be read; these have {labels[:10]}")
    facts = {key: value for key, value in found.record.items() if key != "no_goal"} | {"goal_image": index}
    return replace(found, goal=target_goal(test.images[index], int(test.labels[index]), labels[0]), record=facts)


def _check(poisoned: Poisoned, base: LabeledSet, path: Path) -> None:
    rows, classes = poisoned.rows, set(poisoned.labels.tolist())
    if isinstance(poisoned.goal, TargetGoal):
        classes |= set(poisoned.goal.intended_classes.tolist())
    if classes and not 0 <= min(classes) <= max(classes) < base.n_classes:
        raise InputError(
            f"{path}: its classes {sorted(classes)[:10]} are not among the source's 0 .. {base.n_classes - 1}"
        )
    if poisoned.images.equal(base.images[rows]) and poisoned.labels.equal(base.labels[rows]):
        what = f"{len(rows)} untouched images to poison" if len(rows) else "no poisons"
        raise InputError(f"{path}: holds {what}: there is nothing to put into the source")


def _shown_targets(poisoned: Poisoned, base: LabeledSet) -> Tensor:
    """Rows of images that are to be misread themselves, ascending."""
    if not isinstance(poisoned.goal, TargetGoal):
        return torch.empty(0, dtype=torch.int64)
    targets, poisons = {image.tobytes() for image in poisoned.goal.images.numpy()}, set(poisoned.rows.tolist())
    shown = [row for row, image in enumerate(base.images.numpy()) if image.tobytes() in targets and row not in poisons]
    return torch.tensor(shown, dtype=torch.int64)


def _described(found: ImportedPoisons) -> JSON:
    goal = None if found.goal is None else describe_goal(found.goal)[0]
    return {**found.record, "labels": _counts(found.labels), "size": _size(found.images), "goal": goal}


def _size(images: Tensor) -> list[int]:
    return list(images.shape[1:3])


def _counts(labels: Tensor) -> dict[str, int]:
    """Label -> how often, as JSON has it."""
    return {str(label): count for label, count in sorted(Counter(labels.tolist()).items())}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
