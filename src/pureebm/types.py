"""The nouns that every part shares. Knows torch and nothing else of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

JSON = dict[str, Any]
"""What `json.dumps` takes."""


class Energy(Protocol):
    """(N, C, H, W) in [-1, 1] -> (N,). Low means natural; the density is proportional to exp(-E / T)."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


class Coordinates(Protocol):
    """An invertible, symmetric linear map W of images; an energy's attribute `whitening` is one, or None."""

    def whiten(self, images: Tensor, /) -> Tensor:
        """x -> W x."""
        ...

    def color(self, coordinates: Tensor, /) -> Tensor:
        """y -> W^-1 y."""
        ...


class Noise(Protocol):
    """Standard normal noise of one update: a function of the step and of the images it stands for."""

    def __call__(self, step: int, like: Tensor, /) -> Tensor: ...


class Stage(Protocol):
    """A purifier: maps a batch of images and their ids to purified images. Stages make chains."""

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) float32 in [-1, 1] and N ids -> the same shape; may leave [-1, 1] a little."""
        ...

    def energies(self, images: Tensor) -> Tensor | None:
        """(N, 3, H, W) in [-1, 1] -> (N,) float32, or None where the purifier has no energy."""
        ...

    def settings(self) -> JSON:
        """Everything that changes the result but the seed: it is recorded, and compared on resume."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingData:
    """(N, H, W, 3) uint8 images and (N,) int64 labels, on the device of the training."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class EpochData:
    """What an epoch trains on. rows: those kept of the training data, None for all; images: all N of them, changed, or
    None for the data's own."""

    rows: Tensor | None = None
    images: Tensor | None = None


class TrainingDefense(Protocol):
    """A defense that acts while a classifier is trained.

    The network that it sees is in eval mode and must be left as it is. With several processes each has its own defense,
    and all must decide the same.
    """

    def before_training(self, network: nn.Module, data: TrainingData, /) -> TrainingData:
        """Called once, with the fresh network; what it returns is trained on."""
        ...

    def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData, /) -> EpochData:
        """Called before each epoch, counted from 0, with the data that `before_training` returned."""
        ...


Progress = Callable[["ProgressReport"], None]


class ProgressReport(Protocol):
    """State of a long job, for whoever shows it."""

    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def resumed(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def images_per_second(self) -> float: ...
    @property
    def eta_seconds(self) -> float | None: ...
