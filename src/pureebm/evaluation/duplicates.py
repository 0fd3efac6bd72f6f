"""Equal and nearly equal images, from a few bytes kept of each.

Of an image stay a hash of its pixels, an 8 x 8 thumbnail by area averaging, and 64 bits: whether each of 8 x 8 grey
areas is brighter than its right neighbor. Images are compared where they share 16 of these bits in one of four bands,
and are near duplicates where the bits hardly differ and the thumbnails are close for their contrast. So a picture that
was saved again, resized, or changed a little is found; one that was cropped, turned or mirrored is not.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pureebm.data.base import Picture, Pixels

SIDE = 8
BANDS = 4
MAX_BITS = 6
"""So many of the 64 bits may differ."""

MAX_DISTANCE = 12.0
"""Largest root mean square difference of thumbnails, of 255."""

MAX_RELATIVE = 0.3
"""And of the thumbnails' own standard deviation: flat images are all alike."""

MAX_NEIGHBORS = 50
"""Compared with each image of a crowded band, in the order of their mean brightness."""

Thumbnails = NDArray[np.uint8]
Bits = NDArray[np.uint64]


def digest(picture: Picture) -> bytes:
    """16 bytes that are equal for equal pixels, transparency included."""
    told = hashlib.blake2b(repr((picture.pixels.shape, picture.pixels.dtype.str)).encode(), digest_size=16)
    told.update(np.ascontiguousarray(picture.pixels).data)
    if picture.alpha is not None:
        told.update(np.ascontiguousarray(picture.alpha).data)
    return told.digest()


def looks(pixels: Sequence[Pixels]) -> tuple[Thumbnails, Bits]:
    """Pictures (H, W, 3) of any sizes -> (N, 8, 8, 3) thumbnails and (N,) words of bits."""
    thumbnails, bits = np.empty((len(pixels), SIDE, SIDE, 3), np.uint8), np.empty(len(pixels), np.uint64)
    shapes: dict[tuple[tuple[int, ...], str], list[int]] = defaultdict(list)
    for number, picture in enumerate(pixels):
        shapes[picture.shape, picture.dtype.str].append(number)
    for rows in shapes.values():
        batch = np.stack([pixels[row] for row in rows]).astype(np.float32)
        planes = torch.from_numpy(batch / (257 if pixels[rows[0]].dtype == np.uint16 else 1)).permute(0, 3, 1, 2)
        small = F.adaptive_avg_pool2d(planes, SIDE)
        thumbnails[rows] = small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        grey = F.adaptive_avg_pool2d(planes.mean(1, keepdim=True), (SIDE, SIDE + 1))[:, 0].numpy()
        brighter = (grey[:, :, :-1] > grey[:, :, 1:]).reshape(len(rows), SIDE * SIDE)
        bits[rows] = np.packbits(brighter, axis=1).view(">u8").astype(np.uint64)[:, 0]
    return thumbnails, bits


def groups_of_equal(digests: Sequence[bytes | None]) -> list[list[int]]:
    """Numbers of images with equal digests, in the order of their first."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for number, one in enumerate(digests):
        if one is not None:
            places[one].append(number)
    return [numbers for numbers in places.values() if len(numbers) > 1]


def near_pairs(thumbnails: Thumbnails, bits: Bits) -> NDArray[np.int64]:
    """(P, 2) rows of images that look alike, the smaller first. Equal ones are pairs too: give each only once."""
    found = [np.empty((0, 2), np.int64)]
    brightness = thumbnails.mean(axis=(1, 2, 3))
    for band in range(BANDS):
        words = (bits >> np.uint64(64 // BANDS * band)) & np.uint64(0xFFFF)
        order = np.lexsort((brightness, words))
        for step in range(1, min(MAX_NEIGHBORS, len(order) - 1) + 1):
            same = words[order[:-step]] == words[order[step:]]
            if not same.any():
                break
            pairs = np.sort(np.stack([order[:-step][same], order[step:][same]], axis=1), axis=1)
            found.append(_alike(pairs, thumbnails, bits))
    unique: NDArray[np.int64] = np.unique(np.concatenate(found), axis=0)
    return unique


def _alike(pairs: NDArray[np.int64], thumbnails: Thumbnails, bits: Bits) -> NDArray[np.int64]:
    """Those of the pairs whose bits and thumbnails hardly differ."""
    pairs = pairs[np.bitwise_count(bits[pairs[:, 0]] ^ bits[pairs[:, 1]]) <= MAX_BITS]
    close = [_close(thumbnails[pairs[start : start + 4096]]) for start in range(0, len(pairs), 4096)]
    return pairs[np.concatenate(close)] if close else pairs


def _close(pairs: Thumbnails) -> NDArray[np.bool_]:
    """(P, 2, 8, 8, 3) -> (P,)"""
    flat = pairs.reshape(len(pairs), 2, -1).astype(np.float32)
    distance = np.sqrt(((flat[:, 0] - flat[:, 1]) ** 2).mean(1))
    contrast = flat.std(axis=2).min(axis=1)
    close: NDArray[np.bool_] = (distance <= MAX_DISTANCE) & (distance <= MAX_RELATIVE * contrast)
    return close


def groups_of_pairs(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected numbers, each group sorted, in the order of their first."""
    leader: dict[int, int] = {}

    def find(number: int) -> int:
        while leader.setdefault(number, number) != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for one, other in pairs:
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    groups: dict[int, list[int]] = defaultdict(list)
    for number in sorted(leader):
        groups[find(number)].append(number)
    return [groups[first] for first in sorted(groups)]
