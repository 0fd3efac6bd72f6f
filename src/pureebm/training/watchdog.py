"""Tells from a few numbers of each step that a training diverges, and says how, in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

_WINDOW = 100
_ENOUGH = 20  # steps that a running median needs


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogConfig:
    """What counts as diverging."""

    gradient_factor: Annotated[float, "largest gradient norm, in running medians"] = 100.0
    gap_factor: Annotated[float, "mle: largest |energy gap|, in running medians of it"] = 100.0
    gap_floor: Annotated[float, "mle: energy gaps (over T) below this are never reported"] = 1e4
    least_spread: Annotated[float, "mle: least standard deviation over a batch of negatives"] = 0.02
    largest_value: Annotated[float, "mle: largest root mean square of negatives"] = 3.0


@dataclass(slots=True)
class Watchdog:
    """Feed it every step; it returns None or one sentence about what went wrong.

    Its memory (`gradients`, `gaps`: recent values) belongs into a checkpoint.
    """

    config: WatchdogConfig = field(default_factory=WatchdogConfig)
    gradients: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def check_step(self, loss: float, gradient_norm: float, gap: float | None = None) -> str | None:
        """Look at one step before its update is made.

        Args:
            loss: the step's loss. gradient_norm: of all parameters, before clipping.
            gap: (mean energy of data - mean energy of negatives) / T, where there are negatives.
        """
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient norm became {gradient_norm}"
        if _exceeds(gradient_norm, self.gradients, self.config.gradient_factor, 0.0):
            usual = statistics.median(self.gradients)
            return f"the gradient norm jumped to {gradient_norm:.3g}, where {usual:.3g} was usual"
        if gap is not None and _exceeds(abs(gap), self.gaps, self.config.gap_factor, self.config.gap_floor):
            usual = statistics.median(self.gaps)
            return f"the energy gap jumped to {gap:.3g}, where {usual:.3g} was usual"
        self.gradients[:] = [*self.gradients[-_WINDOW + 1 :], gradient_norm]
        if gap is not None:
            self.gaps[:] = [*self.gaps[-_WINDOW + 1 :], abs(gap)]
        return None

    def check_negatives(self, negatives: Tensor) -> str | None:
        """Look at a batch of negatives (N, C, H, W): they must stay images, and differ from each other."""
        if not bool(torch.isfinite(negatives).all()):
            return "the negatives became non-finite"
        scale = float(negatives.square().mean().sqrt())
        if scale > self.config.largest_value:
            return f"the negatives left the range of images: root mean square {scale:.3g}, images have at most 1"
        spread = float(negatives.std(dim=0).mean()) if len(negatives) > 1 else math.inf
        if spread < self.config.least_spread:
            return f"the bank collapsed: its images differ by only {spread:.3g}"
        return None


def check_parameters(parameters: Sequence[Tensor]) -> str | None:
    """One sentence if a parameter is not finite."""
    if all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return None
    return "a parameter became non-finite"


def _exceeds(value: float, recent: list[float], factor: float, floor: float) -> bool:
    return len(recent) >= _ENOUGH and value > max(factor * statistics.median(recent), floor)
