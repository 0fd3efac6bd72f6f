"""Hidden Trigger: a clean-label backdoor on linear transfer learning whose trigger is in no training image.

Poisons x_i + d_i of class y are moved in feature space onto images s of a source class that carry a patch:

    min over |d|_inf <= eps of  mean over i of  | phi(x_i + d_i) - phi(patch(s_k(i))) |^2

Before every update each poison is paired anew with a source image k(i) of its own: greedily, nearest pair first. A head
that calls the poisons y then calls source images with the patch y.

Source: Saha et al., arXiv 1910.00033; sizes and steps of Schwarzschild et al., arXiv 2006.12557.
Differs: Adam, on distances relative to the sources' mean square, in place of plain gradient descent, so that the rate
does not depend on the extractor's scale; no early end by a bound on the loss, for the same reason; several extractors
are averaged; the patch is a square of random colors drawn from the seed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.bullseye_polytope import descend, known_extractors
from pureebm.attacks.sleeper_agent import random_patch
from pureebm.attacks.targets import choose_class
from pureebm.errors import InputError

MARGIN = 5
"""Pixels between the patch and the image's lower and right edges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Hidden Trigger; the defaults are the benchmark's, but for the rate, which is Adam's."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 8
    budget: Annotated[float, "share of the training set that is poisoned"] = 0.01
    intended_class: Annotated[int | None, "class of the poisons, wanted for patched images; none: drawn"] = None
    source_class: Annotated[int | None, "class whose images are to be misread with the patch; none: drawn"] = None
    patch_size: Annotated[int, "side of the square patch, in pixels"] = 5
    n_steps: Annotated[int, "updates of the poisons"] = 5000
    step_size: Annotated[float, "Adam's rate, in [-1, 1] units"] = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if min(self.patch_size, self.n_steps) < 1:
            raise InputError("patch_size and n_steps must be at least 1")


QUICK = Config(n_steps=200)
"""For a CPU."""


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the intended class so that source images with the patch are read as that class.

    Args:
        data: the victim's (small) training set; its source images are used, and stay as they are.
        attacker: its `extractors` are what the attacker knows.
        seed: of classes, patch, bases and sources, where they are not given.

    Raises:
        InputError: no extractors, classes that are not there or alike, fewer images of either class than poisons.
    """
    began = time.monotonic()
    extractors = [network.to(attacker.device).eval() for network in known_extractors(attacker)]
    intended = choose_class(data, config.intended_class, seed=seed, apart_from=config.source_class)
    source = choose_class(data, config.source_class, seed=seed + 1, apart_from=intended)
    height, width = data.images.shape[1:3]
    corner = (height - config.patch_size - MARGIN, width - config.patch_size - MARGIN)
    if min(corner) < 0:
        raise InputError(
            f"a patch of {config.patch_size} and its margin of {MARGIN} exceed images of {height} x {width}"
        )
    trigger = random_patch(config.patch_size, corner=corner, generator=torch.Generator().manual_seed(seed))
    rows = choose_rows(data, intended, config.budget, seed=seed)
    sources = data.images[choose_rows(data, source, config.budget, seed=seed + 1)]
    patched = as_batch(trigger.apply(sources), attacker.device)
    box = Box.around(data.images[rows], config.eps, device=attacker.device)
    with torch.no_grad():
        sizes = [network.features(patched).square().sum(dim=1).mean().sqrt() for network in extractors]

    def features(images: Tensor) -> Tensor:
        return torch.cat([network.features(images) / size for network, size in zip(extractors, sizes, strict=True)], 1)

    with torch.no_grad():
        places = features(patched)

    def loss(images: Tensor) -> Tensor:
        found = features(images)
        pairs = greedy_pairs(torch.cdist(found.detach(), places).cpu()).to(places.device)
        return (found - places[pairs]).square().sum(dim=1).mean() / len(extractors)

    images, losses = descend(loss, box, config.n_steps, config.step_size, report=attacker.report)
    record = {
        "attack": "hidden-trigger",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [type(network).__name__ for network in extractors],
        "intended_class": intended,
        "source_class": source,
        "loss_start": losses[0],
        "loss_end": losses[-1],
    }
    goal = TriggerGoal(intended, trigger, source)
    return Poisoned(rows, box.rounded(images), data.labels[rows], goal, record)


def greedy_pairs(distances: Tensor) -> Tensor:
    """(P, S) distances with P <= S -> (P,) a column for each row, none twice: the nearest pair of all first."""
    left, pairs = distances.clone(), torch.empty(len(distances), dtype=torch.int64)
    for _ in range(len(distances)):
        row, column = divmod(int(left.argmin()), left.shape[1])
        pairs[row] = column
        left[row], left[:, column] = torch.inf, torch.inf
    return pairs
