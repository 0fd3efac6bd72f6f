"""Pictures of a training, and the number of sampling steps that they suggest."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pureebm.sampling.langevin import LangevinConfig
from pureebm.training.scalars import read_scalars
from pureebm.types import Energy

Points = list[tuple[int, float]]


def curves(path: Path, most: int = 2000) -> dict[str, Points]:
    """Every scalar of a log as (step, value) points, at most about `most` of each."""
    found: dict[str, Points] = {}
    for record in read_scalars(path):
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                found.setdefault(name, []).append((record["step"], float(value)))
    return {name: points[:: max(1, len(points) // most)] for name, points in found.items()}


def draw_curves(log: Path, folder: Path) -> None:
    pass


def draw_diagnostics(energy: Energy, images: Tensor, config: LangevinConfig, folder: Path, *, log: Path, seed: int = 0) -> int:
    return config.n_steps
