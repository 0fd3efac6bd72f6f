"""A whole image set as one uint8 array of one size: what training draws its batches from.

32 x 32 RGB takes 3 KB an image, so that 100,000 images take 300 MB; the array is kept in memory and, decoded,
in a file beside the run. Larger sets want a smaller sample of themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pureebm.data.base import Source
from pureebm.data.labels import square
from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.types import JSON

Images = NDArray[np.uint8]

_CHUNK = 1024


def load_images(
    path: Path, size: int, *, cache: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> tuple[Images, JSON]:
    """Every readable image of a source as (N, size, size, 3) uint8, and what is known of it.

    Args:
        path: anything `open_source` recognizes.
        size: side of the result; see `square`.
        cache: where the array is kept as .npy; used again while the source's fingerprint stays the same.
        report: told about long decoding and about images that cannot be read.

    Returns:
        The array, and "images", "unreadable", "size" and the array's "sha256".

    Raises:
        InputError: no image can be read.
    """
    source = open_source(path)
    known: JSON = {"source": source.describe(), "size": size}
    note = cache.with_suffix(".json") if cache else None
    if cache and note and cache.exists() and note.exists():
        old = json.loads(note.read_text("utf-8"))
        if old["known"] == known:
            return np.load(cache), old["about"]
    images = _decode(source, size, report)
    failed = len(source) - len(images)
    if failed:
        report(f"{failed:,} images of {path} cannot be read and are left out")
    about: JSON = {"images": len(images), "unreadable": failed, "size": size}
    about["sha256"] = hashlib.sha256(images.data).hexdigest()
    if cache and note:
        _write_array(cache, images)
        note.write_text(json.dumps({"known": known, "about": about}), "utf-8")
    return images, about


def _decode(source: Source, size: int, report: Callable[[str], None]) -> Images:
    parts: list[Images] = []
    for start in range(0, len(source), _CHUNK):
        loaded = source.load(start, min(start + _CHUNK, len(source)))
        parts += [square(item.picture.pixels, size)[None] for item in loaded if item.picture is not None]
        if start // _CHUNK % 20 == 19:
            report(f"decoded {start + len(loaded):,} of {len(source):,} images")
    if not parts:
        raise InputError(f"{source.path}: none of its {len(source)} images can be read; `pureebm score` says why")
    return np.concatenate(parts)


def _write_array(path: Path, images: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, images)
    os.replace(part, path)
