"""The data sets of the benchmarks as arrays, read from Parquet in the Hugging Face image layout.

Layout of the folder: cifar10/train.parquet, cifar10/test.parquet, tiny-imagenet/train.parquet (columns
`image` with `bytes`, and `label`). Files come from their publishers: they are not treated as hostile here.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from pureebm.errors import InputError

SIZE = 32
"""Side of every image here; larger ones are averaged down by a whole factor."""


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


def read_labeled(path: Path) -> LabeledImages:
    """Decode a whole Parquet file; takes seconds for CIFAR-10. Raises `InputError` for a missing file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    images, labels = [], []
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["image", "label"]):
        images += [_decode(cell["bytes"]) for cell in batch.column("image").to_pylist()]
        labels += batch.column("label").to_pylist()
    return LabeledImages(torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64))


def _decode(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.width != image.height or image.width % SIZE:
        raise InputError(f"benchmark images must be square, of a multiple of {SIZE} px; one is {image.size}")
    return np.asarray(image.reduce(image.width // SIZE))
