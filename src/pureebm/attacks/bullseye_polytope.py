"""Bullseye Polytope: a clean-label, triggerless attack on transfer learning.

The mean feature of K poisons of class y is moved onto the target's feature, in all extractors phi_m at once:

    min over |d|_inf <= eps of  mean over m of  | mean_i phi_m(x_i + d_i) - phi_m(t) |  /  | phi_m(t) |

A head that calls the poisons y then calls the target y. The norm is not squared. For victims that train all weights
(`layers = "fine-tune"`) the same is summed over several layers and averaged: the last stage's maps before the last one,
with norms over channels at each place and their means over places, and the pooled vector.

White-, gray- and black-box are no settings: they say how the victim's extractor relates to the attacker's, which are
`Attacker.extractors` here. The same weights: white; other weights of the same network: gray; another network: black.

Source: Aghakhani et al., arXiv 2005.00191.
Differs: step and budget in [-1, 1] units (0.04 on normalized pixels is about 0.016 here; eps 0.1 is 25/255, rounded
down); bases are drawn at random; dropout acts on the features and maps that are compared, alike for all extractors, and
the target's features are computed once, without it: so that draws average out to them (the original's extractors drop
within, and the target's features are one random draw).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.targets import choose_goal
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError

Layers = Literal["linear", "fine-tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Bullseye Polytope; the defaults are the published ones for linear transfer, with 50 poisons of 500 images."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 25
    budget: Annotated[float, "share of the training set that is poisoned"] = 0.1
    target_index: Annotated[int | None, "the target's index in the test set; none: drawn from the seed"] = None
    intended_class: Annotated[int | None, "class of the poisons, wanted for the target; none: drawn from the seed"] = (
        None
    )
    layers: Annotated[Layers, "what is compared: features for victims with frozen extractors, or several layers"] = (
        "linear"
    )
    n_targets: Annotated[int, "images of the target's class whose mean feature is aimed at, all of them targets"] = 1
    nearest: Annotated[bool, "bases are the images nearest to the target in features, instead of random ones"] = False
    n_steps: Annotated[int, "updates of the poisons"] = 800
    step_size: Annotated[float, "Adam's rate, in [-1, 1] units"] = 0.016
    dropout: Annotated[float, "share of the poisons' features dropped at random; published: 0.2 to 0.3"] = 0.0
    n_draws: Annotated[int, "random draws of dropout an update, averaged; published: 1, 3 or 5"] = 1

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if self.layers not in ("linear", "fine-tune"):
            raise InputError(f"layers must be 'linear' or 'fine-tune', got '{self.layers}'")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if min(self.n_targets, self.n_steps, self.n_draws) < 1:
            raise InputError("n_targets, n_steps and n_draws must be at least 1")


FINE_TUNE = Config(layers="fine-tune", n_steps=1500, budget=0.01)
"""Published for victims that train all weights: 5 poisons of 500 images."""
QUICK = Config(n_steps=200)
"""For a CPU."""


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the intended class so that victims with such extractors read the target as that class.

    Args:
        data: the victim's (small) training set.
        attacker: its `extractors` are what the attacker knows; `test` holds the target.
        seed: of class, target, bases and dropout, where they are not given.

    Raises:
        InputError: no extractors, no test set, or fewer images of the class than poisons.
    """
    began = time.monotonic()
    goal, targets = choose_goal(
        attacker.test, config.intended_class, config.target_index, seed=seed, n=config.n_targets
    )
    intended = int(goal.intended_classes[0])
    bullseyes = [
        Bullseye.at(network, goal.images, config.layers, device=attacker.device)
        for network in known_extractors(attacker)
    ]
    rows = choose_rows(data, intended, config.budget, seed=seed)
    if config.nearest:
        rows = _nearest(data, intended, len(rows), bullseyes, attacker.device)
    box = Box.around(data.images[rows], config.eps, device=attacker.device)
    generator = torch.Generator(attacker.device).manual_seed(seed)

    def loss(images: Tensor) -> Tensor:
        misses = [bullseye.miss(images, config.dropout, config.n_draws, generator) for bullseye in bullseyes]
        return torch.stack(misses).mean()

    images, losses = descend(loss, box, config.n_steps, config.step_size, report=attacker.report)
    record = {
        "attack": "bullseye-polytope",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [type(network).__name__ for network in attacker.extractors],
        "intended_class": intended,
        "target_index": targets,
        "loss_start": losses[0],
        "loss_end": losses[-1],
    }
    return Poisoned(rows, box.rounded(images), data.labels[rows], goal, record)


def known_extractors(attacker: Attacker) -> Sequence[Classifier]:
    """The attacker's extractors, frozen and in eval mode as they come.

    Raises:
        InputError: there are none.
    """
    if not attacker.extractors:
        raise InputError("this attack is on transfer learning and needs a pretrained extractor; give at least one")
    return attacker.extractors


def layers_of(network: Classifier, images: Tensor, layers: Layers) -> list[Tensor]:
    """What is compared: (N, D) features; for "fine-tune" the (N, C, h, w) maps before the last one come first."""
    if layers == "linear":
        return [network.features(images)]
    return [*network.maps(images)[:-1], network.features(images)]


@dataclass(frozen=True, slots=True)
class Bullseye:
    """An extractor and the target's layers in it, each (1, C, ...): averaged over the targets."""

    network: Classifier
    layers: Layers
    centers: list[Tensor]

    @classmethod
    @torch.no_grad()
    def at(cls, network: Classifier, targets: Tensor, layers: Layers, *, device: str) -> Bullseye:
        """From (T, H, W, 3) uint8 targets."""
        network = network.to(device).eval()
        found = layers_of(network, as_batch(targets, device), layers)
        return cls(network, layers, [layer.mean(dim=0, keepdim=True) for layer in found])

    def miss(self, images: Tensor, dropout: float, n_draws: int, generator: torch.Generator) -> Tensor:
        """Relative distance of the mean of (K, 3, H, W) images to the target, averaged over layers; scalar."""
        layers = layers_of(self.network, images, self.layers)
        means = [_dropped_mean(layer, dropout, n_draws, generator) for layer in layers]
        return torch.stack([_miss(mean, center) for mean, center in zip(means, self.centers, strict=True)]).mean()


def _miss(mean: Tensor, center: Tensor) -> Tensor:
    """(1, C, ...) each: the norm over channels, averaged over places, of the difference relative to the center's."""
    distance: Tensor = torch.linalg.vector_norm(mean - center, dim=1).mean()
    size: Tensor = torch.linalg.vector_norm(center, dim=1).mean()
    return distance / size.clamp(min=1e-12)


def _dropped_mean(layer: Tensor, dropout: float, n_draws: int, generator: torch.Generator) -> Tensor:
    """Mean over the poisons, and over draws of dropout that has the layer itself as its mean: (1, C, ...)."""
    if not dropout:
        return layer.mean(dim=0, keepdim=True)
    share = torch.zeros_like(layer)
    for _ in range(n_draws):
        share += torch.rand(layer.shape, generator=generator, device=layer.device) >= dropout
    return (layer * share / (n_draws * (1 - dropout))).mean(dim=0, keepdim=True)


@torch.no_grad()
def _nearest(data: LabeledSet, label: int, n: int, bullseyes: Sequence[Bullseye], device: str) -> Tensor:
    """The n images of a class with the smallest relative feature distance, summed over extractors; ascending."""
    rows, distance = data.rows_of(label), torch.zeros(len(data.rows_of(label)))
    for bullseye in bullseyes:
        features = bullseye.network.features(as_batch(data.images[rows], device))
        center = bullseye.centers[-1]
        distance += ((features - center).norm(dim=1) / center.norm()).cpu()
    return rows[distance.topk(n, largest=False).indices].sort().values


def descend(
    loss: Callable[[Tensor], Tensor],
    box: Box,
    n_steps: int,
    step_size: float,
    *,
    start: Tensor | None = None,
    report: Callable[[str], None],
) -> tuple[Tensor, list[float]]:
    """Adam on images, inside the box: the images, detached, and the loss before each update and after the last.

    loss: (P, 3, H, W) in [-1, 1] -> scalar. start: None for the originals.
    """
    images = (box.start() if start is None else start.clone()).requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=step_size)
    losses = []
    for step in range(n_steps):
        value = loss(images)
        (images.grad,) = torch.autograd.grad(value, images)
        optimizer.step()
        box.clamp_(images.data)
        losses.append(value.item())
        if (step + 1) % max(1, n_steps // 10) == 0:
            report(f"step {step + 1}/{n_steps}: loss {losses[-1]:.4f}")
    images = images.detach()
    with torch.no_grad():
        return images, [*losses, loss(images).item()]
