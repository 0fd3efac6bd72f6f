"""Narcissus triggers: one `.npy` file a class, (1, 3, H, W) or (3, H, W) floats to be added to images.

They are meant in units of [-1, 1], where a budget of 8/255 is an amplitude of 16/255; the same numbers in units of
[0, 1] would be a budget of 16. So the space is stated by the caller, or follows from the budget: the amplitude of an
optimized trigger reaches it. With a training set, the poisons are made too: the trigger on images of its class.

Source: reds-lab/Narcissus, SunayBhat1/PureGen_PoisonDefense (files named size=32_eps=8/best_noise_lab3.npy).
Differs: sums are rounded to 8 bits, not truncated.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, TriggerGoal, choose_rows
from pureebm.attacks.importers.imported import TRAIN, ImportedPoisons, assemble, load_array
from pureebm.attacks.triggers import AddTrigger
from pureebm.errors import InputError

Space = Literal["pm1", "pixel01"]
_TOLERANCE = 0.02


def read_trigger(
    path: Path,
    *,
    base: LabeledSet | None = None,
    eps: float | None = None,
    space: Space | None = None,
    target_class: int | None = None,
    budget: float = 0.01,
    choose: Literal["last", "random"] = "last",
    seed: int = 0,
    multiplier: float = 1.0,
    split: str = TRAIN,
) -> ImportedPoisons:
    """A trigger; with a base set also the poisons that carry it, else there are none.

    Args:
        path: The `.npy` file.
        base: Training set to poison.
        eps: Budget in steps of 1/255; None: what a folder named size=.._eps=.. says.
        space: Units of the file; None: what fits eps.
        target_class: Of the poisons; None: what a file named .._lab3.npy says.
        budget: Share of the training set to poison.
        choose: The last images of the class in the order of the set, as PureGen does, or random ones.
        seed: Of the choice at random.
        multiplier: Of the trigger at test time; the poisons carry it once.
        split: What the rows count in.

    Raises:
        InputError: Not a trigger, or its space, budget or class cannot be told.
    """
    noise = load_array(path)
    if (
        noise.dtype.kind != "f"
        or noise.ndim not in (3, 4)
        or noise.shape[:-3] not in ((), (1,))
        or noise.shape[-3] != 3
    ):
        raise InputError(f"{path}: a trigger is (1, 3, H, W) floats, found {noise.shape} {noise.dtype}")
    label = target_class if target_class is not None else _named(r"lab(\d+)$", path.stem)
    if label is None:
        raise InputError(f"{path}: its name does not say the class (.._lab3.npy); give target_class")
    stated = eps if eps is not None else _named(r"(?:^|_)eps=(\d+)", path.parent.name)
    pattern = pattern_of(noise, str(path), eps=stated, space=space)
    once = AddTrigger(pattern)
    rows = torch.zeros(0, dtype=torch.int64) if base is None else _rows(base, label, budget, choose, seed)
    height, width = pattern.shape[1:]
    images = torch.zeros(0, height, width, 3, dtype=torch.uint8)
    if base is not None:
        if base.images.shape[1:3] != pattern.shape[1:]:
            raise InputError(f"{path}: a trigger of {height} x {width} for images of {tuple(base.images.shape[1:3])}")
        images = once.apply(base.images[rows])
    return assemble(
        format="narcissus",
        files=[path],
        rows=rows,
        images=images,
        labels=[label] * len(rows),
        goal=TriggerGoal(label, AddTrigger(pattern, multiplier)),
        split=split,
        base=base,
        eps=stated,
        facts={"amplitude_pm1": float(pattern.abs().max())},
    )


def pattern_of(noise: Any, name: str, *, eps: float | None, space: Space | None) -> Tensor:
    """(1, 3, H, W) or (3, H, W) floats in a space -> (3, H, W) float32 in [-1, 1] units.

    Raises:
        InputError: Not finite, larger than the budget, or of a space that cannot be told.
    """
    values = np.array(noise, np.float32).reshape(np.shape(noise)[-3:])
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the trigger is not finite")
    amplitude = float(np.abs(values).max())
    space = space or _space(amplitude, eps, name)
    full = {"pm1": 2, "pixel01": 1}
    if space not in full:
        raise InputError(f"space must be pm1 or pixel01, got {space!r}")
    if eps is not None and amplitude > (1 + _TOLERANCE) * full[space] * eps / 255:
        reached = amplitude * 255 / full[space]
        raise InputError(f"{name}: an amplitude of {reached:.2f}/255 in {space}, more than eps = {eps:g}")
    return torch.from_numpy(values * (2 / full[space]))


def _space(amplitude: float, eps: float | None, name: str) -> Space:
    if eps is not None:
        if abs(amplitude * 255 / (2 * eps) - 1) <= _TOLERANCE:
            return "pm1"
        if abs(amplitude * 255 / eps - 1) <= _TOLERANCE:
            return "pixel01"
    steps = amplitude * 255
    raise InputError(
        f"{name}: its amplitude, {amplitude:.4f}, is {steps / 2:.1f}/255 if it is in [-1, 1] units (pm1) and"
        f" {steps:.1f}/255 in [0, 1] units (pixel01); say which by space, or by an eps that it reaches"
    )


def _rows(base: LabeledSet, label: int, budget: float, choose: str, seed: int) -> Tensor:
    chosen = choose_rows(base, label, budget, seed=seed)
    if choose == "random":
        return chosen
    if choose != "last":
        raise InputError(f"choose must be last or random, got {choose!r}")
    return base.rows_of(label)[-len(chosen) :]


def _named(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
