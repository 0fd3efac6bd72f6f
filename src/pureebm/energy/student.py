"""A student: one pass of a feed-forward network in place of a chain of Langevin updates.

What a chain of n updates makes of an image x is a function of x and of its noises. Those of an annealed sampler are the
starting noise z0, which turns the image into

    y0 = W x + level * initial_noise * z0           (whitened coordinates, see `energy.coordinates`)

and one z_k an update. The chain sees nothing of x but y0, and neither does the student: what the starting noise has
drowned is gone for it too. Of the later noises it sees a sum, normed, of weights w_k that say how much of each survives
the updates after it (`training.pairs.HeardNoise`):

    z = sum_k w_k z_k / (sum_k w_k**2)**0.5

Given both, it is fitted to the chain's own result by least squares. The two inputs keep it a sample: the mean over what
else the z_k say is all that is averaged away.

Where the teacher's noise adapts to how unnatural an image is (`adapt_above` of its sampler), the level is multiplied by
the same factor, from an estimate of the teacher's residual by a small network of its own, the gauge. Knows nothing of
files, stages or training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy.coordinates import Whitening
from pureebm.energy.networks import check_images, pad_to_multiple
from pureebm.errors import InputError
from pureebm.sampling.langevin import adapted


class Student(nn.Module):
    """A small U-Net on pixels unshuffled 2x2, of plain ReLU blocks.

    Args:
        widths: channels at 1/2, 1/4, ... of the resolution.
        blocks: residual blocks at each of them, on the way down and again on the way up (the lowest has its once).
        initial_noise: the teacher's, at level 1, in its coordinates; 0 if its chain starts at the image itself.
        whiten, chroma: the teacher's coordinates, as of `LocalEnergy`.
        levels: (least, largest) level of noise that it was trained for, as multiples of the teacher's.
        adapt_above, adapt_power, adapt_most: the teacher's, as of `LangevinConfig`; adapt_above = 0: the same noise for
            all images.
        gauge_margin: times the gauge's estimate, which is off by a tenth or two: crafted images should meet no
            less noise than the teacher's.
    """

    architecture: ClassVar[str] = "student"

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        blocks: Sequence[int] = (1, 1, 1),
        initial_noise: float = 0.1,
        whiten: float = 0.0,
        chroma: float = 1.0,
        levels: Sequence[float] = (1.0, 1.0),
        adapt_above: float = 0.0,
        adapt_power: float = 1.0,
        adapt_most: float = 8.0,
        gauge_margin: float = 1.15,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise InputError(f"widths and blocks must be of one length, got {widths} and {blocks}")
        if not (len(levels) == 2 and 0 < levels[0] <= levels[1]):
            raise InputError(f"levels must be two numbers, 0 < least <= largest, got {levels}")
        self.config: dict[str, Any] = {"widths": list(widths), "blocks": list(blocks), "initial_noise": initial_noise}
        self.config |= {"whiten": whiten, "chroma": chroma, "levels": list(levels)}
        self.initial_noise, self.levels = initial_noise, (levels[0], levels[1])
        self.whitening = Whitening(strength=whiten, chroma=chroma) if whiten or chroma != 1 else None
        self.multiple = 2 ** len(widths)
        self.stem = nn.Conv2d(25, widths[0], 3, padding=1)
        self.encode, self.down = nn.ModuleList(), nn.ModuleList()
        self.decode, self.up = nn.ModuleList(), nn.ModuleList()
        for here, below, n_blocks in zip(widths, widths[1:], blocks, strict=False):
            self.encode.append(_blocks(here, n_blocks))
            self.down.append(nn.Conv2d(here, below, 2, stride=2))
            self.up.append(nn.ConvTranspose2d(below, here, 2, stride=2))
            self.decode.append(_blocks(here, n_blocks))
        self.middle = _blocks(widths[-1], blocks[-1])
        self.head = nn.Conv2d(widths[0], 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.gain = nn.Parameter(torch.zeros(()))  # of the later noise, straight to the output
        self.adapt_above, self.adapt_power, self.adapt_most = adapt_above, adapt_power, adapt_most
        self.gauge_margin = gauge_margin
        if adapt_above:
            self.config |= {"adapt_above": adapt_above, "adapt_power": adapt_power, "adapt_most": adapt_most}
            self.config |= {"gauge_margin": gauge_margin}
            self.gauge = _gauge()

    def forward(self, images: Tensor, start: Tensor, later: Tensor, level: Tensor) -> Tensor:
        """Purify; differentiable in all its arguments.

        Args:
            images: (N, 3, H, W) in [-1, 1], at least 16 px.
            start, later: noises N(0, 1) like `images`: of the chain's start, and of its updates.
            level: (N,) how strong the noise is, as a multiple of the teacher's; within `levels`.

        Returns:
            (N, 3, H, W); may leave [-1, 1] a little.
        """
        y = self.coordinates(images)
        if self.adapt_above:
            level = level * self.noise_scale(self.gauge_margin * self.residual(y))
        return self.purified(y, start, later, level)

    def coordinates(self, images: Tensor) -> Tensor:
        """y = W x of (N, 3, H, W)."""
        check_images(images)
        return self.whitening.whiten(images) if self.whitening else images

    def residual(self, coordinates: Tensor) -> Tensor:
        """(N,) float32: the root mean square of the teacher's residual at y, as the gauge estimates it."""
        x = F.pixel_unshuffle(pad_to_multiple(coordinates, self.multiple), 2)
        found: Tensor = self.gauge(x.to(self.stem.weight.dtype, memory_format=torch.channels_last))
        return found.float().square().mean(dim=(1, 2, 3)).clamp(min=1e-12).sqrt()

    def noise_scale(self, residual: Tensor) -> Tensor:
        """(N,): how many times stronger the noise is at a residual of this size (see `sampling.langevin`)."""
        return adapted(residual, self.adapt_above, self.adapt_power, self.adapt_most)

    def purified(self, coordinates: Tensor, start: Tensor, later: Tensor, strength: Tensor) -> Tensor:
        """As `forward`, of y = W x and the (N,) whole strength of the noise: the level, times what adapts to images."""
        scale = strength[:, None, None, None]
        y = coordinates
        if self.initial_noise:
            y = y + self.initial_noise * scale * start
        y = y + self.gain.float() * later + self.correction(y, later, strength)
        return self.whitening.color(y) if self.whitening else y

    def correction(self, coordinates: Tensor, later: Tensor, strength: Tensor) -> Tensor:
        """What the network itself adds in the teacher's coordinates, float32; computed in the weights' type."""
        height, width = coordinates.shape[2:]
        x = F.pixel_unshuffle(pad_to_multiple(torch.cat((coordinates, later), dim=1), self.multiple), 2)
        plane = strength.log()[:, None, None, None].expand(-1, 1, *x.shape[2:])
        x = torch.cat((x, plane), dim=1).to(self.stem.weight.dtype, memory_format=torch.channels_last)
        h = self.stem(x)  # (N, 25, H/2, W/2) -> (N, widths[0], H/2, W/2)
        skips: list[Tensor] = []
        for encode, down in zip(self.encode, self.down, strict=True):
            h = encode(h)
            skips.append(h)
            h = down(h)
        h = self.middle(h)
        for decode, up in zip(reversed(self.decode), reversed(self.up), strict=True):
            h = decode(up(h) + skips.pop())
        return F.pixel_shuffle(self.head(h).float(), 2)[:, :, :height, :width]


def _gauge() -> nn.Sequential:
    """Without biases, as the teacher's denoiser: twice the contrast, twice the residual."""
    return nn.Sequential(
        nn.Conv2d(12, 24, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
    )


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[_Block(width) for _ in range(count)])


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.c2.weight)

    def forward(self, h: Tensor) -> Tensor:
        main: Tensor = self.c2(F.relu(self.c1(F.relu(h))))
        return h + main
