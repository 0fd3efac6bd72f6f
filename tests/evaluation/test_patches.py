"""Repeated patches: found at their size and place, with exactly the images that have them; backgrounds are not."""

from __future__ import annotations

import numpy as np
import pytest

from pureebm.evaluation.patches import BUCKET_IMAGES, FrequentWindows, Occurrences, Patch, window_keys

N, CLASSES = 600, 4


def pictures(n: int = N, *, size: int = 20, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: plenty of contrast, no two windows alike."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (n, size // 4, size // 4, 3)).astype(float)
    fine = coarse.repeat(4, 1).repeat(4, 2) + random.normal(0, 12, (n, size, size, 3))
    return fine.clip(0, 255).astype(np.uint8)


def find(images: np.ndarray, labels: np.ndarray, *, chunk: int = 100) -> list[Patch]:
    frequent = FrequentWindows()
    for start in range(0, len(images), chunk):
        frequent.add(images[start : start + chunk], labels[start : start + chunk])
    sizes = {int(label): int((labels == label).sum()) for label in np.unique(labels)}
    occurrences = Occurrences(frequent.candidates(sizes))
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        occurrences.add(part, np.arange(start, start + len(part)))
    return occurrences.patches(labels, sizes, images.shape[2])


@pytest.mark.parametrize(("side", "top", "left"), [(3, 17, 17), (3, 0, 5), (5, 8, 8), (8, 12, 0)])
def test_a_white_square_is_found_at_its_place_with_its_images(side: int, top: int, left: int) -> None:
    images, labels = pictures(), np.arange(N) % CLASSES
    poisoned = np.flatnonzero(labels == 2)[::10]
    images[poisoned, top : top + side, left : left + side] = 255
    found = find(images, labels)
    assert [(p.top, p.left, p.height, p.width, p.label) for p in found] == [(top, left, side, side, 2)]
    np.testing.assert_array_equal(found[0].images, poisoned)
    assert found[0].share == pytest.approx(len(poisoned) / (N // CLASSES)) and found[0].share_elsewhere == 0


def test_a_patterned_patch_is_found_and_its_color_may_be_off_by_a_little() -> None:
    images, labels = pictures(), np.arange(N) % CLASSES
    pattern = np.array([[8, 248, 8], [248, 8, 248], [8, 248, 8]])[..., None].repeat(3, 2)
    poisoned = np.flatnonzero(labels == 0)[:12]
    for image in poisoned:
        images[image, 4:7, 9:12] = pattern + np.random.default_rng(image).integers(-7, 8, pattern.shape)
    (patch,) = find(images, labels)
    np.testing.assert_array_equal(patch.images, poisoned)


def test_a_patch_in_all_classes_is_of_no_class() -> None:
    images, labels = pictures(), np.arange(N) % CLASSES
    images[::9, 17:, 17:] = 255
    (patch,) = find(images, labels)
    assert patch.label is None and len(patch.images) == len(images[::9])


def test_nothing_is_found_in_clean_pictures_nor_in_flat_backgrounds() -> None:
    images, labels = pictures(), np.arange(N) % CLASSES
    images[labels == 1, :9] = 255  # a third of every picture of a class: a white sky
    images[labels == 1, 8] = pictures(seed=1)[labels == 1, 8]
    found = find(images, labels)
    assert all(patch.top + patch.height > 6 for patch in found)  # at most its lower edge, which is one
    images = pictures()
    images[labels == 1] = np.random.default_rng(2).integers(0, 256, (150, 1, 1, 3))  # blank pictures of any colors
    assert find(images, labels) == []


def test_too_few_images_and_too_small_a_share_are_no_finding() -> None:
    images, labels = pictures(), np.arange(N) % CLASSES
    images[np.flatnonzero(labels == 3)[:4], 17:, 17:] = 255
    assert find(images, labels) == []


def test_counts_are_those_of_one_great_bucket_however_the_images_are_cut() -> None:
    images, labels = pictures(2 * BUCKET_IMAGES), np.zeros(2 * BUCKET_IMAGES, np.int64)
    images[::50, :3, :3] = 0
    (patch,) = find(images, labels, chunk=37)
    assert len(patch.images) == len(images[::50]) and (patch.top, patch.left) == (0, 0)


def test_memory_of_the_first_pass_stays_small() -> None:
    frequent = FrequentWindows()
    for seed in range(8):
        frequent.add(pictures(seed=seed), np.zeros(N, np.int64))
    assert len(frequent.keys) < 200  # of 1.5 million windows


def test_a_window_has_the_same_key_in_any_picture_at_the_same_place_only() -> None:
    images = pictures(3)
    images[:, 5:8, 5:8] = (255, 0, 0)
    images[0, 11:14, 5:8] = (255, 0, 0)
    keys, owners, places = window_keys(images)
    at = {(int(o), int(p)): int(k) for k, o, p in zip(keys, owners, places, strict=True)}
    assert at[0, 5 * 20 + 5] == at[1, 5 * 20 + 5] == at[2, 5 * 20 + 5] != at[0, 11 * 20 + 5]
