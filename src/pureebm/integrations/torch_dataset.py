"""Any map-style PyTorch data set with its images purified once and kept on disk: `PurifiedDataset`.

    from torchvision.datasets import CIFAR10

    train = PurifiedDataset(CIFAR10("data"), Purifier.from_pretrained(), "data/purified", transform=augment)
    train.fill()  # all at once, resumable; or lazily, as the items are asked for

Give it the data set without its random transforms: what is purified once must be the image itself. Needs no extra.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pureebm.data.durable import write_file
from pureebm.data.pictures import decode_pil
from pureebm.errors import InputError
from pureebm.purify.purifier import Purifier


class Samples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class PurifiedDataset(Dataset[Any]):
    """The samples of a data set in their order, each with its image purified.

    Args:
        dataset: samples are an image, or tuples, lists or dicts that hold one: PIL images, or tensors (3, H, W),
            uint8 or floating point in [0, 1].
        purifier: see `Purifier`.
        folder: of the cache. It may be shared by data sets and settings: a file's name is a hash of the image, its id,
            the seed and the purifier's settings, so that a changed image is purified anew.
        image: where a sample holds its image.
        seed: fixes every draw.
        ids: a name for each sample, on which its noise depends; default: its index.
        transform: applied to the whole sample, after the purifier.
        block: so many neighbors are purified at once when one of them is first asked for. Another number may change
            last bits.
    """

    def __init__(
        self,
        dataset: Samples,
        purifier: Purifier,
        folder: str | Path,
        *,
        image: int | str = 0,
        seed: int = 0,
        ids: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        block: int = 64,
    ) -> None:
        if ids is not None and len(ids) != len(dataset):
            raise InputError(f"ids must name each of {len(dataset)} samples, got {len(ids)}")
        if block < 1:
            raise InputError(f"block must be at least 1, got {block}")
        self.dataset, self.purifier, self.folder = dataset, purifier, Path(folder)
        self.image, self.seed, self.ids, self.transform, self.block = image, seed, ids, transform, block
        if len(dataset):
            purifier([self._image_of(dataset[0])], seed=seed)  # settles what the purifier chooses by its first image
        settings = [purifier.stage.settings(), seed, block, version("pureebm")]
        self._settings = json.dumps(settings, sort_keys=True)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        index %= len(self)
        sample = self.dataset[index]
        path = self._path(index, self._image_of(sample))
        if not path.exists():
            self._fill(index // self.block)
        sample = self._replaced(sample, _read(path))
        return self.transform(sample) if self.transform else sample

    def fill(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Purify all that is not in the cache yet; return how many samples that were.

        `progress` is called after every block with the numbers of samples done and of all samples.
        """
        computed = 0
        for block in range(-(-len(self) // self.block)):
            computed += self._fill(block)
            if progress is not None:
                progress(min((block + 1) * self.block, len(self)), len(self))
        return computed

    def _fill(self, block: int) -> int:
        """A whole block, whatever of it is there: batches then never depend on what was done before."""
        indices = range(block * self.block, min((block + 1) * self.block, len(self)))
        images = [self._image_of(self.dataset[index]) for index in indices]
        paths = [self._path(index, image) for index, image in zip(indices, images, strict=True)]
        missing = [path for path in paths if not path.exists()]
        if missing:
            purified = _purified(self.purifier, images, [self._id(index) for index in indices], self.seed)
            for path, image in zip(paths, purified, strict=True):
                if not path.exists():
                    _write(path, image)
        return len(missing)

    def _id(self, index: int) -> str:
        return str(index) if self.ids is None else self.ids[index]

    def _path(self, index: int, image: Image.Image | Tensor) -> Path:
        key = hashlib.sha256(f"{self._settings}\n{self._id(index)}\n".encode("utf-8", "surrogateescape"))
        if isinstance(image, Image.Image):
            picture = decode_pil(image)
            key.update(f"{picture.mode} {picture.pixels.shape} {picture.pixels.dtype}\n".encode())
            key.update(np.ascontiguousarray(picture.pixels).tobytes())
            key.update(b"" if picture.alpha is None else np.ascontiguousarray(picture.alpha).tobytes())
        else:
            key.update(f"{image.dtype} {tuple(image.shape)}\n".encode() + image.contiguous().numpy().tobytes())
        name = key.hexdigest()
        return self.folder / name[:2] / (name + (".png" if isinstance(image, Image.Image) else ".npy"))

    def _image_of(self, sample: Any) -> Image.Image | Tensor:
        place: Any = self.image
        image = sample[place] if isinstance(sample, tuple | list | dict) else sample
        if isinstance(image, Image.Image | Tensor):
            return image
        raise InputError(
            f"a sample's image must be a PIL image or a tensor, got {type(image).__name__}; image={self.image!r} says"
            " where a sample holds it"
        )

    def _replaced(self, sample: Any, image: Image.Image | Tensor) -> Any:
        """The sample with another image, in its own type."""
        if isinstance(sample, dict):
            return {**sample, self.image: image}
        if isinstance(sample, tuple | list):
            assert isinstance(self.image, int)
            parts = list(sample)
            parts[self.image] = image
            return type(sample)(*parts) if hasattr(sample, "_fields") else type(sample)(parts)
        return image


def _purified(purifier: Purifier, images: Sequence[Any], ids: Sequence[str], seed: int) -> list[Any]:
    """In batches of one kind and shape."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        groups[() if isinstance(image, Image.Image) else (image.shape, image.dtype)].append(index)
    out = list(images)
    for kind, group in groups.items():
        batch: Any = [images[index] for index in group]
        purified = purifier(torch.stack(batch) if kind else batch, seed=seed, ids=[ids[index] for index in group])
        for index, image in zip(group, purified, strict=True):
            out[index] = image
    return out


def _write(path: Path, image: Image.Image | Tensor) -> None:
    """Whole or not at all, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    if isinstance(image, Image.Image):
        write_file(path, lambda file: image.save(file, "PNG"), aside=aside)
    else:
        write_file(path, lambda file: np.save(file, image.numpy(), allow_pickle=False), aside=aside)


def _read(path: Path) -> Image.Image | Tensor:
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    with Image.open(path) as image:
        image.load()
    return image
