"""Data sets that are arrays: image rows in their stored layout, finished chunks of them, and picking rows again.

`.npz` and CIFAR share this. A row is one image's uint8 pixels: (H, W), (H, W, C) or (C, H, W).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pureebm.data.base import Item, Loaded, Picture, Result, Stored
from pureebm.data.durable import sync_folder, write_file
from pureebm.data.pictures import stored_pixels

Layout = Literal["HW", "HWC", "CHW"]
Rows = NDArray[np.uint8]
ReadRows = Callable[[int, int], Rows]
"""(start, stop) -> the rows between."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def picture_of(row: Rows, layout: Layout) -> Picture:
    """One image of 1, 3 or 4 channels (the fourth is alpha) -> its picture."""
    pixels = np.moveaxis(row, 0, -1) if layout == "CHW" else row.reshape(*row.shape[:2], -1)
    n_channels = pixels.shape[2]
    color = np.repeat(pixels, 3, axis=2) if n_channels == 1 else np.array(pixels[..., :3])
    return Picture(color, _MODES[n_channels], np.array(pixels[..., 3]) if n_channels == 4 else None)


def row_of(picture: Picture, layout: Layout, shape: tuple[int, ...]) -> Rows:
    """The inverse of `picture_of`, for a row of this shape."""
    pixels: NDArray[Any] = stored_pixels(picture)
    if layout == "CHW" and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, -1, 0)
    row: Rows = np.ascontiguousarray(pixels, np.uint8).reshape(shape)
    return row


def load_row(item: Item, row: Rows, layout: Layout) -> Loaded:
    return Loaded(item, picture_of(row, layout), None, row_sha256(row))


def row_sha256(row: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()


class RowChunks:
    """Finished rows in a staging folder, a file a chunk: which rows of the source they are, and their pixels."""

    def __init__(self, staging: Path, layout: Layout, shape: tuple[int, ...], read_source: ReadRows) -> None:
        """`read_source` gives the source's own rows, for results that are copied."""
        self.staging, self.layout, self.shape = staging, layout, shape
        self._read_source = read_source
        staging.mkdir(parents=True, exist_ok=True)

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        kept = [result for result in results if result.status != "skipped"]
        rows = [self._row(result) for result in kept]
        indices = np.array([result.item.index for result in kept], np.int64)
        block = np.stack(rows) if rows else np.empty((0, *self.shape), np.uint8)
        write_file(self._path(chunk), lambda file: np.savez(file, indices=indices, rows=block))
        sync_folder(self.staging)
        hashes = {result.item.index: row_sha256(row) for result, row in zip(kept, rows, strict=True)}
        return [
            Stored(result.item.target_name, hashes[result.item.index])
            if result.item.index in hashes
            else Stored("", "")
            for result in results
        ]

    def read(self, n_chunks: int) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """(indices in the source, rows) of each chunk, in order."""
        for chunk in range(n_chunks):
            with np.load(self._path(chunk), allow_pickle=False) as arrays:
                yield arrays["indices"], arrays["rows"]

    def kept(self, n_chunks: int) -> NDArray[np.int64]:
        """The source's indices of all rows that stay, in order."""
        indices = []
        for chunk in range(n_chunks):
            with np.load(self._path(chunk), allow_pickle=False) as arrays:
                indices.append(arrays["indices"])
        return np.concatenate(indices) if indices else np.empty(0, np.int64)

    def _path(self, chunk: int) -> Path:
        return self.staging / f"chunk-{chunk:08d}.npz"

    def _row(self, result: Result) -> Rows:
        if result.picture is not None and result.status == "purified":
            return row_of(result.picture, self.layout, self.shape)
        row: Rows = self._read_source(result.item.index, result.item.index + 1)[0]
        return row
