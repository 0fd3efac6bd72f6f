"""WaNet: a smooth warp of the image, too small to be seen. Dirty-label.

    grid = clamp(identity + strength * noise / height);  x' = x sampled at grid;  y' = target class

`noise` is uniform on a coarse k x k lattice, scaled to a mean size of 1 and upsampled. More images ("cross samples")
are warped by the grid plus fresh noise and keep their labels, so that the victim learns this warp and not just any.

Source: Nguyen and Tran, arXiv 2102.10369; k = 4, strength 0.5, cross ratio 2, a tenth as in BackdoorBench.
Differs: the poisoned images are made once, for a training set that is stored; the original warps afresh the first
images of every batch, after its augmentation. The budget is BackdoorBench's ratio, the share with a new label: cross
samples come on top of it, though they are poisoned rows too (their pixels changed).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from pureebm.attacks.base import Attacker, LabeledSet, Poisoned, TriggerGoal
from pureebm.attacks.triggers import WarpTrigger
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The warp, and how many images are warped with and without a new label."""

    budget: Annotated[float, "share of the training set that is warped and relabeled; cross samples come on top"] = 0.1
    target_class: Annotated[int, "what triggered images are to be read as"] = 0
    cross_ratio: Annotated[float, "warped otherwise and not relabeled: so many times as many"] = 2.0
    strength: Annotated[float, "mean displacement, in halves of a pixel"] = 0.5
    lattice: Annotated[int, "points a side of the coarse noise"] = 4

    def __post_init__(self) -> None:
        if not 0 < self.budget * (1 + self.cross_ratio) <= 1 or self.cross_ratio < 0 or self.budget <= 0:
            raise InputError(
                f"budget {self.budget} and cross_ratio {self.cross_ratio} times it must be a share of the set together"
            )
        if self.lattice < 2 or not self.strength >= 0:
            raise InputError(f"lattice must be >= 2 and strength >= 0, got {self.lattice} and {self.strength}")


def craft(data: LabeledSet, config: Config, *, attacker: Attacker, seed: int) -> Poisoned:
    """Poison random images of all classes. Raises `InputError` for a class that the set does not have."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    height, width = data.images.shape[1:3]
    trigger = WarpTrigger(warp_grid(height, width, config, generator))
    goal = TriggerGoal(data.check_class(config.target_class), trigger)
    n_poisons = max(1, round(config.budget * len(data)))
    order = torch.randperm(len(data), generator=generator)
    poisons, cross = order[:n_poisons], order[n_poisons : n_poisons + round(n_poisons * config.cross_ratio)]
    rows, places = torch.cat([poisons, cross]).sort()
    warped = torch.cat([trigger.apply(data.images[poisons]), cross_samples(data.images[cross], trigger, generator)])
    labels = torch.cat([goal.wanted(data.labels[poisons], data.n_classes), data.labels[cross]])
    record = {
        "attack": "wanet",
        "config": asdict(config),
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "poisons": len(poisons),
        "cross_samples": len(cross),
    }
    return Poisoned(rows, warped[places], labels[places], goal, record)


def warp_grid(height: int, width: int, config: Config, generator: torch.Generator) -> Tensor:
    """(height, width, 2): where each pixel of a warped image is read, (x, y) in [-1, 1]."""
    noise = torch.rand(1, 2, config.lattice, config.lattice, generator=generator) * 2 - 1
    noise = noise / noise.abs().mean()
    field = F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    return (identity_grid(height, width) + config.strength * field / height).clamp(-1, 1)


def identity_grid(height: int, width: int) -> Tensor:
    """(height, width, 2): the warp that changes nothing."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y], dim=2)


def cross_samples(images: Tensor, trigger: WarpTrigger, generator: torch.Generator) -> Tensor:
    """Each image warped by the trigger's grid plus uniform noise of its own, up to half a pixel."""
    warped = []
    for image in images:
        noise = torch.rand(trigger.grid.shape, generator=generator) * 2 - 1
        grid = (trigger.grid + noise / trigger.grid.shape[0]).clamp(-1, 1)
        warped.append(WarpTrigger(grid).apply(image[None]))
    return torch.cat(warped) if warped else images
