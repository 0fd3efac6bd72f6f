"""Pictures of any sizes, in batches of fixed shapes: what the network sees never depends on the neighbors.

Pictures are grouped by size and integer type; each group passes in batches of exactly B images, the last one filled up
by repeating its first. B is a pure function of the recorded batch size and the area:

    B(H, W) = max(1, batch_size * 32 * 32 // (H * W))

Where memory runs out, a batch is computed as two halves, these as quarters, and so on; the shapes that were really
computed are counted in the record. Halves give the bytes of the whole as far as the network's arithmetic does not
depend on the number of images (measured: docs/trust.md).

Both users, the job and the scores, come through here. Nothing here knows of files, journals or targets.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pureebm.data.base import Loaded, Picture, Pixels, Source
from pureebm.data.ranges import stack, unstack
from pureebm.errors import InputError
from pureebm.types import Stage

log = logging.getLogger(__name__)

T = TypeVar("T")

MIN_SIDE = 16
AUTO_BATCH_SIZE = 64
CHUNK_ITEMS = 256
CHUNK_PIXELS = 24 * 2**20  # of one chunk; six chunks or so are in memory at a time
SPOTS, SPOT_ITEMS = 16, 8  # where and how much a look at a source reads


@dataclass(slots=True)
class Outcome:
    """What became of one item: new pixels, or a message that says why there are none."""

    loaded: Loaded
    pixels: Pixels | None = None
    message: str = ""
    energy_before: float | None = None
    energy_after: float | None = None
    kept: bool = False  # its energy is not among the highest: it stays as it is

    @property
    def picture(self) -> Picture:
        """The decoded source picture; only asked for where there is one."""
        assert self.loaded.picture is not None
        return self.loaded.picture

    def psnr(self) -> float | None:
        """Of the new pixels to the old ones, in dB; infinite where they are equal."""
        if self.pixels is None:
            return None
        difference = self.pixels.astype(np.float64) - self.picture.pixels.astype(np.float64)
        error = float(np.mean(difference**2))
        return float(10 * np.log10(np.iinfo(self.pixels.dtype).max ** 2 / error)) if error else float("inf")


@dataclass(slots=True)
class Work:
    """What computing cost: seconds inside the stage, and how many batches of which shape."""

    seconds: float = 0.0
    shapes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a look at a few of a source's pictures showed; failed ones are not counted."""

    shapes: tuple[tuple[int, int], ...]
    example: Picture | None

    @property
    def mean_area(self) -> float:
        return float(np.mean([h * w for h, w in self.shapes])) if self.shapes else 1024.0

    def batch_size(self) -> int:
        """64 images of 32x32; 1 where most pictures differ in size, since padding would waste the work."""
        full = [n for n in Counter(self.shapes).values() if n >= 4]
        return AUTO_BATCH_SIZE if 2 * sum(full) >= len(self.shapes) else 1

    def common_shape(self) -> tuple[int, int]:
        """Height and width of most pictures; 32x32 if none could be read."""
        return self.example.pixels.shape[:2] if self.example is not None else (32, 32)

    def chunk_items(self) -> int:
        """Items of one chunk: 256, or fewer if pictures are large, so that memory stays bounded."""
        return int(max(1, min(CHUNK_ITEMS, CHUNK_PIXELS // self.mean_area)))


def look(source: Source, total: int) -> Sizes:
    """Decode up to 128 of the first `total` items, spread over the source."""
    starts = sorted({min(total - 1, spot * total // SPOTS) for spot in range(SPOTS)})
    seen: dict[int, Picture] = {}
    for start in starts:
        for loaded in source.load(start, min(start + SPOT_ITEMS, total)):
            if loaded.picture is not None and min(loaded.picture.pixels.shape[:2]) >= MIN_SIDE:
                seen[loaded.item.index] = loaded.picture
    shapes = tuple(picture.pixels.shape[:2] for picture in seen.values())
    common = Counter(shapes).most_common(1)
    example = next((p for p in seen.values() if p.pixels.shape[:2] == common[0][0]), None) if common else None
    return Sizes(shapes, example)


def images_per_batch(batch_size: int, height: int, width: int) -> int:
    """How many pictures of this size pass at once."""
    return max(1, batch_size * 1024 // (height * width))


def check_batch_size(batch_size: int | None) -> None:
    """Refuse what is not a positive number of images (None stands for auto)."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size must be at least 1 or auto, got {batch_size}")


def purify_items(
    items: Sequence[Loaded], stage: Stage, *, seed: int, batch_size: int, work: Work, on_batch: Callable[[int], None]
) -> list[Outcome]:
    """Purify all readable pictures of a chunk.

    Args:
        items: As they came from the source.
        stage: Sees batches of fixed shapes only.
        seed: Handed to the stage.
        batch_size: Images of 32x32 in a batch.
        work: Grows by what this cost.
        on_batch: Called after each batch with the number of items it settled.

    Returns:
        One outcome an item, in the order of `items`. Bad input, non-finite energies and non-finite results are
        messages there; they never raise and never touch another item.
    """
    outcomes = [_admit(loaded) for loaded in items]
    on_batch(sum(bool(outcome.message) for outcome in outcomes))
    for batch in _batches(outcomes, batch_size):
        images, ids = _padded(batch, batch_size)
        began = time.perf_counter()
        try:
            before = _energies(stage, images)
            purified = _purified(stage, images, ids, seed, work)
            pixels = unstack(purified[: len(batch)], like=[outcome.picture.pixels for outcome in batch])
            after = _energies(stage, _repeat_first(stack(pixels), len(images)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            for outcome in batch:
                outcome.message = "memory ran out even for one image at a time"
            on_batch(len(batch))
            continue
        work.seconds += time.perf_counter() - began
        finite = purified.flatten(1).isfinite().all(1).tolist()
        for outcome, new, ok, low, high in zip(
            batch, pixels, finite, _floats(before, len(batch)), _floats(after, len(batch)), strict=False
        ):
            _settle(outcome, new, ok, low, high)
        on_batch(len(batch))
    return outcomes


def score_items(items: Sequence[Loaded], stage: Stage, *, batch_size: int) -> list[Outcome]:
    """Only the energies of all readable pictures; `InputError` if the stage has none."""
    outcomes = [_admit(loaded) for loaded in items]
    for batch in _batches(outcomes, batch_size):
        energies = _energies(stage, _padded(batch, batch_size)[0])
        if energies is None:
            raise InputError("this purifier has no energy, so it cannot score images; choose an energy model")
        for outcome, energy in zip(batch, _floats(energies, len(batch)), strict=True):
            outcome.energy_before = energy
            if energy is not None and not np.isfinite(energy):
                outcome.message = f"its energy is {energy}"
    return outcomes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the processor had no memory left, in whatever way torch says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _purified(stage: Stage, images: Tensor, ids: list[str], seed: int, work: Work) -> Tensor:
    """(B, 3, H, W) float32 on the CPU."""

    def compute(start: int, stop: int) -> Tensor:
        out = stage.purify_batch(_part(images, start, stop), ids[start:stop], seed=seed).detach().float().cpu()
        work.shapes["x".join(map(str, (stop - start, *images.shape[1:])))] += 1
        return out

    return torch.cat(_or_in_halves(compute, 0, len(images)))


def _energies(stage: Stage, images: Tensor) -> Tensor | None:
    parts = _or_in_halves(lambda start, stop: stage.energies(_part(images, start, stop)), 0, len(images))
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _part(images: Tensor, start: int, stop: int) -> Tensor:
    """The whole batch as the very same object, by which a stage knows it again."""
    return images if stop - start == len(images) else images[start:stop]


def _or_in_halves(compute: Callable[[int, int], T], start: int, stop: int) -> list[T]:
    """compute(start, stop), or where memory runs out its halves one after the other; raises for a single image."""
    try:
        return [compute(start, stop)]
    except (RuntimeError, MemoryError) as error:
        if stop - start == 1 or not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("memory ran out for %d images at once; going on with half as many", stop - start)
    middle = (start + stop + 1) // 2
    return _or_in_halves(compute, start, middle) + _or_in_halves(compute, middle, stop)


def _admit(loaded: Loaded) -> Outcome:
    """Only pictures of at least 16 px are purified."""
    if loaded.picture is None:
        message = str(loaded.error or "cannot be read")
        return Outcome(loaded, message=message.removeprefix(f"{loaded.item.id}: "))
    height, width = loaded.picture.pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return Outcome(loaded, message=f"{width}x{height} pixels: both sides must have at least {MIN_SIDE}")
    return Outcome(loaded)


def _batches(outcomes: Sequence[Outcome], batch_size: int) -> Iterator[list[Outcome]]:
    """Groups of one size and integer type, cut to at most B pictures each."""
    groups: dict[tuple[tuple[int, ...], str], list[Outcome]] = {}
    for outcome in outcomes:
        if not outcome.message:
            pixels = outcome.picture.pixels
            groups.setdefault((pixels.shape, pixels.dtype.name), []).append(outcome)
    for ((height, width, *_), _), group in groups.items():
        size = images_per_batch(batch_size, height, width)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _padded(batch: Sequence[Outcome], batch_size: int) -> tuple[Tensor, list[str]]:
    """(B, 3, H, W) in [-1, 1] and B ids; a short batch repeats its first image."""
    images = stack([outcome.picture.pixels for outcome in batch])
    size = images_per_batch(batch_size, *images.shape[2:])
    ids = [outcome.loaded.item.id for outcome in batch]
    return _repeat_first(images, size), ids + ids[:1] * (size - len(ids))


def _repeat_first(images: Tensor, size: int) -> Tensor:
    return torch.cat([images, images[:1].expand(size - len(images), -1, -1, -1)]).contiguous()


def _floats(energies: Tensor | None, n: int) -> list[float] | list[None]:
    """The first n as numbers, or Nones where there is no energy."""
    values: list[float] = [] if energies is None else energies[:n].detach().float().cpu().tolist()
    return values if energies is not None else [None] * n


def _settle(outcome: Outcome, pixels: Pixels, finite: bool, before: float | None, after: float | None) -> None:
    """Accept a result, or say what is wrong with it; a non-finite one is never kept."""
    outcome.energy_before, outcome.energy_after = before, after if finite else None
    if before is not None and not np.isfinite(before):
        outcome.message, outcome.energy_before, outcome.energy_after = f"its energy is {before}", None, None
    elif not finite:
        outcome.message = "purifying gave values that are not finite"
    elif after is not None and not np.isfinite(after):
        outcome.message, outcome.energy_after = f"the energy of the result is {after}", None
    else:
        outcome.pixels = pixels
