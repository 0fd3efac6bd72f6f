"""Label-Consistent: images of the target class made hard to read, so that the victim learns the pattern on them.

    x' = pattern pasted on  argmax over |x_adv - x|_inf <= eps of CE(surrogate(x_adv), y)

Labels stay true (clean-label). Two variants, by what is pasted on the training images:

    corners      four 3 x 3 checkered corners at full contrast; the test images get the same (BackdoorBench "LC")
    faint-patch  a 5 x 5 patch, then all of the change is moved back within eps; the test images get the patch at
                 full contrast (the "CLBD" of the poisoning benchmark)

Source: Turner et al., arXiv 1912.02771; constants of BackdoorBench and of Schwarzschild et al., arXiv 2006.12557.
Differs: the surrogate is a network that was trained in the usual way (or the first extractor given, which must know
the same classes), not one that was trained against adversaries; the benchmark's patch, a stored random picture, is
drawn from the attack's seed here. PGD sees images in [0, 1] steps of 1/255 and is rounded once, at the end.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal, choose_rows, within
from pureebm.attacks.triggers import PatchTrigger
from pureebm.classifiers.base import Classifier
from pureebm.errors import InputError

BATCH = 100
_PUBLISHED = {"corners": (100, 1.5, 0.1), "faint-patch": (20, 2.0, 0.01)}  # PGD steps, their size, budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The variant, the adversarial part, and what is pasted. What is None has the variant's published value."""

    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset({"eps", "n_steps"})  # the pattern alone

    variant: Annotated[Literal["corners", "faint-patch"], "what the training images carry"] = "corners"
    budget: Annotated[
        float | None, "share of the whole training set; at most all of the class (corners 0.1, faint-patch 0.01)"
    ] = None
    eps: Annotated[int, "largest adversarial change of a pixel, in steps of 1/255; of any change in faint-patch"] = 8
    target_class: Annotated[int, "class whose images are poisoned, and what triggered images are to be read as"] = 0
    n_steps: Annotated[int | None, "PGD steps (corners 100, faint-patch 20)"] = None
    step_size: Annotated[float | None, "of a PGD step, in steps of 1/255 (corners 1.5, faint-patch 2)"] = None
    patch_size: Annotated[int, "side of the faint patch in pixels"] = 5

    def __post_init__(self) -> None:
        if self.variant not in _PUBLISHED:
            raise InputError(f"variant must be corners or faint-patch, got {self.variant!r}")
        if not 0 <= self.eps <= 255 or self.patch_size < 1:
            raise InputError(f"eps must be 0 to 255 and patch_size >= 1, got {self.eps} and {self.patch_size}")
        if self.n_steps is not None and self.n_steps < 0:
            raise InputError(f"n_steps must be >= 0, got {self.n_steps}")

    def settled(self) -> tuple[int, float, float]:
        """PGD steps, their size, and the budget."""
        n_steps, step_size, budget = _PUBLISHED[self.variant]
        return (
            n_steps if self.n_steps is None else self.n_steps,
            step_size if self.step_size is None else self.step_size,
            budget if self.budget is None else self.budget,
        )


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison random images of the target class.

    Raises:
        InputError: no such class, images smaller than the pattern, or an extractor with another number of classes.
    """
    began = time.perf_counter()
    n_steps, step_size, budget = config.settled()
    generator = torch.Generator().manual_seed(seed)
    corners = config.variant == "corners"
    trigger = corner_trigger(data) if corners else patch_trigger(data, config.patch_size, generator)
    goal = TriggerGoal(data.check_class(config.target_class), trigger)
    rows = choose_rows(data, config.target_class, budget, seed=seed, whole_class_at_most=True)
    clean, labels = data.images[rows], data.labels[rows]
    surrogate = _surrogate(data, attacker, seed)
    draw = None if corners else generator
    hard = pgd(surrogate, clean, labels, config.eps, n_steps, step_size, start=draw, device=attacker.device)
    images = trigger.apply(hard)
    if not corners:
        images = within(images, clean, config.eps)
    record = {
        "attack": "label-consistent",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "poisons": len(rows),
        "surrogate_reads_clean": _share_right(surrogate, clean, labels, attacker.device),
        "surrogate_reads_hard": _share_right(surrogate, hard, labels, attacker.device),
    }
    return Poisoned(rows, images, labels, goal, record)


def pgd(
    network: Classifier,
    images: Tensor,
    labels: Tensor,
    eps: int,
    n_steps: int,
    step_size: float,
    *,
    start: torch.Generator | None = None,
    device: str = "cpu",
) -> Tensor:
    """Untargeted: (N, H, W, 3) uint8 -> the same, at most `eps` steps of 1/255 away, hard for the network.

    Starts at the images, or uniformly within eps of them where a generator is given.
    """
    done = []
    for batch, classes in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
        clean, y = batch.to(device).permute(0, 3, 1, 2).float(), classes.to(device)
        x = clean.clone()
        if start is not None:
            x += eps * (2 * torch.rand(batch.permute(0, 3, 1, 2).shape, generator=start).to(device) - 1)
        for _ in range(n_steps):
            x = x.clamp(0, 255).requires_grad_()
            loss = F.cross_entropy(network(x / 127.5 - 1), y, reduction="sum")
            x = x.detach() + step_size * torch.autograd.grad(loss, x)[0].sign()
            x = x.clamp(clean - eps, clean + eps)
        done.append(x.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return within(torch.cat(done), images, eps)


def corner_trigger(data: LabeledSet) -> PatchTrigger:
    """The four checkered corners, as one patch of the images' size that covers nothing between them."""
    height, width = data.images.shape[1:3]
    if min(height, width) < 6:
        raise InputError(f"four corners of 3 px do not fit into images of {width} x {height}")
    left = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]], dtype=torch.uint8) * 255
    patch = torch.zeros(height, width, dtype=torch.uint8)
    mask = torch.zeros(height, width, dtype=torch.bool)
    for rows in (slice(0, 3), slice(height - 3, height)):
        for columns, corner in ((slice(0, 3), left), (slice(width - 3, width), left.flip(1))):
            patch[rows, columns], mask[rows, columns] = corner, True
    return PatchTrigger(patch[:, :, None].repeat(1, 1, 3), (0, 0), mask)


def patch_trigger(data: LabeledSet, size: int, generator: torch.Generator) -> PatchTrigger:
    """A random patch of black and white color values at the lower right."""
    height, width = data.images.shape[1:3]
    if size > min(height, width):
        raise InputError(f"a patch of {size} px does not fit into images of {width} x {height}")
    patch = torch.randint(2, (size, size, 3), generator=generator).to(torch.uint8) * 255
    return PatchTrigger(patch, (height - size, width - size))


def _surrogate(data: LabeledSet, attacker: Attacker, seed: int) -> Classifier:
    if not attacker.extractors:
        return attacker.train(data, seed=seed).to(attacker.device)
    surrogate = attacker.extractors[0]
    if surrogate.head.out_features != data.n_classes:
        raise InputError(
            f"the extractor tells {surrogate.head.out_features} classes apart, the training set has {data.n_classes}; "
            "give one of these classes, or none"
        )
    return surrogate.to(attacker.device)


@torch.no_grad()
def _share_right(network: Classifier, images: Tensor, labels: Tensor, device: str) -> float:
    logits = [
        network(part.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1).cpu() for part in torch.split(images, 500)
    ]
    return (torch.cat(logits).argmax(dim=1) == labels).double().mean().item()
