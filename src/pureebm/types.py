"""The nouns that every part shares. Knows torch and nothing else of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

JSON = dict[str, Any]
"""What `json.dumps` takes."""


class Energy(Protocol):
    """(N, C, H, W) in [-1, 1] -> (N,). Low means natural; the density is proportional to exp(-E / T)."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


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
