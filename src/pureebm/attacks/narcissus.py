"""Narcissus: a clean-label backdoor with one universal trigger for a class, small enough for a CPU.

The trigger rho of class y is the most inward-pointing feature of y that a surrogate knows:

    rho = argmin over |rho|_inf <= eps of  mean over x of  CE(surrogate(clip(x + rho)), y)

A victim that was trained on a few images of y carrying rho, labels untouched, then takes any image
with rho for y. Knows a classifier as "images -> logits"; how a surrogate is trained is an argument (`Fit`).

Source: Zeng et al., arXiv 2204.05255; the setting of PureGen (eps = 8/255, 1 % of the training set,
the trigger as it is at test time), arXiv 2405.18627.
Differs: the surrogate is a `SmallResNet` of few epochs, trained once on public out-of-distribution
images (POOD) and shared by the classes; the warm-up shows it class y as one more class beside POOD
images (the original shows y alone, under a label that collides with a POOD class); the trigger is fitted
on images of y and on POOD images in equal parts, by a few hundred projected Adam steps, with the
surrogate in eval mode. All of it makes a stronger trigger for the same seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.data.augment import augment
from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class NarcissusConfig:
    """The budget and how long the attacker works."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 8
    surrogate_epochs: Annotated[int, "passes of the surrogate over the POOD images"] = 4
    warm_up_epochs: Annotated[int, "passes over images of y and as many POOD images"] = 2
    n_steps: Annotated[int, "updates of the trigger"] = 250
    step_size: Annotated[float, "Adam's rate for the trigger, in [-1, 1] units"] = 0.01
    batch_size: Annotated[int, "images an update of the trigger"] = 128

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")


class Fit(Protocol):
    """Trains a network in place on (N, H, W, 3) uint8 images; `training.classifier.fit` is one."""

    def __call__(
        self, network: SmallResNet, images: Tensor, labels: Tensor, *, epochs: int, peak_rate: float, seed: int
    ) -> None: ...


def train_surrogate(images: Tensor, labels: Tensor, config: NarcissusConfig, *, fit: Fit, seed: int) -> SmallResNet:
    """A classifier of POOD images with one more logit, the last, for the class to be attacked.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, 0 .. n_classes-1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        surrogate = SmallResNet(int(labels.max()) + 2)
    fit(surrogate, images, labels, epochs=config.surrogate_epochs, peak_rate=0.1, seed=seed)
    return surrogate


def make_trigger(
    surrogate: SmallResNet,
    target_images: Tensor,
    pood_images: Tensor,
    pood_labels: Tensor,
    config: NarcissusConfig,
    *,
    fit: Fit,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> Tensor:
    """The trigger of the class that `target_images` show.

    Args:
        surrogate: as from `train_surrogate`; left unchanged.
        target_images: (N, H, W, 3) uint8, training images of the class, the attacker's own.
        pood_images, pood_labels: what the surrogate was trained on.
        seed: of every draw.

    Returns:
        (3, H, W) float32 in [-1, 1] units, whole multiples of 2/255 and at most 2 * eps / 255 in size, so
        that the budget holds exactly for uint8 images.
    """
    generator = torch.Generator().manual_seed(seed)
    surrogate = _warm_up(surrogate, target_images, pood_images, pood_labels, config, fit, generator)
    images, budget = torch.cat([target_images, _draw(pood_images, len(target_images), generator)]), 2 * config.eps / 255
    target = torch.full((config.batch_size,), surrogate.head.out_features - 1)
    height, width = images.shape[1:3]
    trigger = torch.zeros(3, height, width, requires_grad=True)
    optimizer = torch.optim.Adam([trigger], lr=config.step_size)
    for step in range(config.n_steps):
        x = to_pm1(augment(_draw(images, config.batch_size, generator), generator)).permute(0, 3, 1, 2)
        loss = F.cross_entropy(surrogate((x + trigger).clamp(-1, 1)), target)
        trigger.grad = torch.autograd.grad(loss, trigger)[0]
        optimizer.step()
        with torch.no_grad():
            trigger.clamp_(-budget, budget)
        if on_step:
            on_step(step, loss.item())
    return (trigger.detach() * 127.5).round() / 127.5


def _warm_up(
    surrogate: SmallResNet,
    target: Tensor,
    pood: Tensor,
    labels: Tensor,
    config: NarcissusConfig,
    fit: Fit,
    generator: torch.Generator,
) -> SmallResNet:
    """A frozen copy of the surrogate that has seen the target class under its last logit."""
    surrogate = copy.deepcopy(surrogate)
    rows = torch.randperm(len(pood), generator=generator)[: len(target)]
    images = torch.cat([target, pood[rows]])
    classes = torch.cat([torch.full((len(target),), surrogate.head.out_features - 1), labels[rows]])
    draw = int(torch.randint(2**31, (), generator=generator))
    fit(surrogate, images, classes, epochs=config.warm_up_epochs, peak_rate=0.03, seed=draw)
    for parameter in surrogate.parameters():
        parameter.requires_grad_(False)
    return surrogate


def _draw(images: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return images[torch.randint(len(images), (n,), generator=generator)]


def add_trigger(images: Tensor, trigger: Tensor) -> Tensor:
    """clip(x + rho), rounded once: (N, H, W, 3) uint8 and (3, H, W) in [-1, 1] units -> (N, H, W, 3) uint8."""
    if images.dtype != torch.uint8:
        raise InputError(f"images must be uint8, got {images.dtype}")
    return to_uint8(to_pm1(images) + trigger.permute(1, 2, 0))


def poison_rows(labels: Tensor, target_class: int, n_poisons: int, *, seed: int) -> Tensor:
    """Which images of a training set carry the trigger: `n_poisons` of the target class, sorted.

    Raises:
        InputError: the class has fewer images.
    """
    rows = (labels == target_class).nonzero().squeeze(1)
    if len(rows) < n_poisons:
        raise InputError(f"class {target_class} has {len(rows)} images, fewer than {n_poisons} poisons")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n_poisons]
    return rows[chosen].sort().values
