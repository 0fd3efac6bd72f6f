"""What an attack wanted and did, in two files beside the poisoned set: JSON for people, arrays for whoever evaluates.

`pureebm-attack.json` holds the record: the attack's own, the command's, and the goal but for its arrays, which are in
`pureebm-attack.npz`:

    base_index     (P,) int64, places of the poisoned items in the source
    y_poison       (P,) int64, their labels now; y_base, their labels before
    trigger        the trigger's array: (3, H, W) float32 in [-1, 1] units (mode add), (h, w, 3) uint8 (patch),
                   (H, W, 3) uint8 (blend), (H, W, 2) float32 (warp); trigger_mask (h, w) bool
    x_target       (T, H, W, 3) uint8; y_target_true, y_adv (T,) int64: true and intended classes

The poisoned images themselves are in the data set. Nothing is pickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import AvailabilityGoal, Goal, TargetGoal, TriggerGoal
from pureebm.attacks.triggers import AddTrigger, BlendTrigger, PatchTrigger, Trigger, WarpTrigger
from pureebm.data.durable import sync_folder, write_file
from pureebm.errors import InputError
from pureebm.types import JSON

RECORD_NAME = "pureebm-attack.json"
ARRAYS_NAME = "pureebm-attack.npz"

Arrays = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class StoredAttack:
    """rows: (P,) int64, places of the poisoned items in the source. labels: (P,) int64, what they are labeled now."""

    goal: Goal
    rows: Tensor
    labels: Tensor
    record: JSON


def save_attack(folder: Path, attack: StoredAttack, *, old_labels: Tensor) -> None:
    """Write both files into `folder`, each whole or not at all. `old_labels`: (P,) int64, from before."""
    goal, arrays = describe_goal(attack.goal)
    arrays |= {"base_index": attack.rows, "y_poison": attack.labels, "y_base": old_labels}
    plain = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    text = json.dumps({**attack.record, "goal": goal}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / ARRAYS_NAME, lambda file: np.savez(file, **plain))  # type: ignore[arg-type]
    write_file(folder / RECORD_NAME, lambda file: file.write(text.encode()))
    sync_folder(folder)


def load_attack(path: Path) -> StoredAttack:
    """What was stored for a poisoned data set.

    Args:
        path: the data set, or the folder or the record that stands beside it.

    Raises:
        InputError: there is no record, or one of the two files is damaged.
    """
    path = Path(path)
    places = [path, path / RECORD_NAME, path.with_name(f"{path.name}.pureebm") / RECORD_NAME]
    record = next((place for place in places if place.name == RECORD_NAME and place.is_file()), None)
    if record is None:
        raise InputError(f"{path}: no {RECORD_NAME} in it or beside it; only sets made by `pureebm attack` have one")
    try:
        told: JSON = json.loads(record.read_text("utf-8"))
        with np.load(record.with_name(ARRAYS_NAME), allow_pickle=False) as stored:
            arrays = {name: torch.from_numpy(np.array(stored[name])) for name in stored}
        goal = goal_of(told["goal"], arrays)
        return StoredAttack(goal, arrays["base_index"], arrays["y_poison"], told)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{record.parent}: {RECORD_NAME} or {ARRAYS_NAME} is damaged or missing: {error!r}") from error


def describe_goal(goal: Goal) -> tuple[JSON, Arrays]:
    """A goal as what JSON holds, and its arrays by the names above."""
    match goal:
        case TriggerGoal():
            told, arrays = _describe_trigger(goal.trigger)
            aim = {"target_class": goal.target_class, "source_class": goal.source_class}
            return {"kind": "trigger", **aim, "trigger": told}, arrays
        case TargetGoal():
            classes = {"y_target_true": goal.true_classes, "y_adv": goal.intended_classes}
            plain = {"true_classes": goal.true_classes.tolist(), "intended_classes": goal.intended_classes.tolist()}
            return {"kind": "targets", **plain}, {"x_target": goal.images, **classes}
        case AvailabilityGoal():
            return {"kind": "availability"}, {}


def goal_of(told: JSON, arrays: Arrays) -> Goal:
    """The inverse of `describe_goal`. Raises `KeyError` or `ValueError` for what it never returned."""
    match told["kind"]:
        case "trigger":
            return TriggerGoal(told["target_class"], _trigger_of(told["trigger"], arrays), told["source_class"])
        case "targets":
            return TargetGoal(arrays["x_target"], arrays["y_target_true"], arrays["y_adv"])
        case "availability":
            return AvailabilityGoal()
    raise ValueError(f"unknown kind of goal {told['kind']!r}")


def _describe_trigger(trigger: Trigger) -> tuple[JSON, Arrays]:
    match trigger:
        case AddTrigger():
            return {"mode": "add", "space": "pm1", "multiplier": trigger.multiplier}, {"trigger": trigger.pattern}
        case PatchTrigger():
            masks = {} if trigger.mask is None else {"trigger_mask": trigger.mask}
            corner = None if trigger.corner is None else list(trigger.corner)
            return {"mode": "patch", "corner": corner}, {"trigger": trigger.patch, **masks}
        case BlendTrigger():
            return {"mode": "blend", "alpha": trigger.alpha}, {"trigger": trigger.key}
        case WarpTrigger():
            return {"mode": "warp"}, {"trigger": trigger.grid}


def _trigger_of(told: JSON, arrays: Arrays) -> Trigger:
    array = arrays["trigger"]
    match told["mode"]:
        case "add":
            return AddTrigger(array, told["multiplier"])
        case "patch":
            corner: Any = None if told["corner"] is None else tuple(told["corner"])
            return PatchTrigger(array, corner, arrays.get("trigger_mask"))
        case "blend":
            return BlendTrigger(array, told["alpha"])
        case "warp":
            return WarpTrigger(array)
    raise ValueError(f"unknown mode of a trigger {told['mode']!r}")
