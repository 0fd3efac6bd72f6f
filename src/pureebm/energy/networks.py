"""Energy networks: the paper's, and a light one made for CPUs.

Both map images (N, C, H, W) in [-1, 1] of any size from 16 px to energies (N,), low where an image
looks natural, and treat the images of a batch independently. Neither knows of files or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.energy.coordinates import Whitening
from pureebm.errors import InputError

MIN_SIZE = 16


def check_images(images: Tensor) -> None:
    """Raise `InputError` unless `images` is (N, C, H, W) floating point of at least 16 px."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images must be (N, C, H, W) floating point, got {tuple(images.shape)} {images.dtype}")
    if min(images.shape[2:]) < MIN_SIZE:
        height, width = images.shape[2:]
        raise InputError(f"images must be at least {MIN_SIZE} px high and wide, got {height}x{width}")


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Replicate the last row and column until height and width are multiples of `multiple`."""
    height, width = images.shape[2:]
    bottom, right = -height % multiple, -width % multiple
    if not (bottom or right):
        return images
    return F.pad(images, (0, right, 0, bottom), mode="replicate")


class SNGANEnergy(nn.Module):
    """The paper's `EBMSNGAN32`: an SNGAN discriminator without normalisation, averaged over positions.

    Width 128 has the published 21 tensors and 1,053,824 parameters under the published names.

    Args:
        width: channels of every block.
        train_size: the image side that the weights were trained on. The energy is an average over
            positions, so it is multiplied by H * W / train_size**2 (of the padded image): the drift
            of a pixel then does not depend on the area of its image. At `train_size` the factor is 1
            and the output is the published one.

    Source: arXiv 2405.18627, architecture of PureGen-EBM.
    Differs: returns (N,) where the authors' code returns (N, 1); sides that are no multiple of 4 are
    padded by replication; the area factor above.
    """

    architecture: ClassVar[str] = "sngan"

    def __init__(self, width: int = 128, train_size: int = 32) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "train_size": train_size}
        self.train_size = train_size
        self.block1 = _InputBlock(width)
        self.block2 = _ResidualBlock(width, pool=True)
        self.block3 = _ResidualBlock(width)
        self.block4 = _ResidualBlock(width)
        self.l5 = nn.Linear(width, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        x = pad_to_multiple(images, 4)
        area = x.shape[2] * x.shape[3] / self.train_size**2
        h: Tensor = self.block4(self.block3(self.block2(self.block1(x))))  # (N, width, H/4, W/4)
        energy: Tensor = self.l5(F.relu(h).mean(dim=(2, 3)))  # (N, 1)
        return energy.squeeze(1) * area


class _InputBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, width, 3, padding=1)
        self.c2 = nn.Conv2d(width, width, 3, padding=1)
        self.c_sc = nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        main = F.avg_pool2d(self.c2(F.relu(self.c1(x))), 2)
        shortcut: Tensor = self.c_sc(F.avg_pool2d(x, 2))
        return main + shortcut


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, *, pool: bool = False) -> None:
        super().__init__()
        self.pool = pool
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(width, width, 3, padding=1)
        if pool:
            self.c_sc = nn.Conv2d(width, width, 1)

    def forward(self, h: Tensor) -> Tensor:
        main: Tensor = self.c2(F.relu(self.c1(F.relu(h))))
        if not self.pool:
            return h + main
        return F.avg_pool2d(main, 2) + F.avg_pool2d(self.c_sc(h), 2)


class LocalEnergy(nn.Module):
    """A light energy for CPUs: U(x) = 1/2 <x, x - f(x)>, f a small U-Net without biases.

    f is a blind denoiser: ReLU and convolutions without bias make it homogeneous, f(x) = J(x) x with J its
    Jacobian, so that grad U = x - (f(x) + J^T x) / 2. The best denoiser has a symmetric Jacobian (Miyasawa
    1961; Romano, Elad & Milanfar, arXiv 1611.02862), J^T x = f(x), and then grad U = x - f(x): a network
    fitted as a plain denoiser is already nearly an energy, and denoising score matching finishes it.
    (Without biases it also carries over to noise levels beyond its training: Mohan et al., arXiv 1906.05478.)

    For every noise level sigma of the training range at once, grad U / sigma^2 is minus the score of images
    under noise of that deviation (Li, Chen & Sommer, arXiv 1910.07762): the sampler's temperature is sigma^2.

    A sum of local terms: the drift of a pixel does not depend on the area of its image, so no factor is
    needed. The network works on pixels unshuffled 2x2, at one half of the resolution and below.

    Args:
        widths: channels at 1/2, 1/4, ... of the resolution.
        blocks: residual blocks at each of them, on the way down and again on the way up (the lowest
            has its blocks once).
        whiten: strength of the colored noise that it is made for (`energy.coordinates`); 0 is white. With it, all of
            the above is about whitened coordinates: U(y) and f(y) of y = W x, and E(x) = U(W x).
        chroma: how many times stronger that noise is in the color differences.
        residual: take the denoiser at its word. f is fitted as a plain denoiser, U(y) = 1/2 |y - f(y)|^2, and Langevin
            dynamics follows y - f(y) in place of grad U = (I - J)^T (y - f(y)): equal where the residual lies in the
            directions that f removes, as for the projection that an ideal denoiser is near to. That y - f(y) is
            sigma^2 times the negative score holds without U (Miyasawa 1961), so this is Langevin dynamics with a
            learned score (Song & Ermon, arXiv 1907.05600) whose energy serves to compare images. One pass forward
            instead of one forward and one back, and a network that need not be a gradient.
    """

    architecture: ClassVar[str] = "local"

    def __init__(
        self,
        widths: Sequence[int] = (48, 96, 96),
        blocks: Sequence[int] = (1, 1, 2),
        whiten: float = 0.0,
        chroma: float = 1.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise InputError(f"widths and blocks must be of one length, got {widths} and {blocks}")
        self.config: dict[str, Any] = {"widths": list(widths), "blocks": list(blocks)}
        if whiten or chroma != 1:
            self.config |= {"whiten": whiten, "chroma": chroma}
        self.whitening = Whitening(strength=whiten, chroma=chroma) if whiten or chroma != 1 else None
        self.residual = residual
        if residual:
            self.config["residual"] = True
        self.multiple = 2 ** len(widths)
        self.stem = nn.Conv2d(12, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.encode = nn.ModuleList()
        self.decode = nn.ModuleList()
        for here, below, n_blocks in zip(widths, widths[1:], blocks, strict=False):
            self.encode.append(_plain_blocks(here, n_blocks))
            self.down.append(nn.Conv2d(here, below, 2, stride=2, bias=False))
            self.up.append(nn.ConvTranspose2d(below, here, 2, stride=2, bias=False))
            self.decode.append(_plain_blocks(here, n_blocks))
        self.middle = _plain_blocks(widths[-1], blocks[-1])
        self.head = nn.Conv2d(widths[0], 12, 3, padding=1, bias=False)
        nn.init.zeros_(self.head.weight)  # f starts as the identity, U as 0

    def correction(self, images: Tensor) -> Tensor:
        """f(x) - x, (N, 3, H, W) -> (N, 3, H, W): what a denoiser would add."""
        h = self.stem(F.pixel_unshuffle(pad_to_multiple(images, self.multiple), 2))  # (N, widths[0], H/2, W/2)
        skips: list[Tensor] = []
        for encode, down in zip(self.encode, self.down, strict=True):
            h = encode(h)
            skips.append(h)
            h = down(h)
        h = self.middle(h)
        for decode, up in zip(reversed(self.decode), reversed(self.up), strict=True):
            h = decode(up(h) + skips.pop())
        return F.pixel_shuffle(self.head(h), 2)[:, :, : images.shape[2], : images.shape[3]]

    def restore(self, images: Tensor) -> Tensor:
        """f(x): the blind denoiser, (N, 3, H, W) -> (N, 3, H, W)."""
        return images + self.correction(images)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images)
        return self.potential(self.whitening.whiten(images) if self.whitening else images)

    def potential(self, coordinates: Tensor) -> Tensor:
        """U(y), (N, 3, H, W) -> (N,): the energy in the coordinates that the network works in."""
        return self._energies(coordinates, self.correction(coordinates))

    def residual_field(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) energies, and (N, 3, H, W) what Langevin dynamics follows in place of their gradient if `residual`."""
        check_images(images)
        y = self.whitening.whiten(images) if self.whitening else images
        correction = self.correction(y)
        return self._energies(y, correction), -(self.whitening.whiten(correction) if self.whitening else correction)

    def _energies(self, coordinates: Tensor, correction: Tensor) -> Tensor:
        if self.residual:
            return 0.5 * correction.square().sum(dim=(1, 2, 3))
        return -0.5 * (coordinates * correction).sum(dim=(1, 2, 3))


def _plain_blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[_PlainBlock(width) for _ in range(count)])


class _PlainBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.c2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.c2.weight)

    def forward(self, h: Tensor) -> Tensor:
        main: Tensor = self.c2(F.relu(self.c1(h)))
        return h + main
