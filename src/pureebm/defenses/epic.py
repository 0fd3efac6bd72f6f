"""EPIC: images whose gradients are like nobody else's in their class are left out of training.

Every few epochs each class is clustered around medoids, in the space of the gradients of the last layer

    g_i = softmax(W h_i) - onehot(y_i),        s_ij = exp(-|g_i - g_j| / C),

where h_i are the features of image i and C is the number of classes. The medoids S, a fixed share of the class, are
chosen greedily to maximize sum_i max over j in S of s_ij (facility location). A medoid that attracts no other image is
dropped, for good.

Source: Yang et al., Not All Poisons are Created Equal, arXiv 2210.09671, and the authors' code; the shares 0.1, 0.2 and
0.3, and the schedule `puregen`, are those of PureGen's tables (arXiv 2405.18627).
Differs: PureGen's port reads positions in a shuffled loader as rows and so drops other images than those chosen; this
follows the original. The original's rule not to select after the last fall of the rate is left to `stop_after`.
A class that is so small that it gets no medoid keeps all its images.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pureebm.defenses.features import as_classifier, features
from pureebm.errors import InputError
from pureebm.types import EpochData, TrainingData

log = logging.getLogger(__name__)

WHOLE = 16_384
"""Largest class whose similarities are all held at once (1 GiB); those of a larger one are made row by row."""

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How many medoids there are, and when images are dropped. Epochs are counted from 0."""

    share: Annotated[float, "medoids, as a share of the training set"] = 0.1
    every: Annotated[int, "epochs between two selections, which fall on its multiples"] = 10
    drop_after: Annotated[int, "no selection before this epoch"] = 10
    stop_after: Annotated[int, "no selection in this epoch and later"] = 200
    threshold: Annotated[float, "clusters must be larger than this; smaller ones are dropped"] = 1.0
    bias: Annotated[bool, "the head's bias enters the gradients, as the original has it for backdoors"] = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"share must lie between 0 and 1, got {self.share}")
        if self.every < 1 or self.drop_after < 0:
            raise InputError(f"every must be >= 1 and drop_after >= 0, got {self.every} and {self.drop_after}")

    def selects(self, epoch: int) -> bool:
        """Whether images are dropped before this epoch."""
        return epoch % self.every == 0 and self.drop_after <= epoch < self.stop_after


PRESETS: Mapping[str, Config] = MappingProxyType(
    {
        "puregen": Config(),
        "original": Config(drop_after=1),
        "original-40": Config(every=2, drop_after=10, stop_after=36),  # as published for 40 epochs of training
        "short": Config(every=1, drop_after=2, stop_after=8),  # the same, for 8 epochs
    }
)


class Epic:
    """Drops isolated images before the epochs of its schedule.

    Args:
        seed: of the classes that give up a medoid, where the shares do not come out even.
    """

    def __init__(self, config: Config, *, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.kept: Tensor | None = None  # (N,) bool, None before the first selection

    def before_training(self, network: nn.Module, data: TrainingData, /) -> TrainingData:
        """As it came."""
        return data

    def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData, /) -> EpochData:
        """The rows that no selection has dropped so far. Raises `InputError` for a network without a linear head."""
        if self.config.selects(epoch):
            found = self._select(last_layer_gradients(network, data, bias=self.config.bias), data.labels.cpu())
            self.kept = found if self.kept is None else self.kept & found
            log.info("epic: epoch %d trains on %d of %d images", epoch, int(self.kept.sum()), len(found))
        return EpochData(None if self.kept is None else self.kept.nonzero()[:, 0])

    def _select(self, gradients: Tensor, labels: Tensor) -> Tensor:
        """Which of all images, also those dropped before, this selection keeps: (N,) bool."""
        classes = [(labels == label).nonzero()[:, 0] for label in sorted(set(labels.tolist()))]
        total = int(self.config.share * len(labels))
        budgets = class_budgets([len(rows) for rows in classes], total, self.generator)
        kept = torch.ones(len(labels), dtype=torch.bool)
        for rows, budget in zip(classes, budgets, strict=True):
            if budget:
                owner = medoids(gradients[rows], budget).owner
                kept[rows] = owner.bincount()[owner] > self.config.threshold
        return kept


def last_layer_gradients(network: nn.Module, data: TrainingData, *, bias: bool) -> Tensor:
    """(N, n_classes) float32 on the CPU: the cross-entropy's gradient at the logits."""
    head = as_classifier(network).head
    weight, offset = head.weight.detach().cpu(), head.bias.detach().cpu() if bias and head.bias is not None else None
    likely = F.linear(features(network, data.images), weight, offset).softmax(dim=1)
    return likely - F.one_hot(data.labels.cpu(), likely.shape[1])


def class_budgets(sizes: Sequence[int], total: int, generator: torch.Generator) -> list[int]:
    """`total` medoids, shared by classes of these sizes: their parts rounded up, then random classes give up one."""
    budgets = [-(-size * total // sum(sizes)) for size in sizes]
    filled = [place for place, budget in enumerate(budgets) if budget]
    for place in torch.randperm(len(filled), generator=generator)[: sum(budgets) - total].tolist():
        budgets[filled[place]] -= 1
    return budgets


@dataclass(frozen=True, slots=True)
class Medoids:
    """order: the points chosen, in turn; gains: what each added to the objective; owner: (N,) for each point the
    place in `order` of the medoid most similar to it, the first of equals."""

    order: list[int]
    gains: list[float]
    owner: Tensor


def medoids(points: Tensor, budget: int) -> Medoids:
    """Greedy facility location of (N, D) points: exact, evaluated lazily; of equal gains the lowest index wins.

    A gain only shrinks while medoids are added. So the old gains are bounds, and a point whose new gain still beats all
    others' bounds is the best one without a look at them.

    Args:
        budget: how many medoids, 1 to N.
    """
    row_of = _similarities(points)
    cover, owner = np.zeros(len(points), np.float32), np.zeros(len(points), np.int64)

    def gain_of(place: int) -> float:
        return float(np.maximum(row_of(place) - cover, 0).sum(dtype=np.float64))

    heap = [(-gain_of(place), place) for place in range(len(points))]
    heapq.heapify(heap)
    order, gains = [], []
    for position in range(budget):
        gain, place = _best(heap, gain_of)
        row = row_of(place)
        owner[row > cover] = position
        cover = np.maximum(cover, row)
        order.append(place)
        gains.append(gain)
    return Medoids(order, gains, torch.from_numpy(owner))


def _best(heap: list[tuple[float, int]], gain_of: Callable[[int], float]) -> tuple[float, int]:
    """Takes the point of the largest gain out of a heap of (-bound, point); renews the bounds it looked at."""
    place = heapq.heappop(heap)[1]
    candidate = (-gain_of(place), place)
    while heap and candidate > heap[0]:
        place = heapq.heappushpop(heap, candidate)[1]
        candidate = (-gain_of(place), place)
    return -candidate[0], place


def _similarities(points: Tensor) -> Callable[[int], Row]:
    """Point -> its similarity exp(-|x_i - x_j| / D) to every point, (N,) float32."""

    def to_all(some: Tensor) -> Row:
        distances = torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")
        similar: Row = distances.div_(-points.shape[1]).exp_().numpy()
        return similar

    if len(points) > WHOLE:
        return lambda place: to_all(points[place : place + 1])[0]
    whole = to_all(points)
    return lambda place: whole[place]
