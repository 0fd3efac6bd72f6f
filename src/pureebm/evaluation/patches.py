"""The same small patch at the same place in many images of one class, as a dirty-label backdoor leaves it.

Every 3 x 3 window that stands out from its surroundings is hashed with its place; a patch of up to 8 x 8 has at least
one such window. What is frequent within a class is found in one pass with bounded memory by lossy counting (Manku and
Motwani, VLDB 2002): in each bucket of images, entries that are not seen again are dropped. A second pass counts what
was found exactly, in all classes, and names the images.

Colors count with four bits a channel. A patch that was blended in, moves, or was saved as JPEG is not found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Pixels8 = NDArray[np.uint8]
Keys = NDArray[np.int64]

WINDOW, AROUND = 3, 5
MIN_CONTRAST = 48
"""Between the brightest and darkest value of a channel in the 5 x 5 around a window; below, it is background."""

BUCKET_IMAGES, BUCKET_WINDOWS = 256, 2**22
MAX_AREA = 2**20
"""Pixels; larger images are not looked at, since all their windows are in memory at once."""

MIN_IMAGES = 5
MIN_SHARE = 0.01
"""A patch counts from so many images and from this share of a class on."""

MIN_RATIO = 10.0
"""How much more frequent in its class than in all others, to be of one class."""

_GENERATOR = np.random.default_rng(20_250_101)
_MULTIPLIERS = [int(m) | 1 for m in _GENERATOR.integers(-(2**62), 2**62, WINDOW**2)]
_PLACE, _CLASS = (int(m) | 1 for m in _GENERATOR.integers(-(2**62), 2**62, 2))


@dataclass(frozen=True, slots=True)
class Patch:
    """Where it stands and who has it. label: the class, None where it is in many classes."""

    top: int
    left: int
    height: int
    width: int
    label: int | None
    images: Keys  # their numbers in the set
    share: float  # of the class's images (of all, where it is in many classes)
    share_elsewhere: float  # of the images of the other classes


def window_keys(pixels: Pixels8) -> tuple[Keys, Keys, Keys]:
    """(N, H, W, 3) -> for each window that stands out: its hash with its place, its image 0 .. N-1, its place.

    A place is y * W + x of the window's upper left pixel.
    """
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    planes = images.permute(0, 3, 1, 2).float()
    pad = AROUND // 2
    brightest = F.max_pool2d(planes, AROUND, stride=1, padding=pad)
    darkest = -F.max_pool2d(-planes, AROUND, stride=1, padding=pad)
    stands_out = (brightest - darkest).amax(1)[:, 1:-1, 1:-1] >= MIN_CONTRAST  # (N, H - 2, W - 2), by upper left pixel
    code = (images >> 4).long()
    code = (code[..., 0] << 8) | (code[..., 1] << 4) | code[..., 2]  # (N, H, W)
    height, width = code.shape[1] - WINDOW + 1, code.shape[2] - WINDOW + 1
    hashes = torch.zeros(len(code), height, width, dtype=torch.int64)
    for number, multiplier in enumerate(_MULTIPLIERS):
        dy, dx = divmod(number, WINDOW)
        hashes += code[:, dy : dy + height, dx : dx + width] * multiplier
    places = torch.arange(height)[:, None] * pixels.shape[2] + torch.arange(width)
    hashes = _mixed(hashes + places * _PLACE)
    owners = torch.arange(len(code))[:, None, None].expand_as(hashes)
    return (
        hashes[stands_out].numpy(),
        owners[stands_out].numpy(),
        places.expand_as(hashes)[stands_out].numpy(),
    )


def _mixed(values: Tensor) -> Tensor:
    """Every bit depends on every bit (the finish of SplitMix64, with arithmetic shifts)."""
    values = (values ^ (values >> 30)) * -0x40A7B892E31B1A47
    values = (values ^ (values >> 27)) * -0x6B2FB644ECCEEE15
    return values ^ (values >> 31)


@dataclass(slots=True)
class FrequentWindows:
    """First pass: which windows are frequent in a class. Images must all have one size."""

    keys: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    hashes: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    labels: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    counts: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    missed: Keys = field(default_factory=lambda: np.empty(0, np.int64))  # at most so many before it was noticed
    waiting: list[tuple[Pixels8, int]] = field(default_factory=list)  # less than a bucket
    bucket: int = 0

    def add(self, pixels: Pixels8, labels: Keys) -> None:
        """(N, H, W, 3) and (N,) labels."""
        most = min(BUCKET_IMAGES, max(1, BUCKET_WINDOWS // (pixels.shape[1] * pixels.shape[2])))
        self.waiting += zip(pixels, labels.tolist(), strict=True)
        while len(self.waiting) >= most:
            self._add_bucket(self.waiting[:most])
            del self.waiting[:most]

    def _add_bucket(self, images: list[tuple[Pixels8, int]]) -> None:
        self.bucket += 1
        pixels, labels = np.stack([one for one, _ in images]), np.array([label for _, label in images], np.int64)
        hashes, owners, _ = window_keys(pixels)
        keys = hashes ^ (labels[owners] * _CLASS)
        keys, first, counts = np.unique(keys, return_index=True, return_counts=True)
        place = np.asarray(np.searchsorted(self.keys, keys))
        known = np.zeros(len(keys), bool)
        inside = place < len(self.keys)
        known[inside] = self.keys[place[inside]] == keys[inside]
        self.counts[place[known]] += counts[known]
        new = ~known
        merged = np.concatenate([self.keys, keys[new]])
        order = np.argsort(merged, kind="stable")
        self.counts = np.concatenate([self.counts, counts[new]])[order]
        self.missed = np.concatenate([self.missed, np.full(new.sum(), self.bucket - 1)])[order]
        self.hashes = np.concatenate([self.hashes, hashes[first][new]])[order]
        self.labels = np.concatenate([self.labels, labels[owners[first]][new]])[order]
        self.keys = merged[order]
        kept = self.counts + self.missed > self.bucket
        for name in ("keys", "hashes", "labels", "counts", "missed"):
            setattr(self, name, getattr(self, name)[kept])

    def candidates(self, class_sizes: dict[int, int]) -> Keys:
        """Ends the pass: the hashes of all windows that may be frequent enough in some class."""
        if self.waiting:
            self._add_bucket(self.waiting)
            self.waiting = []
        enough = np.array([_enough(class_sizes[int(label)]) for label in self.labels], np.int64)
        return np.unique(self.hashes[self.counts + self.missed >= enough])


def _enough(class_size: int) -> int:
    return max(MIN_IMAGES, math.ceil(MIN_SHARE * class_size))


@dataclass(slots=True)
class Occurrences:
    """Second pass: which images have which of the candidate windows."""

    candidates: Keys  # sorted
    found: list[tuple[Keys, Keys, Keys]] = field(default_factory=list)  # candidate, image, place

    def add(self, pixels: Pixels8, numbers: Keys) -> None:
        """(N, H, W, 3) and the images' numbers in the set."""
        hashes, owners, places = window_keys(pixels)
        which = np.searchsorted(self.candidates, hashes)
        hit = which < len(self.candidates)
        hit[hit] = self.candidates[which[hit]] == hashes[hit]
        self.found.append((which[hit], numbers[owners[hit]], places[hit]))

    def patches(self, labels: Keys, class_sizes: dict[int, int], width: int) -> list[Patch]:
        """The patches that are frequent in a class and rare elsewhere, or frequent everywhere; the largest first.

        Args:
            labels: of every image of the set, by number.
            class_sizes: images of each class that were read.
            width: of the images.
        """
        if not self.found:
            return []
        which, numbers, places = (np.concatenate(part) for part in zip(*self.found, strict=True))
        windows = []
        for candidate in np.unique(which):
            mine = which == candidate
            window = _judge(numbers[mine], int(places[mine][0]), labels, class_sizes, width)
            if window is not None:
                windows.append(window)
        return _merged(windows)


def _judge(images: Keys, place: int, labels: Keys, class_sizes: dict[int, int], width: int) -> Patch | None:
    """One window: frequent in one class, in all, or in none (None)."""
    total = sum(class_sizes.values())
    found, counts = np.unique(labels[images], return_counts=True)
    sizes = np.array([class_sizes[int(label)] for label in found])
    top = int(np.argmax(counts / sizes))
    label, count, size = int(found[top]), int(counts[top]), int(sizes[top])
    elsewhere = (len(images) - count) / (total - size) if total > size else 0.0
    y, x = divmod(place, width)
    if count >= _enough(size) and count / size >= MIN_RATIO * elsewhere and len(class_sizes) > 1:
        mine = images[labels[images] == label]
        return Patch(y, x, WINDOW, WINDOW, label, mine, count / size, elsewhere)
    if len(images) >= _enough(total):
        return Patch(y, x, WINDOW, WINDOW, None, images, len(images) / total, 0.0)
    return None


def _merged(windows: list[Patch]) -> list[Patch]:
    """Windows of the same class that overlap or touch and mostly stand in the same images are one patch."""
    groups: list[list[Patch]] = []
    for window in sorted(windows, key=lambda w: -len(w.images)):
        for group in groups:
            if any(_belong(window, other) for other in group):
                group.append(window)
                break
        else:
            groups.append([window])
    patches = []
    for group in groups:
        top, left = min(w.top for w in group), min(w.left for w in group)
        bottom, right = max(w.top + w.height for w in group), max(w.left + w.width for w in group)
        first = group[0]
        patches.append(
            Patch(top, left, bottom - top, right - left, first.label, first.images, first.share, first.share_elsewhere)
        )
    return patches


def _belong(window: Patch, other: Patch) -> bool:
    near = max(abs(window.top - other.top), abs(window.left - other.left)) <= WINDOW
    if window.label != other.label or not near:
        return False
    return 2 * len(np.intersect1d(window.images, other.images)) >= min(len(window.images), len(other.images))
