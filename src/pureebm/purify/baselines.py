"""Baseline purifiers, as stages: JPEG compression and Gaussian blur. They draw nothing and know no model.

Both work on 8-bit images, as a user would apply them: float input is rounded first, the output holds
8-bit values.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError


class JPEGStage:
    """Encode and decode once, with Pillow's defaults (4:2:0 chroma subsampling).

    Args:
        quality: 1 (coarsest) to 100.
    """

    def __init__(self, quality: int) -> None:
        if not 1 <= quality <= 100:
            raise InputError(f"JPEG quality must be 1 to 100, got {quality}")
        self.quality = quality

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> the same shape; `ids` and `seed` change nothing."""
        pixels = to_uint8(images).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        decoded = torch.from_numpy(np.stack([self._recode(image) for image in pixels]))
        return to_pm1(decoded.permute(0, 3, 1, 2).contiguous())

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> dict[str, str | int]:
        return {"stage": "jpeg", "quality": self.quality}

    def _recode(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=self.quality)
        return np.asarray(Image.open(buffer))


class BlurStage:
    """Convolve with a Gaussian, separably, with reflected borders; the kernel ends at 4 sigma.

    Args:
        sigma: standard deviation in pixels.
    """

    def __init__(self, sigma: float) -> None:
        if not 0 < sigma < math.inf:
            raise InputError(f"the blur's sigma must be a number of pixels above 0, got {sigma}")
        self.sigma = sigma

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        """(N, 3, H, W) in [-1, 1], sides larger than 4 sigma -> the same shape; `ids` and `seed` change nothing."""
        x = to_pm1(to_uint8(images.cpu()))
        radius, channels = math.ceil(4 * self.sigma), x.shape[1]
        if min(x.shape[2:]) <= radius:
            raise InputError(f"a blur of {self.sigma} needs sides above {radius} px, got {tuple(x.shape[2:])}")
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / self.sigma) ** 2)
        kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
        x = F.pad(x, (radius, radius, radius, radius), mode="reflect")
        x = F.conv2d(F.conv2d(x, kernel[:, :, None, :], groups=channels), kernel[:, :, :, None], groups=channels)
        return to_pm1(to_uint8(x))

    def energies(self, images: Tensor) -> None:
        return None

    def settings(self) -> dict[str, str | float]:
        return {"stage": "blur", "sigma": self.sigma}


def baseline(name: str) -> JPEGStage | BlurStage | None:
    """ "jpeg-25" and "blur-0.7" make stages; "none" is no defense.

    Raises:
        InputError: any other name, or a number out of range.
    """
    if name == "none":
        return None
    match = re.fullmatch(r"(jpeg)-(\d+)|(blur)-(\d+(?:\.\d+)?)", name)
    if match is None:
        raise InputError(f"unknown defense {name!r}; known: none, jpeg-QUALITY (jpeg-25), blur-SIGMA (blur-0.7)")
    return JPEGStage(int(match[2])) if match[1] else BlurStage(float(match[4]))
