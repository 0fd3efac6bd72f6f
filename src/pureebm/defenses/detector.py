"""Detectors: after a few epochs, images whose features do not fit their label are left out, once and for good.

Spectral signatures drop, in each class, what lies farthest along the direction of the class's largest spread: images
that share a trigger make a direction of their own. The deep k nearest neighbors drop an image whose neighbors mostly
carry another label: a poison that was crafted to lie at its target lies among strangers.

Sources: Tran, Li and Madry, Spectral Signatures in Backdoor Attacks, arXiv 1811.00636; Peri et al., Deep k-NN Defense
against Clean-label Data Poisoning Attacks, arXiv 1909.13374. Both are older than the purifiers of this package and
no part of their papers' tables: they stand here for the many defenses that detect instead of repairing.
Differs: both papers train, filter, and train anew; here the victim under training is looked at once and goes on with
what was kept. The number of neighbors is ours: as many as a class has images, so that poisons of less than half that
number do not outvote the images that they lie among.
Limit: an image that the network misreads has strangers for neighbors too, so that a weak network loses many clean
images to the second rule: 1,123 of 2,000 for a victim that reads 48 % of the test set without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from pureebm.defenses.features import features
from pureebm.errors import InputError
from pureebm.types import EpochData, TrainingData

log = logging.getLogger(__name__)

_BLOCK = 500  # images whose neighbors are sought at once
_FACTOR = 1.5  # images dropped for each that is expected to be a poison


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralConfig:
    """Spectral signatures."""

    after: Annotated[int, "epochs of training before images are dropped"] = 4
    expected: Annotated[float, "share of a class that may be poisoned; 1.5 times as many are dropped, in each"] = 0.05

    def __post_init__(self) -> None:
        if self.after < 0 or not 0 < self.expected < 1 / _FACTOR:
            allowed = f"after must be >= 0 and expected between 0 and {1 / _FACTOR:.2f}"
            raise InputError(f"{allowed}, got {self.after} and {self.expected}")

    def keeps(self, points: Tensor, labels: Tensor) -> Tensor:
        """(N, D) features and (N,) labels -> (N,) bool."""
        kept = torch.ones(len(labels), dtype=torch.bool)
        for label in sorted(set(labels.tolist())):
            rows = (labels == label).nonzero()[:, 0]
            centered = points[rows].double() - points[rows].double().mean(dim=0)
            direction = torch.linalg.svd(centered, full_matrices=False).Vh[0]
            farthest = (centered @ direction).abs().argsort(descending=True, stable=True)
            kept[rows[farthest[: int(_FACTOR * self.expected * len(rows))]]] = False
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborsConfig:
    """Deep k nearest neighbors."""

    after: Annotated[int, "epochs of training before images are dropped"] = 4
    ratio: Annotated[float, "neighbors that are asked, as a share of the mean size of a class"] = 1.0

    def __post_init__(self) -> None:
        if self.after < 0 or not self.ratio > 0:
            raise InputError(f"after must be >= 0 and ratio above 0, got {self.after} and {self.ratio}")

    def keeps(self, points: Tensor, labels: Tensor) -> Tensor:
        """(N, D) features and (N,) labels -> (N,) bool. Where two labels lead together, both may stay."""
        n, n_classes = len(labels), int(labels.max()) + 1
        k = min(max(round(self.ratio * n / len(set(labels.tolist()))), 1), n - 1)
        kept = []
        for rows in torch.split(torch.arange(n), _BLOCK):
            distances = torch.cdist(points[rows], points)
            distances[torch.arange(len(rows)), rows] = torch.inf  # nobody is its own neighbor
            near = labels[distances.topk(k, largest=False).indices]  # (block, k)
            votes = torch.zeros(len(rows), n_classes, dtype=torch.int64).scatter_add_(1, near, torch.ones_like(near))
            kept.append(votes.gather(1, labels[rows, None])[:, 0] == votes.amax(dim=1))
        return torch.cat(kept)


class DropOnce:
    """Drops rows before epoch `after`.

    Args:
        keeps: (N, D) features and (N,) labels on the CPU -> (N,) bool, the rows that stay.
        after: counted from 0.
    """

    def __init__(self, keeps: Callable[[Tensor, Tensor], Tensor], after: int) -> None:
        self.keeps, self.after = keeps, after
        self.rows: Tensor | None = None

    def before_training(self, network: nn.Module, data: TrainingData, /) -> TrainingData:
        """As it came."""
        return data

    def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData, /) -> EpochData:
        """All rows before epoch `after`, then those kept. Raises `InputError` for a network without features."""
        if epoch >= self.after and self.rows is None:
            self.rows = self.keeps(features(network, data.images), data.labels.cpu()).nonzero()[:, 0]
            log.info("detector: %d of %d images stay from epoch %d on", len(self.rows), len(data.labels), epoch)
        return EpochData(self.rows)
