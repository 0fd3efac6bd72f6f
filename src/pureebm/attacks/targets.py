"""Which test images a triggerless attack wants misread, and as what: given, or drawn from the seed."""

from __future__ import annotations

import torch

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


def choose_goal(
    test: LabeledSet | None, intended_class: int | None, index: int | None, *, seed: int, n: int = 1
) -> tuple[TargetGoal, list[int]]:
    """n images of one class of the test set, to be read as another, and their indices in it.

    intended_class: None: drawn from the seed among the classes other than that of a given target. index: of the first
    target; None: drawn from the seed among the images of other classes than the intended one.

    Raises:
        InputError: there is no test set, the index lies outside it, a target is of the intended class already, or its
            class has fewer than n images.
    """
    if test is None:
        raise InputError("this attack aims at a test image, but the attacker has no test set; give one")
    if index is not None and not 0 <= index < len(test):
        raise InputError(f"target_index must be 0 .. {len(test) - 1}, the images of the test set; got {index}")
    true_class = None if index is None else int(test.labels[index])
    intended = choose_class(test, intended_class, seed=seed, apart_from=true_class)
    generator = torch.Generator().manual_seed(seed)
    if index is None:
        others = (test.labels != intended).nonzero().squeeze(1)
        if not len(others):
            raise InputError(f"all test images are of the intended class {intended}; choose another")
        index = int(others[torch.randint(len(others), (), generator=generator)])
    own = test.rows_of(int(test.labels[index]))
    if len(own) < n:
        raise InputError(f"class {int(test.labels[index])} has {len(own)} test images, fewer than {n} targets")
    more = own[own != index]
    rows = torch.cat([torch.tensor([index]), more[torch.randperm(len(more), generator=generator)[: n - 1]]])
    return TargetGoal(test.images[rows], test.labels[rows], torch.full((n,), intended)), rows.tolist()
