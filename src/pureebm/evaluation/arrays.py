"""The data sets of the benchmarks as arrays, read from Parquet in the Hugging Face image layout.

Layout of the folder: cifar10/train.parquet, cifar10/test.parquet, tiny-imagenet/train.parquet and val.parquet (columns
`image` with `bytes`, and `label`). Files come from their publishers: they are not treated as hostile here.
A benchmark names its data as BASE[-SIZEpx][-Kclasses][-clean|-others][-N]:

    cifar10                 all of it
    cifar10-20000           the first 20,000 of one fixed random order, so subsets nest
    cifar10-clean-48000     the first 4,800 of every class: what extractors are pretrained on
    cifar10-others-500      50 of every class among those that no extractor saw: what is fine-tuned on
    tiny-imagenet-64px      at its own size; 32px: halved by averaging
    tiny-imagenet-64px-20classes   every tenth class, as classes 0 to 19; the others are public there
    synthetic-32px-400      colored textures of four classes, made on the spot; needs no file
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from pureebm.attacks.base import LabeledSet
from pureebm.data.durable import write_file
from pureebm.errors import InputError

SIZE = 32
"""Side of every image here unless another is asked for; larger ones are averaged down by a whole factor."""


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """(N, 32, 32, 3) uint8 and (N,) int64, in the order of the file."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def find_data(folder: Path | None = None) -> Path:
    """The folder given, else $PUREEBM_DATA, else ../shared/data. Raises `InputError` if there is none."""
    tried = [folder] if folder else [Path(os.environ.get("PUREEBM_DATA", "../shared/data")), Path("../shared/data")]
    for path in tried:
        if (path / "cifar10" / "train.parquet").is_file():
            return path
    places = ", ".join(str(path) for path in dict.fromkeys(tried))
    raise InputError(f"no cifar10/train.parquet in {places}; give the folder by --data or $PUREEBM_DATA")


def read_labeled(path: Path, *, size: int = SIZE) -> LabeledImages:
    """Decode a whole Parquet file; takes seconds for CIFAR-10. Raises `InputError` for a missing file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    images, labels = [], []
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["image", "label"]):
        images += [_decode(cell["bytes"], size) for cell in batch.column("image").to_pylist()]
        labels += batch.column("label").to_pylist()
    return LabeledImages(torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64))


def _decode(data: bytes, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width != image.height or image.width % size:
        raise InputError(f"benchmark images must be square, of a multiple of {size} px; one is {image.size}")
    return np.asarray(image.reduce(image.width // size))


N_PUBLIC = 28_000
"""Of the out-of-distribution images that an attacker may train on, at most this many: a fixed random subset."""

N_CLEAN = 4_800
"""Images of a class that extractors may be trained on, in the order of the file; the rest are the "others"."""

_NAME = re.compile(r"(cifar10|tiny-imagenet|synthetic)(?:-(\d+)px)?(?:-(\d+)classes)?(?:-(clean|others))?(?:-(\d+))?")
_FILES = {"cifar10": ("train", "test", 10), "tiny-imagenet": ("train", "val", 200)}
_PUBLIC = {"cifar10": "tiny-imagenet", "tiny-imagenet": "cifar10"}


@dataclass(frozen=True, slots=True)
class DataSet:
    """A training set with the ids of its images, and its test set."""

    name: str
    train: LabeledSet
    ids: Sequence[str]
    test: LabeledSet


class Shelf:
    """Data sets by name, each file decoded once into the folder `cache`.

    folder: as from `find_data`; it is asked for when the first file is, so that synthetic data need none.
    """

    def __init__(self, folder: Path | None, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self._held: dict[str, LabeledSet] = {}

    def load(self, name: str) -> DataSet:
        """Raises `InputError`: no name of the form above, a missing file, or more images asked than there are."""
        base, size, n_classes, part, n_wanted = _parse(name)
        if base == "synthetic":
            train, test = (textures(n, size, seed=seed) for seed, n in enumerate((n_wanted or 400, 100)))
            return DataSet(name, train, [f"synthetic/train/{row}" for row in range(len(train))], test)
        train, test = (self._read(base, split, size) for split in _FILES[base][:2])
        places = torch.arange(len(train))
        if n_classes is not None:
            chosen = spread_classes(train.n_classes, n_classes)
            places = torch.isin(train.labels, chosen).nonzero().squeeze(1)
            train, test = (of_classes(part, chosen) for part in (train, test))
        rows = _rows(name, train, part, n_wanted)
        ids = [f"{base}/train/{row}" for row in places[rows].tolist()]
        return DataSet(name, LabeledSet(train.images[rows], train.labels[rows], train.n_classes), ids, test)

    def public(self, name: str) -> LabeledSet | None:
        """Out-of-distribution images of the size of the data set `name`, None where we know of none as large."""
        base, size, n_classes, _, n_wanted = _parse(name)
        if base == "synthetic":
            return textures(n_wanted or 400, size, seed=2, n_classes=6)
        if n_classes is not None:
            every = self._read(base, "train", size)
            every = of_classes(every, spread_classes(every.n_classes, n_classes), others=True)
        elif base == "tiny-imagenet" and size > SIZE:
            return None
        else:
            every = self._read(_PUBLIC[base], "train", size)
        rows = torch.from_numpy(np.random.default_rng(0).permutation(len(every))[:N_PUBLIC])
        return LabeledSet(every.images[rows], every.labels[rows], every.n_classes)

    def _read(self, base: str, split: str, size: int) -> LabeledSet:
        stored = self.cache / (f"{base}-{split}" + (f"-{size}" if size != SIZE else "") + ".npz")
        if str(stored) not in self._held:
            if not stored.is_file():
                self.folder = find_data(self.folder)
                data = read_labeled(self.folder / base / f"{split}.parquet", size=size)
                save_arrays(stored, images=data.images, labels=data.labels)
            arrays = load_arrays(stored)
            self._held[str(stored)] = LabeledSet(arrays["images"], arrays["labels"], _FILES[base][2])
        return self._held[str(stored)]


def _parse(name: str) -> tuple[str, int, int | None, str | None, int | None]:
    """Base, side, classes if not all, part, images if not all."""
    match = _NAME.fullmatch(name)
    if match is None:
        known = "cifar10, tiny-imagenet and synthetic, with -SIZEpx, -Kclasses, -clean or -others, and -N"
        raise InputError(f"no data set {name!r} here; known: {known} (cifar10-20000, tiny-imagenet-64px)")
    base, size, n_classes, part, n_wanted = match.groups()
    if n_classes and (base == "synthetic" or not 2 <= int(n_classes) < _FILES[base][2]):
        raise InputError(f"data {name!r}: a part of the classes is of cifar10 or tiny-imagenet, 2 or more and not all")
    smallest = 16 if base == "synthetic" else SIZE
    classes, n_images = (int(count) if count else None for count in (n_classes, n_wanted))
    return base, int(size or smallest), classes, part, n_images


def spread_classes(n_classes: int, n_chosen: int) -> Tensor:
    """(n_chosen,) labels, ascending and evenly spaced: neighbors show like things where labels follow a hierarchy."""
    return torch.arange(n_chosen) * n_classes // n_chosen


def of_classes(data: LabeledSet, chosen: Tensor, *, others: bool = False) -> LabeledSet:
    """The images of some classes (or of all others), in their order, with labels from 0 on."""
    kept = torch.isin(torch.arange(data.n_classes), chosen) ^ others
    rows = kept[data.labels]
    labels = (kept.cumsum(0) - 1)[data.labels[rows]]
    return LabeledSet(data.images[rows], labels, int(kept.sum()))


def _rows(name: str, train: LabeledSet, part: str | None, n_wanted: int | None) -> Tensor:
    if part is None:
        every = (
            torch.from_numpy(np.random.default_rng(0).permutation(len(train))) if n_wanted else torch.arange(len(train))
        )
        chosen = every[:n_wanted]
    else:
        per_class = None if n_wanted is None else n_wanted // train.n_classes
        start = N_CLEAN if part == "others" else 0
        stop = None if part == "others" else N_CLEAN
        of_class = (train.rows_of(label)[start:stop][:per_class] for label in range(train.n_classes))
        chosen = torch.cat(list(of_class)).sort().values
    if n_wanted is not None and len(chosen) != n_wanted:
        raise InputError(
            f"data {name!r} asks for {n_wanted} images, equally many of each class; {len(chosen)} can be had"
        )
    return chosen


def textures(n: int, size: int, *, seed: int, n_classes: int = 4) -> LabeledSet:
    """Classes that a tiny network tells apart in seconds: stripes of a direction and a tint for each, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    y, x = np.mgrid[:size, :size]
    angles = np.pi * labels / n_classes
    phases = rng.uniform(0, 2 * np.pi, n)
    along = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    waves = 40 * np.sin(along * 1.2 + phases[:, None, None])
    tints = 128 + 25 * np.cos(2 * np.pi * (labels[:, None] / n_classes + np.arange(3) / 3))  # (N, 3)
    images = waves[..., None] + tints[:, None, None, :] + rng.normal(0, 22, (n, size, size, 3))
    pixels = torch.from_numpy(images.clip(0, 255).astype(np.uint8))
    return LabeledSet(pixels, torch.from_numpy(labels.astype(np.int64)), n_classes)


def save_arrays(path: Path, **arrays: Tensor) -> None:
    """Tensors as an .npz without pickles, whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    write_file(path, lambda file: np.savez(file, allow_pickle=False, **plain))


def load_arrays(path: Path) -> dict[str, Tensor]:
    """What `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
