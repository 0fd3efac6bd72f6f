"""What else purifies, as work for `speed` to measure: torchebm's Langevin sampler, diffusers' DDPM, JPEG.

Those that are not installed are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pureebm.diffusion.process import PAPER_LEVEL
from pureebm.diffusion.weights import unet_config
from pureebm.purify.baselines import baseline
from pureebm.sampling.langevin import PAPER_STEP_SIZE, PAPER_TEMPERATURE

PAPER_WIDTHS = (128, 128, 256, 256, 512, 512)
"""Of PureGen's network (arXiv 2405.18627), two blocks each: 114 million weights."""
DDPM_IMAGES = 8


@dataclass(frozen=True, slots=True)
class Neighbor:
    """Work, and how many purified images it is worth: fewer than were given where it is a part of a chain."""

    do: Callable[[], object]
    images: float


def neighbors(network: nn.Module, images: Tensor, *, steps: int, n_steps: int) -> dict[str, Neighbor]:
    """By name, what is installed here.

    Args:
        network: the energy that torchebm's sampler walks down, `steps` updates of `n_steps`.
        images: (N, 3, 32, 32) in [-1, 1].
    """
    jpeg, ids = baseline("jpeg-75"), [str(index) for index in range(len(images))]
    assert jpeg is not None
    found = {"jpeg-75": Neighbor(lambda: jpeg.purify_batch(images, ids, seed=0), len(images))}
    try:
        found["torchebm"] = Neighbor(_torchebm(network, images, steps), len(images) * steps / n_steps)
    except ImportError:
        pass
    try:
        few = images[:DDPM_IMAGES]
        found["diffusers"] = Neighbor(_diffusers(few), len(few) / PAPER_LEVEL)
    except ImportError:
        pass
    return found


def _torchebm(network: nn.Module, images: Tensor, steps: int) -> Callable[[], object]:
    """Its Langevin sampler with the paper's step: eta = step_size^2 / 2 on E / T is the same update."""
    from torchebm.core import BaseModel
    from torchebm.samplers import LangevinDynamics

    class Tempered(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            values: Tensor = self.network(x) / PAPER_TEMPERATURE
            return values

    sampler = LangevinDynamics(Tempered(), step_size=PAPER_STEP_SIZE**2 / 2, noise_scale=1.0, device=images.device)
    return lambda: sampler.sample(x=images, n_steps=steps)


def _diffusers(images: Tensor) -> Callable[[], object]:
    """One reverse step of its own scheduler and of a network of the paper's size, with random weights."""
    import diffusers

    parts: Any = diffusers
    config = unet_config(widths=PAPER_WIDTHS, layers=2, patch=1, size=32, attention=True)
    network = parts.UNet2DModel(**config).eval().requires_grad_(False).to(images.device)
    scheduler = parts.DDPMScheduler(num_train_timesteps=1000)

    @torch.no_grad()
    def step() -> object:
        return scheduler.step(network(images, PAPER_LEVEL - 1).sample, PAPER_LEVEL - 1, images).prev_sample

    return step
