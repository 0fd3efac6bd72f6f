"""Coordinates in which Langevin noise is colored like images: strong where images are strong, at low frequencies.

White noise of a deviation that leaves a picture readable is far too weak to erase a smooth, colorful perturbation: over
many pixels it averages out. In whitened coordinates y = W x the same dynamics with white noise,

    y  <-  y - (step_size**2 / 2) * grad U(y) / temperature  +  step_size * z,

is, in pixels, Langevin dynamics preconditioned by M = W^-2, whose noise W^-1 z has the power spectrum

    a(f)**2 = 1 + strength**2 / (1 + (f / corner)**2),      f in cycles per pixel,

and `chroma` times that amplitude in the differences between the colors: there images have little power and classifiers
little need, so what is added there costs least. It has the same stationary density as without M, and gets there faster
along smooth and along colored directions. W is a filter, symmetric and exactly invertible, with mirrored borders (the
type II cosine transform).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor

from pureebm.errors import InputError


@dataclass(frozen=True, slots=True)
class Whitening:
    """The map between pixels x and whitened coordinates y, for images of any size."""

    strength: Annotated[float, "noise at frequency 0, as a multiple (about) of that at the highest frequencies"] = 4.0
    corner: Annotated[float, "frequency in cycles per pixel above which the noise falls to white"] = 0.08
    chroma: Annotated[float, "noise in the color differences, as a multiple of that in their mean"] = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.strength < math.inf and 0 < self.corner < math.inf and 0 < self.chroma < math.inf):
            raise InputError(
                "strength must be 0 or more, corner and chroma above 0, all finite;"
                f" got {self.strength}, {self.corner} and {self.chroma}"
            )

    def whiten(self, images: Tensor) -> Tensor:
        """x -> y = W x, (N, C, H, W) -> the same."""
        return _chroma_times(_filtered(images, 1 / self._amplitude(images)), 1 / self.chroma)

    def color(self, coordinates: Tensor) -> Tensor:
        """y -> x = W^-1 y, the inverse of `whiten`."""
        return _chroma_times(_filtered(coordinates, self._amplitude(coordinates)), self.chroma)

    def gain(self, size: int) -> float:
        """Root mean square of W^-1 z, z of variance 1, over the pixels of a square image of three channels."""
        amplitude = self._amplitude(torch.empty(1, 3, size, size, dtype=torch.float64))
        return math.sqrt(float(amplitude.square().mean()) * (1 + 2 * self.chroma**2) / 3)

    def _amplitude(self, like: Tensor) -> Tensor:
        height, width = like.shape[-2:]
        rows = torch.arange(height, device=like.device, dtype=torch.float64) / (2 * height)
        columns = torch.arange(width, device=like.device, dtype=torch.float64) / (2 * width)
        squared = (rows[:, None].square() + columns.square()) / self.corner**2
        return (1 + self.strength**2 / (1 + squared)).sqrt().to(like.dtype)


def _chroma_times(images: Tensor, gain: float) -> Tensor:
    """Multiply what differs between the channels of (N, C, H, W) by a gain; their mean stays."""
    if gain == 1:
        return images
    mean = images.mean(dim=1, keepdim=True)
    return mean + (images - mean) * gain


def _filtered(images: Tensor, gain: Tensor) -> Tensor:
    """Multiply the cosine coefficients of (N, C, H, W) by (H, W) gains."""
    rows, columns = (_cosines(n, images.device, images.dtype) for n in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):
        return rows.T @ ((rows @ images @ columns.T) * gain) @ columns


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # kept, and then used where gradients are taken
def _cosines(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthonormal matrix (n, n) of the type II cosine transform; row k has frequency k / 2n."""
    k, place = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (place + 0.5) * k / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)
