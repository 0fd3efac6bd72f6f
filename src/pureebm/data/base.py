"""What a source and a sink of images are. The job (`pureebm.purify.job`) knows only this page.

A source numbers its images 0 .. len-1 in the order of the data set and loads them in ranges; a sink
stores finished ranges durably in a staging folder and, when all are there, makes the target of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pureebm.errors import ItemError
from pureebm.types import JSON

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Item:
    """One image's place in a data set.

    `id` is its name in the source (a folder's posix path, a file's name and row): unique there, and
    what its noise depends on. `target_name` is its name in the target, when purified.
    """

    index: int
    id: str
    target_name: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: what is purified, and what is needed to store it as it was.

    `pixels` is (H, W, 3) RGB, uint8 or uint16, upright. `mode` is how the source stores it (Pillow's
    name: "L", "RGB", "RGBA", "P", "CMYK", "I;16", ...). `alpha` is (H, W) and passes through.
    """

    pixels: Pixels
    mode: str = "RGB"
    alpha: Pixels | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """An item as it came from its source: a picture, or the reason why there is none."""

    item: Item
    picture: Picture | None
    error: ItemError | None
    sha256: str  # of the stored bytes (a file, a cell, an array row); "" where they cannot be read


@dataclass(frozen=True, slots=True)
class Result:
    """What is to be stored of one item.

    purified: `picture` holds the new pixels; copied: the source's own bytes are passed on; skipped:
    the item is left out of the target.
    """

    item: Item
    status: Literal["purified", "copied", "skipped"]
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the sink made of a result: its name in the target ("" if skipped) and the bytes' sha256."""

    target_name: str
    sha256: str


class Sink(Protocol):
    """Where purified images go. `staging` is a folder on the target's file system, the sink's alone."""

    def write(self, chunk: int, results: Sequence[Result]) -> list[Stored]:
        """Store one finished range, in order. Durable (fsync) when it returns; may be repeated after a crash.

        The bytes it stores depend on the results alone. Raises OSError (disk full, permission).
        """
        ...

    def assemble(self, target: Path, n_chunks: int) -> None:
        """Make `target` of all chunks: beside it first, fsync, then one rename. May be repeated after a crash.

        `target` does not exist yet (or is an empty place that the job has cleared).
        """
        ...


class Source(Protocol):
    """A data set on disk, opened for reading. Opening raises `InputError` and decodes no image."""

    kind: str  # "folder", "npz", "cifar", "parquet"
    path: Path
    single_file: bool  # the target is a file, so that run records stand in TARGET.pureebm/

    def __len__(self) -> int: ...

    def load(self, start: int, stop: int) -> list[Loaded]:
        """Items start .. stop-1, decoded. Never raises for one bad item. Called from one thread at a time,
        mostly with growing `start`; memory is bounded by the range, not by the data set."""
        ...

    def describe(self) -> JSON:
        """Kind, count, classes, splits, what is passed on unpurified, ... and a "fingerprint" of names, sizes
        and modification times that changes when the source changes. Recorded; compared on resume."""
        ...

    def open_sink(self, staging: Path) -> Sink:
        """A sink that writes this kind; `staging` is created if missing and may hold earlier chunks."""
        ...
