"""Gradient Matching (Witches' Brew): a clean-label, triggerless attack on training from scratch.

Poisons x_i + d_i of class y are made so that a step of training on them is a step towards reading the target t as y:

    min over |d|_inf <= eps of  1 - cos( grad CE(f(t), y),  grad mean_i CE(f(T(x_i + d_i)), y) )

with gradients over all parameters of a surrogate f that was trained on the clean set, and T a random shift and flip.
Several surrogates: each has its own target gradient; their losses are averaged. Some restarts; the best is kept.
Knows a surrogate as "images -> logits", and nothing of how it was trained.

Source: Geiping et al., arXiv 2009.02276.
Differs: steps and budget are in [-1, 1] units, alike for all channels (the original works on normalized pixels: its
rate 0.1 is about 0.05 here), and the rate is not scaled by the batch size; restarts are compared after their last
update and on the same random shifts (the original compares what it saw before the last update, each on its own).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, choose_rows
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.targets import choose_goal
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """What all attacks by matching of gradients can choose."""

    eps: Annotated[int, "largest change of a pixel, in steps of 1/255 of the [0, 1] range"] = 16
    budget: Annotated[float, "share of the training set that is poisoned"] = 0.01
    intended_class: Annotated[int | None, "class of the poisons, wanted for the target; none: drawn from the seed"] = (
        None
    )
    n_surrogates: Annotated[int, "networks whose gradients are matched at once"] = 1
    networks: Annotated[str, "the surrogates' networks by name, separated by commas, in turn; empty: the default"] = ""
    surrogate_epochs: Annotated[int | None, "passes of a surrogate over the training set; none: as victims do"] = 40
    n_steps: Annotated[int, "updates of the poisons, a restart"] = 250
    step_size: Annotated[float, "Adam's rate for the signs of gradients, in [-1, 1] units"] = 0.05
    batch_size: Annotated[int, "poisons whose mean gradient is matched at once"] = 512
    shift: Annotated[float, "largest shift of the differentiable augmentation, in pixels; below 0: no augmentation"] = 4

    def __post_init__(self) -> None:
        if not 0 < self.eps <= 255:
            raise InputError(f"eps is in steps of 1/255 and must be 1 to 255, got {self.eps}")
        if min(self.n_surrogates, self.n_steps, self.batch_size) < 1:
            raise InputError("n_surrogates, n_steps and batch_size must be at least 1")

    def network(self, index: int) -> str | None:
        """Name of the network of a surrogate, None for the attacker's default."""
        names = [name.strip() for name in self.networks.split(",") if name.strip()]
        return names[index % len(names)] if names else None

    def rate(self, step: int) -> float:
        """Adam's rate at update 0 .. n_steps-1: divided by 10 after 3/8, 5/8 and 7/8 of them."""
        drops = sum(step >= int(self.n_steps / part) for part in (2.667, 1.6, 1.142))
        return self.step_size / self.n_surrogates * 0.1**drops


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Matching):
    """Gradient Matching; the defaults are the published ones (the benchmark's poisons have eps 8)."""

    target_index: Annotated[int | None, "the target's index in the test set; none: drawn from the seed"] = None
    restarts: Annotated[int, "fresh starts of the poisons, the best of which is kept"] = 8

    def __post_init__(self) -> None:
        Matching.__post_init__(self)
        if self.restarts < 1:
            raise InputError(f"restarts must be at least 1, got {self.restarts}")


QUICK = Config(surrogate_epochs=None, n_steps=100, restarts=2)
"""For a CPU."""


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison images of the intended class so that one test image is read as that class.

    Args:
        data: the clean training set.
        attacker: trains the surrogates and holds the test set of the target.
        seed: of class, target, poisons, surrogates, starts and augmentation, where they are not given.

    Raises:
        InputError: no test set, a target or class that is not there, or fewer images of the class than poisons.
    """
    began = time.monotonic()
    goal, target = choose_goal(attacker.test, config.intended_class, config.target_index, seed=seed)
    intended = int(goal.intended_classes[0])
    rows = choose_rows(data, intended, config.budget, seed=seed)
    box = Box.around(data.images[rows], config.eps, device=attacker.device)
    labels = data.labels[rows].to(attacker.device)
    surrogates = train_surrogates(data, config, attacker=attacker, seed=seed)
    aims = [Aim.at(network, goal.images, goal.intended_classes, device=attacker.device) for network in surrogates]

    tries, losses = [], []
    for restart in range(config.restarts):
        generator = torch.Generator().manual_seed(seed * config.restarts + restart)
        start = box.clamp_(box.start() + noise(box, generator))

        def report(step: int, loss: float, restart: int = restart) -> None:
            attacker.report(f"restart {restart + 1}/{config.restarts}, step {step}/{config.n_steps}: loss {loss:.4f}")

        images, first = match(start, labels, lambda step, images: aims, config, box, generator=generator, report=report)
        tries.append(box.rounded(images))
        losses.append((first, final_loss(tries[-1], labels, aims, config, seed=seed)))
    best = min(range(config.restarts), key=lambda index: losses[index][1])
    record = {
        "attack": "gradient-matching",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.monotonic() - began,
        "surrogates": [f"{config.network(index) or 'default'}, clean" for index in range(config.n_surrogates)],
        "intended_class": intended,
        "target_index": target[0],
        "loss_start": losses[best][0],
        "loss_end": losses[best][1],
        "restart_losses": [last for _, last in losses],
    }
    return Poisoned(rows, tries[best], data.labels[rows], goal, record)


def train_surrogates(data: LabeledSet, config: Matching, *, attacker: Attacker, seed: int) -> list[Classifier]:
    """The surrogates as they come from the attacker: in eval mode and frozen. Seeds count up from `seed`."""
    return [
        attacker.train(data, seed=seed + index, epochs=config.surrogate_epochs, network=config.network(index))
        for index in range(config.n_surrogates)
    ]


@dataclass(frozen=True, slots=True)
class Aim:
    """A surrogate and the gradient that training on the poisons is to have there.

    network: a private copy in eval mode, its parameters requiring gradients. gradient: (D,) over all of them.
    """

    network: Classifier
    gradient: Tensor

    @classmethod
    def at(cls, network: Classifier, images: Tensor, labels: Tensor, *, device: str, batch_size: int = 512) -> Aim:
        """The gradient of the mean cross-entropy of (N, H, W, 3) uint8 images read as `labels`."""
        network = trainable_copy(network, device)
        total = torch.zeros((), device=device)
        for rows in batches(len(images), batch_size):
            gradient = loss_gradient(network, as_batch(images[rows], device), labels[rows].to(device))
            total = total + gradient * (len(labels[rows]) / len(images))
        return cls(network, total)

    def mismatch(self, images: Tensor, labels: Tensor, *, create_graph: bool = True) -> Tensor:
        """1 - cosine to the gradient on (N, 3, H, W) images; 0 .. 2. With a graph it can be derived by the images."""
        gradient = loss_gradient(self.network, images, labels, create_graph=create_graph)
        return 1 - F.cosine_similarity(gradient, self.gradient, dim=0, eps=1e-12)


def trainable_copy(network: Classifier, device: str) -> Classifier:
    """A private copy in eval mode whose parameters take part in gradients."""
    return copy.deepcopy(network).to(device).eval().requires_grad_(True)


def loss_gradient(network: Classifier, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> Tensor:
    """d mean CE(network(images), labels) / d all parameters, as one (D,) vector."""
    loss = F.cross_entropy(network(images), labels)
    parameters = tuple(network.parameters())
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=create_graph)])


def match(
    start: Tensor,
    labels: Tensor,
    aims: Callable[[int, Tensor], Sequence[Aim]],
    config: Matching,
    box: Box,
    *,
    generator: torch.Generator,
    report: Callable[[int, float], None],
) -> tuple[Tensor, float]:
    """Adam on the signs of the mismatch's gradient, from `start` and inside the box.

    Args:
        start: (P, 3, H, W) in [-1, 1]; left unchanged.
        aims: step and current images -> what to match from here on.
        generator: of the augmentation.
        report: told step and loss, every tenth of the way.

    Returns:
        The images, detached, and the loss of the first step, averaged over batches and surrogates.
    """
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=config.step_size)
    first = 0.0
    for step in range(config.n_steps):
        current = aims(step, images.detach())
        images.grad = torch.zeros_like(images)
        loss = 0.0
        for rows in batches(len(images), config.batch_size):
            draw = Augmentation.draw(images[rows], config.shift, generator)
            for aim in current:
                batch = draw.apply(images[rows])
                mismatch = aim.mismatch(batch, labels[rows]) / len(current)
                images.grad += torch.autograd.grad(mismatch, images)[0]
                loss += mismatch.item() * len(batch) / len(images)
        images.grad.sign_()
        optimizer.param_groups[0]["lr"] = config.rate(step)
        optimizer.step()
        box.clamp_(images.data)
        first = loss if step == 0 else first
        if (step + 1) % max(1, config.n_steps // 10) == 0:
            report(step + 1, loss)
    return images.detach(), first


def final_loss(pixels: Tensor, labels: Tensor, aims: Sequence[Aim], config: Matching, *, seed: int) -> float:
    """The mismatch of finished (P, H, W, 3) uint8 poisons, on shifts and flips that are the same for all of them."""
    generator = torch.Generator().manual_seed(seed)
    images, total = as_batch(pixels, str(labels.device)), 0.0
    for rows in batches(len(images), config.batch_size):
        batch = Augmentation.draw(images[rows], config.shift, generator).apply(images[rows])
        for aim in aims:
            mismatch = aim.mismatch(batch, labels[rows], create_graph=False).item()
            total += mismatch * len(batch) / len(images) / len(aims)
    return total


def batches(n: int, size: int) -> list[slice]:
    """0 .. n-1 cut in pieces of at most `size`."""
    return [slice(start, start + size) for start in range(0, n, size)]


def noise(box: Box, generator: torch.Generator) -> Tensor:
    """N(0, 1) * eps in the box's shape and place, in [-1, 1] units."""
    return torch.randn(box.low.shape, generator=generator).to(box.low.device) * (2 * box.eps / 255)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A shift and a flip of each image of a batch, differentiable. grid: (N, H, W, 2); None: nothing."""

    grid: Tensor | None

    @classmethod
    def draw(cls, images: Tensor, shift: float, generator: torch.Generator) -> Augmentation:
        """Shifts uniform in +-`shift` pixels in each direction, flips with probability 1/2; below 0: nothing."""
        if shift < 0:
            return cls(None)
        n, _, height, width = images.shape
        moves = torch.rand(n, 2, generator=generator) * 2 - 1
        moves = moves * shift * 2 / torch.tensor([width - 1, height - 1])
        flips = 1 - 2 * torch.randint(2, (n,), generator=generator)
        affine = torch.zeros(n, 2, 3)
        affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = flips, 1, moves
        return cls(F.affine_grid(affine, list(images.shape), align_corners=True).to(images.device))

    def apply(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> the same shape; bilinear; outside is black, as victims pad."""
        if self.grid is None:
            return images
        return F.grid_sample(images + 1, self.grid, align_corners=True) - 1
