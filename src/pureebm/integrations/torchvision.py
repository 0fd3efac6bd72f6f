"""`Purify`, a torchvision v2 transform. Extra: `pureebm[torchvision]`.

    transform = v2.Compose([Purify(Purifier.from_pretrained()), v2.RandomHorizontalFlip(), v2.ToImage()])

It must come first: a purifier is made for images as they are stored. An epoch with it costs a purification of the whole
set; `torch_dataset.PurifiedDataset` pays once.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pureebm.errors import InputError
from pureebm.purify.purifier import Purifier

try:
    from torchvision import tv_tensors
    from torchvision.transforms import v2
except ImportError as error:
    raise InputError("torchvision is not installed: pip install 'pureebm[torchvision]'") from error


class Purify(v2.Transform):  # type: ignore[misc]
    """Purifies the images and videos of a sample; boxes, masks, key points, labels pass through.

    Args:
        purifier: see `Purifier`.
        seed: fixes every draw.

    Takes PIL images, `tv_tensors.Image` and `Video`, and pure tensors as v2 does (the first one, where there is no
    explicit image): (..., 3, H, W), uint8 or floating point in [0, 1]. The noise of an image is a function of the seed
    and of its pixels: the same image always has the same result, in whichever worker and epoch.
    """

    def __init__(self, purifier: Purifier, *, seed: int = 0) -> None:
        super().__init__()
        self.purifier, self.seed = purifier, seed

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One input of the sample."""
        if isinstance(inpt, Image.Image):
            return self.purifier([inpt], seed=self.seed, ids=[_name(np.asarray(inpt))])[0]
        if isinstance(inpt, tv_tensors.TVTensor) and not isinstance(inpt, tv_tensors.Image | tv_tensors.Video):
            return inpt
        images = inpt.as_subclass(Tensor)
        if images.ndim < 3:
            raise InputError(f"an image must be (..., 3, H, W), got {tuple(images.shape)}")
        batch = images.reshape(-1, *images.shape[-3:])
        ids = [_name(image.cpu().numpy()) for image in batch]
        out = self.purifier(batch, seed=self.seed, ids=ids).reshape(images.shape)
        return tv_tensors.wrap(out, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else out


def _name(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
