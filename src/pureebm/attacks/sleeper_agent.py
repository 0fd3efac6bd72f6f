"""Sleeper Agent: a clean-label backdoor for training from scratch, made by matching gradients.

As Gradient Matching, but what is to be learned is a patch: the target gradient is the mean over all training images of
a source class, with the patch at random places, of the gradient of reading them as the intended class y:

    min over |d|_inf <= eps of  1 - cos( grad mean_s CE(f(patch(s)), y),  grad mean_i CE(f(T(x_i + d_i)), y) )

Poisons are the images of y with the largest gradients; the surrogate is trained anew on the current poisons a few times
on the way. The patch itself is in no training image. Knows nothing of how a surrogate is trained.

Source: Souri et al., arXiv 2106.08970.
Differs: units and rate as in `gradient_matching`; the patch is a square of random colors drawn from the seed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.gradient_matching import (
    Aim,
    Matching,
    batches,
    final_loss,
    loss_gradient,
    match,
    noise,
    train_surrogates,
    trainable_copy,
)
from pureebm.attacks.targets import choose_class
from pureebm.attacks.triggers import PatchTrigger
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Matching):
    """Sleeper Agent; the defaults are the published ones."""

    source_class: Annotated[int | None, "class whose images are to be misread with the patch; none: drawn"] = None
    patch_size: Annotated[int, "side of the square patch, in pixels"] = 8
    retrainings: Annotated[int, "times the surrogates are trained anew on the poisons, evenly spread"] = 4

    def __post_init__(self) -> None:
        Matching.__post_init__(self)
        if not 0 <= self.retrainings < self.n_steps:
            raise InputError(f"retrainings must be 0 .. {self.n_steps - 1}, below n_steps; got {self.retrainings}")


QUICK = Config(surrogate_epochs=None, n_steps=100, retrainings=2)
"""For a CPU."""


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the intended class so that source images with the patch are read as that class.

    Args:
        data: the clean training set; its images of the source class carry the patch for the target gradient only.
        attacker: trains the surrogates; nothing else of it is used.
        seed: of classes, patch and its places, surrogates, start and augmentation, where they are not given.

    Raises:
        InputError: classes that are not there or alike, a patch larger than the images, too few images of the class.
    """
    began = time.monotonic()
    intended = choose_class(data, config.intended_class, seed=seed, apart_from=config.source_class)
    source = choose_class(data, config.source_class, seed=seed + 1, apart_from=intended)
    generator = torch.Generator().manual_seed(seed)
    trigger = random_patch(config.patch_size, corner=None, generator=generator)
    goal = TriggerGoal(intended, trigger, source)

    surrogates = train_surrogates(data, config, attacker=attacker, seed=seed)
    rows = _largest_gradients(data, intended, config.budget, surrogates[0], attacker.device)
    box, labels = Box.around(data.images[rows], config.eps, device=attacker.device), data.labels[rows]
    aims = [_aim(network, data, goal, seed=seed, device=attacker.device) for network in surrogates]
    retrain_at = {config.n_steps * turn // (config.retrainings + 1) for turn in range(1, config.retrainings + 1)}

    def aims_at(step: int, images: Tensor) -> list[Aim]:
        if step in retrain_at:
            poisoned = Poisoned(rows, box.rounded(images), labels, goal).apply(data)
            fresh = train_surrogates(poisoned, config, attacker=attacker, seed=seed + step * config.n_surrogates)
            aims[:] = [_aim(network, data, goal, seed=seed + step, device=attacker.device) for network in fresh]
        return aims

    def report(step: int, loss: float) -> None:
        attacker.report(f"step {step}/{config.n_steps}: loss {loss:.4f}")

    start = box.clamp_(box.start() + noise(box, generator))
    there = labels.to(attacker.device)
    images, first = match(start, there, aims_at, config, box, generator=generator, report=report)
    pixels = box.rounded(images)
    record = {
        "attack": "sleeper-agent",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [
            f"{config.network(index) or 'default'}, clean, then poisoned {config.retrainings} times"
            for index in range(config.n_surrogates)
        ],
        "intended_class": intended,
        "source_class": source,
        "loss_start": first,
        "loss_end": final_loss(pixels, there, aims, config, seed=seed),
    }
    return Poisoned(rows, pixels, labels, goal, record)


def random_patch(size: int, *, corner: tuple[int, int] | None, generator: torch.Generator) -> PatchTrigger:
    """A square of random colors."""
    if size < 1:
        raise InputError(f"patch_size must be at least 1, got {size}")
    return PatchTrigger(torch.randint(256, (size, size, 3), generator=generator, dtype=torch.uint8), corner)


def _aim(network: Classifier, data: LabeledSet, goal: TriggerGoal, *, seed: int, device: str) -> Aim:
    """The gradient of reading all patched training images of the source class as the target class."""
    assert goal.source_class is not None and goal.target_class is not None
    sources = goal.trigger.apply(data.images[data.rows_of(goal.source_class)], seed=seed)
    intended = torch.full((len(sources),), goal.target_class, dtype=torch.int64)
    return Aim.at(network, sources, intended, device=device)


def _largest_gradients(data: LabeledSet, label: int, budget: float, network: Classifier, device: str) -> Tensor:
    """The images of a class on which training moves the network most, as many as the budget says, ascending."""
    count = len(choose_rows(data, label, budget, seed=0))
    rows = data.rows_of(label)
    norms = gradient_norms(network, data.images[rows], data.labels[rows], device=device)
    return rows[norms.topk(count).indices].sort().values


def gradient_norms(network: Classifier, images: Tensor, labels: Tensor, *, device: str) -> Tensor:
    """(N,) norm over all parameters of each image's loss gradient; (N, H, W, 3) uint8 images."""
    network = trainable_copy(network, device)
    pixels, labels = as_batch(images, device), labels.to(device)
    norms = [
        torch.linalg.vector_norm(loss_gradient(network, pixels[row], labels[row])) for row in batches(len(labels), 1)
    ]
    return torch.stack(norms).cpu()
