"""Feature Collision (Poison Frogs): a clean-label, triggerless attack on linear transfer learning.

Each poison x_i + d_i of class y is moved onto the target in feature space, while it stays near its base x_i in pixels:

    min over |d|_inf <= eps of  sum over m of  | phi_m(x_i + d_i) - phi_m(t) |^2  /  | phi_m(t) |^2

It starts from a watermark, 0.7 x_i + 0.3 t, and goes by gradient steps, each followed by a step back into the box.
Where a poison's objective would rise, the step is not taken and its rate is cut to a fifth; where it falls, the rate
grows.

Source: Shafahi et al., arXiv 1804.00792, in the l-inf form of Schwarzschild et al., arXiv 2006.12557.
Differs: the objective is relative to the target's feature, so that the rate does not depend on an extractor's scale;
poisons work side by side, each with its own rate, which may grow again (the originals only shrink it).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.bullseye_polytope import known_extractors
from pureebm.attacks.targets import choose_goal
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError

GROWTH = 1.5
"""Of a poison's rate after a step that was taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Feature Collision; the defaults are the benchmark's."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 8
    budget: Annotated[float, "share of the training set that is poisoned"] = 0.01
    target_index: Annotated[int | None, "the target's index in the test set; none: drawn from the seed"] = None
    intended_class: Annotated[int | None, "class of the poisons, wanted for the target; none: drawn from the seed"] = (
        None
    )
    n_steps: Annotated[int, "most updates of a poison"] = 120
    step_size: Annotated[float, "rate of the first step"] = 1.0
    watermark: Annotated[float, "share of the target in the start, before it is cut to the budget"] = 0.3
    tolerance: Annotated[float, "a poison whose objective falls by a smaller share than this is done"] = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if not 0 <= self.watermark <= 1:
            raise InputError(f"watermark is a share, 0 to 1; got {self.watermark}")


QUICK = Config()
"""For a CPU: the published setting is quick."""


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
    extractors = [network.to(attacker.device).eval() for network in known_extractors(attacker)]
    goal, index = choose_goal(attacker.test, config.intended_class, config.target_index, seed=seed)
    intended = int(goal.intended_classes[0])
    rows = choose_rows(data, intended, config.budget, seed=seed)
    box = Box.around(data.images[rows], config.eps, device=attacker.device)
    target = as_batch(goal.images, attacker.device)
    images, losses = collide(box, target, extractors, config, attacker)
    record = {
        "attack": "feature-collision",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [type(network).__name__ for network in extractors],
        "intended_class": intended,
        "target_index": index[0],
        "loss_start": losses[0],
        "loss_end": losses[-1],
    }
    return Poisoned(rows, box.rounded(images), data.labels[rows], goal, record)


def collide(
    box: Box, target: Tensor, extractors: Sequence[Classifier], config: Config, attacker: Attacker
) -> tuple[Tensor, list[float]]:
    """The poisons (P, 3, H, W) in the box, and their mean objective at the start and after each update: it never rises.

    target: (1, 3, H, W) in [-1, 1].
    """
    with torch.no_grad():
        centers = [network.features(target) for network in extractors]

    def objective(images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.detach().requires_grad_(True)
        misses = [_miss(net.features(images), center) for net, center in zip(extractors, centers, strict=True)]
        values = torch.stack(misses).sum(dim=0)
        return values.detach(), torch.autograd.grad(values.sum(), images)[0]

    images = box.clamp_(torch.lerp(box.start(), target.expand_as(box.low), config.watermark))
    values, gradients = objective(images)
    rates, active = torch.full_like(values, config.step_size), torch.ones_like(values, dtype=torch.bool)
    losses = [values.mean().item()]
    for step in range(config.n_steps):
        tried = box.clamp_(images - rates.view(-1, 1, 1, 1) * gradients)
        new_values, new_gradients = objective(tried)
        taken = active & (new_values <= values)
        active &= ~(taken & (values - new_values <= config.tolerance * values))
        images = torch.where(taken.view(-1, 1, 1, 1), tried, images)
        gradients = torch.where(taken.view(-1, 1, 1, 1), new_gradients, gradients)
        values = torch.where(taken, new_values, values)
        rates = torch.where(taken, rates * GROWTH, rates * 0.2)
        losses.append(values.mean().item())
        if (step + 1) % max(1, config.n_steps // 10) == 0:
            attacker.report(f"step {step + 1}/{config.n_steps}: objective {losses[-1]:.4f}")
        if not active.any():
            break
    return images, losses


def _miss(features: Tensor, center: Tensor) -> Tensor:
    """(P, D) and (1, D) -> (P,) squared distances, relative to the center's square."""
    return (features - center).square().sum(dim=1) / center.square().sum().clamp(min=1e-30)
