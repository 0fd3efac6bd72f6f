"""FRIENDS: friendly noise. Each training image gets the largest change that the network does not mind, and fresh noise.

Once, before epoch `begin`, a change d of every image x is sought that leaves the network's output alone:

    d = argmin over |d|_inf <= clamp of  KL(f(x) || f(x + d)) - mu * mean(d**2),

by SGD, each step on a batch. From then on the image is x + d. In every epoch, from the first, random noise of size
`eps` is added to each pixel value. What an attacker crafted to be small drowns in both.

Source: Liu et al., Friendly Noise against Adversarial Noise, arXiv 2208.10224, and the authors' code (`original`);
`puregen` are the values of PureGen's tables (arXiv 2405.18627), which also takes the batch's own statistics in batch
normalization; where a transfer freezes it, there are none to take (`puregen-frozen`). The original's code begins before
epoch 0 unless it is told 5, as its published command does. Value space: lengths in [0, 1] units, as eps / 255; the loss
is a mean over the batch and all of its values, so that rate and mu mean what they mean there at `batch_size` only.
Differs: images stay 8-bit, so that x + d, and that plus noise, are rounded and clamped to [0, 255] (the original rounds
nothing, and does not clamp the random noise). Shift and flip are the victim's own, after the noise.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.data.ranges import to_uint8
from pureebm.errors import InputError
from pureebm.types import EpochData, TrainingData

log = logging.getLogger(__name__)

RandomNoise = Literal["bernoulli", "gaussian"]

START = 8 / 255  # the change begins uniform within this
_BLOCK = 2000  # images that get their random noise at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The two noises and when they set in. Sizes are in steps of 1/255; epochs are counted from 0."""

    noise: Annotated[RandomNoise, "random noise: -eps or eps, or normal of deviation eps"] = "bernoulli"
    eps: Annotated[float, "size of the random noise; 0 leaves it out"] = 8.0
    begin: Annotated[int, "epoch before which the friendly noise is made"] = 5
    n_steps: Annotated[int, "updates of the friendly noise"] = 20
    rate: Annotated[float, "their learning rate"] = 100.0
    momentum: Annotated[float, "their momentum, Nesterov's"] = 0.9
    mu: Annotated[float, "weight of the noise's size against the unchanged output"] = 16.0
    clamp: Annotated[float, "largest friendly change of a pixel value"] = 16.0
    batch_size: Annotated[int, "images an update"] = 128
    batch_statistics: Annotated[bool, "batch norm uses the batch's statistics for it; else its running ones"] = True

    def __post_init__(self) -> None:
        if self.noise not in ("bernoulli", "gaussian"):
            raise InputError(f"noise must be bernoulli or gaussian, got {self.noise!r}")
        if not (self.eps >= 0 and self.clamp >= 0):
            raise InputError(f"eps and clamp must be 0 or more, got {self.eps} and {self.clamp}")
        if not (self.rate > 0 and 0 < self.momentum < 1):
            raise InputError(f"rate must be above 0 and momentum in 0..1, got {self.rate} and {self.momentum}")
        if self.begin < 0 or self.n_steps < 0 or self.batch_size < 1:
            given = f"{self.begin}, {self.n_steps} and {self.batch_size}"
            raise InputError(f"begin and n_steps must be 0 or more and batch_size 1 or more, got {given}")


PRESETS: Mapping[str, Config] = MappingProxyType(
    {
        "puregen": Config(),
        "puregen-transfer": Config(begin=0),
        "puregen-frozen": Config(begin=0, batch_statistics=False),  # batch norm is frozen: Bullseye Polytope
        "original": Config(n_steps=30, mu=1.0, batch_statistics=False),
        "short": Config(begin=1),  # 5 of 40 epochs, for 8
    }
)


class Friends:
    """Changes the training images before every epoch; all rows stay.

    Args:
        seed: of where the friendly noise begins, and of the random noise.
    """

    def __init__(self, config: Config, *, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.friendly: Tensor | None = None  # (N, H, W, 3) uint8, None before `begin`

    def before_training(self, network: nn.Module, data: TrainingData, /) -> TrainingData:
        """As it came."""
        return data

    def before_epoch(self, epoch: int, network: nn.Module, data: TrainingData, /) -> EpochData:
        """All images with the epoch's own random noise, and from `begin` on with their friendly noise."""
        if epoch >= self.config.begin and self.friendly is None:
            self.friendly = self._befriend(network, data.images)
        images = data.images if self.friendly is None else self.friendly
        return EpochData(images=torch.cat([self._noisy(block) for block in torch.split(images, _BLOCK)]))

    def _befriend(self, network: nn.Module, images: Tensor) -> Tensor:
        if self.config.batch_statistics:
            network = copy.deepcopy(network).train()
        befriended, squares = [], 0.0
        for batch in torch.split(images, self.config.batch_size):
            pixels = batch.permute(0, 3, 1, 2) / 255
            delta = friendly_noise(network, pixels, self.config, self.generator)
            squares += float(delta.double().square().sum())
            befriended.append(to_uint8(2 * (pixels + delta) - 1).permute(0, 2, 3, 1))
        log.info("friends: friendly noise of %.2f / 255, root mean square", 255 * (squares / images.numel()) ** 0.5)
        return torch.cat(befriended)

    def _noisy(self, images: Tensor) -> Tensor:
        draw = self.generator
        if not self.config.eps:
            return images
        if self.config.noise == "bernoulli":
            noise = torch.randint(0, 2, images.shape, generator=draw, dtype=torch.int8).float() * 2 - 1
        else:
            noise = torch.randn(images.shape, generator=draw)
        return (images + self.config.eps * noise.to(images.device)).round().clamp(0, 255).to(torch.uint8)


def friendly_noise(network: nn.Module, pixels: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """The change of a batch of images that the network minds least.

    Args:
        network: (N, 3, H, W) in [-1, 1] -> logits; its weights and their gradients are left alone.
        pixels: (N, 3, H, W) float32 in [0, 1], on the network's device.

    Returns:
        (N, 3, H, W) float32, at most `config.clamp` / 255 in size.
    """
    limit = config.clamp / 255
    delta = ((2 * torch.rand(pixels.shape, generator=generator) - 1) * START).to(pixels.device).requires_grad_()
    optimizer = torch.optim.SGD([delta], lr=config.rate, momentum=config.momentum, nesterov=True)
    with torch.no_grad():
        wanted = F.log_softmax(network(2 * pixels - 1), dim=1)
    for _ in range(config.n_steps):
        change = delta.clamp(-limit, limit)
        output = F.log_softmax(network(2 * (pixels + change).clamp(0, 1) - 1), dim=1)
        loss = F.kl_div(output, wanted, reduction="batchmean", log_target=True) - config.mu * change.square().mean()
        (delta.grad,) = torch.autograd.grad(loss, delta)
        optimizer.step()
    return delta.detach().clamp(-limit, limit)
