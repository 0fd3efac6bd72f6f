"""Convex Polytope: a clean-label, triggerless attack on linear transfer learning.

Poisons x_i + d_i of class y are moved so that the target's feature lies in the polytope they span, in all extractors
phi_m; a linear head that calls all poisons y then calls the target y:

    min over |d|_inf <= eps, c^m on the simplex of  mean over m of
        | phi_m(t) - sum_i c^m_i phi_m(x_i + d_i) |^2  /  (2 | phi_m(t) |^2)

In turn: the best coefficients c^m for the poisons as they are, by projected gradient; one step on the poisons.

Source: Zhu et al., arXiv 1905.05897; step and number of updates of Schwarzschild et al., arXiv 2006.12557.
Differs: units as in `bullseye_polytope`; the coefficients' step is 1 / L with the exact L, the largest eigenvalue.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.bullseye_polytope import descend, known_extractors
from pureebm.attacks.targets import choose_goal
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Convex Polytope; the defaults are the benchmark's."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range; the original: 25"] = 8
    budget: Annotated[float, "share of the training set that is poisoned"] = 0.01
    target_index: Annotated[int | None, "the target's index in the test set; none: drawn from the seed"] = None
    intended_class: Annotated[int | None, "class of the poisons, wanted for the target; none: drawn from the seed"] = (
        None
    )
    n_steps: Annotated[int, "updates of the poisons"] = 1200
    step_size: Annotated[float, "Adam's rate, in [-1, 1] units"] = 0.016
    inner_steps: Annotated[int, "most updates of the coefficients for each of the poisons"] = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if min(self.n_steps, self.inner_steps) < 1:
            raise InputError("n_steps and inner_steps must be at least 1")


QUICK = Config(n_steps=200, inner_steps=100)
"""For a CPU."""


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the intended class so that victims with such extractors read the target as that class.

    Args:
        data: the victim's (small) training set.
        attacker: its `extractors` are what the attacker knows; `test` holds the target.
        seed: of class, target and bases, where they are not given.

    Raises:
        InputError: no extractors, no test set, or fewer images of the class than poisons.
    """
    began = time.monotonic()
    goal, target = choose_goal(attacker.test, config.intended_class, config.target_index, seed=seed)
    intended = int(goal.intended_classes[0])
    rows = choose_rows(data, intended, config.budget, seed=seed)
    box = Box.around(data.images[rows], config.eps, device=attacker.device)
    hulls = [Hull.at(network, goal.images, len(rows), attacker.device) for network in known_extractors(attacker)]

    def loss(images: Tensor) -> Tensor:
        return torch.stack([hull.miss(images, config.inner_steps) for hull in hulls]).mean()

    images, losses = descend(loss, box, config.n_steps, config.step_size, report=attacker.report)
    record = {
        "attack": "convex-polytope",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [type(network).__name__ for network in attacker.extractors],
        "intended_class": intended,
        "target_index": target[0],
        "loss_start": losses[0],
        "loss_end": losses[-1],
    }
    return Poisoned(rows, box.rounded(images), data.labels[rows], goal, record)


@dataclass(slots=True)
class Hull:
    """An extractor, the target's feature (D,) in it, and the coefficients (K,) that came nearest to it so far."""

    network: Classifier
    center: Tensor
    coefficients: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, network: Classifier, target: Tensor, n_poisons: int, device: str) -> Hull:
        """From a (1, H, W, 3) uint8 target; all poisons weigh the same at first."""
        network = network.to(device).eval()
        center = network.features(as_batch(target, device))[0]
        return cls(network, center, torch.full((n_poisons,), 1 / n_poisons, device=device))

    def miss(self, images: Tensor, inner_steps: int) -> Tensor:
        """Half the squared distance of the target to the polytope of (K, 3, H, W) images, relative to its norm."""
        features = self.network.features(images)
        self.coefficients = nearest_mixture(features.detach(), self.center, self.coefficients, n_steps=inner_steps)
        return (self.center - self.coefficients @ features).square().sum() / (2 * self.center.square().sum())


@torch.no_grad()
def nearest_mixture(points: Tensor, target: Tensor, start: Tensor, *, n_steps: int, tolerance: float = 1e-6) -> Tensor:
    """argmin over c on the simplex of |target - c @ points|: projected gradient from `start`.

    Args:
        points: (K, D). target: (D,). start: (K,).
        n_steps: the most updates; it ends earlier where the coefficients change by less than `tolerance`.

    Returns:
        (K,), not negative, with sum 1.
    """
    gram, pull = points @ points.T, points @ target
    rate = 1 / torch.linalg.eigvalsh(gram)[-1].clamp(min=1e-30)
    coefficients = start
    for _ in range(n_steps):
        moved = onto_simplex(coefficients - rate * (gram @ coefficients - pull))
        change = (moved - coefficients).norm()
        coefficients = moved
        if change < tolerance:
            break
    return coefficients


def onto_simplex(values: Tensor) -> Tensor:
    """(K,) -> the nearest (K,) that is not negative and has sum 1: what stays above a common threshold."""
    ordered = values.sort(descending=True).values
    excess = (ordered.cumsum(0) - 1) / torch.arange(1, len(values) + 1, device=values.device)
    threshold = excess[(ordered > excess).sum() - 1]
    return (values - threshold).clamp(min=0)
