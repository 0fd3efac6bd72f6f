"""What every attack takes and gives: one protocol, so that command line, benchmark and tests treat all alike.

An attack is a module with a frozen `Config` and a function

    craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned

It knows a classifier as `classifiers.base.Classifier` and gets trained ones from the `Attacker`; it knows nothing of
files, purifiers, victims or defenses. Images at rest are (N, H, W, 3) uint8; a budget `eps` is in steps of 1/255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from pureebm.attacks.triggers import Trigger
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError
from pureebm.types import JSON


@dataclass(frozen=True, slots=True)
class LabeledSet:
    """(N, H, W, 3) uint8 images and their (N,) int64 labels, 0 .. n_classes-1."""

    images: Tensor
    labels: Tensor
    n_classes: int

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise InputError(f"images must be (N, H, W, 3) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1]:
            raise InputError(f"{len(self.images)} images, but labels of shape {tuple(self.labels.shape)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.n_classes:
            raise InputError(f"labels must be 0 .. {self.n_classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def check_class(self, label: int) -> int:
        """`label`, if the set has such a class. Raises `InputError`."""
        if not 0 <= label < self.n_classes:
            raise InputError(f"class {label} is not among 0 .. {self.n_classes - 1}; choose another --target-class")
        return label

    def rows_of(self, label: int) -> Tensor:
        """Indices of the images of a class, ascending."""
        return (self.labels == label).nonzero().squeeze(1)


@dataclass(frozen=True, slots=True)
class TriggerGoal:
    """Images carrying `trigger` are to be read as `target_class`; those of `source_class` only, if it is given.

    Measured over test images of all other classes (poison success, ASR). Without a target class, every class y is to
    be read as its successor (y + 1) mod n_classes ("all-to-all").
    """

    target_class: int | None
    trigger: Trigger
    source_class: int | None = None

    def aims_at(self, labels: Tensor) -> Tensor:
        """(N,) bool: which images, by their true labels, are to be misread."""
        if self.source_class is not None:
            return labels == self.source_class
        return torch.ones_like(labels, dtype=torch.bool) if self.target_class is None else labels != self.target_class

    def wanted(self, labels: Tensor, n_classes: int) -> Tensor:
        """(N,) int64: what images of these true labels are to be read as."""
        return (labels + 1) % n_classes if self.target_class is None else torch.full_like(labels, self.target_class)


@dataclass(frozen=True, slots=True)
class TargetGoal:
    """These test images, untouched, are to be read as their intended classes.

    images: (T, H, W, 3) uint8; true_classes, intended_classes: (T,) int64.
    """

    images: Tensor
    true_classes: Tensor
    intended_classes: Tensor


@dataclass(frozen=True, slots=True)
class AvailabilityGoal:
    """The accuracy on clean test images is to collapse."""


Goal = TriggerGoal | TargetGoal | AvailabilityGoal


@dataclass(frozen=True, slots=True)
class Poisoned:
    """What an attack made of a training set.

    rows: (P,) int64 ascending, which images stand changed. images: (P, H, W, 3) uint8, what stands there now.
    labels: (P,) int64, equal to the old ones for a clean-label attack. record: how it was made, as JSON: attack,
    config, seed, seconds, and what the attacker saw of its own success.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    goal: Goal
    record: JSON = field(default_factory=dict)

    def apply(self, data: LabeledSet) -> LabeledSet:
        """The poisoned training set: same size and order."""
        images, labels = data.images.clone(), data.labels.clone()
        images[self.rows], labels[self.rows] = self.images, self.labels
        return LabeledSet(images, labels, data.n_classes)


class TrainSurrogate(Protocol):
    """Trains a fresh network on a set, or returns the one that was trained so before.

    network: a name of `classifiers.networks.NETWORKS`, None for the attacker's default. start: weights to go on from
    instead of a fresh initialization (left unchanged itself). The result is in eval mode, its parameters frozen.
    """

    def __call__(
        self,
        data: LabeledSet,
        *,
        seed: int,
        epochs: int | None = None,
        network: str | None = None,
        start: Classifier | None = None,
        peak_rate: float | None = None,
    ) -> Classifier: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacker:
    """The means of an attacker beside the training set.

    train: makes surrogates. extractors: pretrained networks, for the attacks on transfer learning. public:
    out-of-distribution images (Narcissus). test: images of the distribution, for targets and sources. through: the
    defender's purifier as far as the attacker knows it, (N, 3, H, W) in [-1, 1] to the same shape, with gradients; a
    trigger is optimized through it (Narcissus). surrogate_through: the same, but surrogates are trained on what comes
    out of it. report: told of progress in words.
    """

    train: TrainSurrogate
    extractors: Sequence[Classifier] = ()
    public: LabeledSet | None = None
    test: LabeledSet | None = None
    through: Callable[[Tensor], Tensor] | None = None
    surrogate_through: Callable[[Tensor], Tensor] | None = None
    device: str = "cpu"
    report: Callable[[str], None] = lambda line: None


class Attack(Protocol):
    """The function `craft` of an attack's module."""

    def __call__(self, data: LabeledSet, config: object, *, attacker: Attacker, seed: int) -> Poisoned: ...


ABOVE_ZERO = frozenset(
    "alpha batch_size block_size budget delta eps frequency inner_steps lattice multiplier n_draws n_steps "
    "n_surrogates n_targets n_validation patch_size restarts step_size strength time".split()
)
"""Numbers of Configs with which an attack does nothing at 0; a Config's own MAY_BE_ZERO lists its exceptions."""

MAY_BE_NEGATIVE = frozenset({"shift"})


def check_numbers(config: Any) -> None:
    """Whether the numbers of an attack's Config can be used at all; what else they must keep, it says itself.

    Raises:
        InputError: one is not finite, negative, or 0 where that would be an attack that does nothing.
    """
    for one in fields(config):
        value = getattr(config, one.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{one.name} must be a finite number, got {value}")
        if one.name in ABOVE_ZERO - getattr(config, "MAY_BE_ZERO", frozenset()) and not value > 0:
            raise InputError(f"{one.name} must be above 0, got {value}")
        if value < 0 and one.name not in MAY_BE_NEGATIVE:
            raise InputError(f"{one.name} must be at least 0, got {value}")


def choose_rows(
    data: LabeledSet, label: int | None, budget: float, *, seed: int, whole_class_at_most: bool = False
) -> Tensor:
    """Which images to poison: ceil(budget * N) of class `label` (None: of all classes), random, ascending.

    With `whole_class_at_most`, a budget above the class's size means all of the class.

    Raises:
        InputError: budget is not in (0, 1] or names no image, the class has fewer images than that, or none at all.
    """
    if not 0 < budget <= 1:
        raise InputError(f"budget is a share of the training set, above 0 and at most 1; got {budget}")
    count = math.ceil(round(budget * len(data), 6))  # 0.07 * 100 is 7.000000000000001
    if not count:
        least = 1 / max(1, len(data))
        raise InputError(f"budget {budget} of {len(data)} images names none; give at least {least:.2g}, which is one")
    rows = torch.arange(len(data)) if label is None else data.rows_of(label)
    if whole_class_at_most and len(rows):
        count = min(count, len(rows))
    return poison_rows(data.labels, label, count, seed=seed)


def poison_rows(labels: Tensor, label: int | None, n_poisons: int, *, seed: int) -> Tensor:
    """`n_poisons` random images of a class (None: of all classes), ascending.

    Raises:
        InputError: there are fewer.
    """
    rows = torch.arange(len(labels)) if label is None else (labels == label).nonzero().squeeze(1)
    if len(rows) < n_poisons:
        if label is not None and not len(rows):
            raise InputError(f"class {label} has no images in the training set; choose another")
        whose = "the training set" if label is None else f"class {label}"
        raise InputError(f"{whose} has {len(rows)} images, fewer than {n_poisons} poisons; lower the budget")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n_poisons]
    return rows[chosen].sort().values


def within(images: Tensor, originals: Tensor, eps: int) -> Tensor:
    """uint8 `images` moved back to at most `eps` steps from uint8 `originals`; same shape."""
    low, high = (originals.int() - eps).clamp(min=0), (originals.int() + eps).clamp(max=255)
    return images.int().clamp(low, high).to(torch.uint8)
