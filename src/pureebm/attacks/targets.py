"""Which test images a triggerless attack wants misread, and as what: given, or drawn from the seed."""

from __future__ import annotations

import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.errors import InputError


def choose_class(data: LabeledSet, given: int | None, *, seed: int, apart_from: int | None = None) -> int:
    """`given`, or else a class drawn from the seed; never `apart_from`.

    Raises:
        InputError: `given` is no class of the set, or is `apart_from`.
    """
    allowed = [label for label in range(data.n_classes) if label != apart_from]
    if given is None:
        return allowed[int(torch.randint(len(allowed), (), generator=torch.Generator().manual_seed(seed)))]
    if given not in allowed:
        but = "" if apart_from is None else f" other than {apart_from}"
        raise InputError(f"class {given} is not possible here; classes are 0 .. {data.n_classes - 1}{but}")
    return given


def choose_targets(
    test: LabeledSet | None, intended_class: int, index: int | None, *, seed: int, n: int = 1
) -> tuple[TargetGoal, Tensor]:
    """n images of one class of the test set, to be read as `intended_class`, and their indices in it.

    index: of the first; None: drawn from the seed among the images of other classes than the intended one.

    Raises:
        InputError: there is no test set, the index lies outside it or is one of the intended class, or the target's
            class has fewer than n images.
    """
    if test is None:
        raise InputError("this attack aims at a test image, but the attacker has no test set; give one")
    generator = torch.Generator().manual_seed(seed)
    if index is None:
        others = (test.labels != intended_class).nonzero().squeeze(1)
        if not len(others):
            raise InputError(f"all test images are of the intended class {intended_class}; choose another")
        index = int(others[torch.randint(len(others), (), generator=generator)])
    if not 0 <= index < len(test):
        raise InputError(f"target_index must be 0 .. {len(test) - 1}, the images of the test set; got {index}")
    true_class = int(test.labels[index])
    if true_class == intended_class:
        raise InputError(f"test image {index} is of class {intended_class}, the intended one, already; choose another")
    rest = test.rows_of(true_class)
    rest = rest[rest != index]
    if len(rest) < n - 1:
        raise InputError(f"class {true_class} has {len(rest) + 1} test images, fewer than {n} targets")
    more = rest[torch.randperm(len(rest), generator=generator)[: n - 1]]
    rows = torch.cat([torch.tensor([index]), more])
    return TargetGoal(test.images[rows], test.labels[rows], torch.full((n,), intended_class)), rows
