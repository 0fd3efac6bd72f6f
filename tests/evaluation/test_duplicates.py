"""Equal and near duplicates: copies that were saved again or resized are found, other pictures are not."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pureebm.data.base import Picture
from pureebm.data.npz import NpzSource
from pureebm.evaluation.duplicates import digest, groups_of_equal, groups_of_pairs, looks, near_pairs


def sample(root: object) -> list[np.ndarray]:
    """The bundled real pictures."""
    source = NpzSource(root / "src" / "pureebm" / "data" / "demo" / "cifar10-sample.npz")  # type: ignore[operator]
    return [loaded.picture.pixels for loaded in source.load(0, len(source)) if loaded.picture]


def jpeg(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=75)
    return np.asarray(Image.open(file))


def test_saved_again_resized_and_slightly_changed_pictures_are_near_their_originals(root) -> None:
    pictures = sample(root)
    n, random = len(pictures), np.random.default_rng(0)
    copies = [jpeg(picture) for picture in pictures[:20]]
    copies += [np.asarray(Image.fromarray(picture).resize((64, 64))) for picture in pictures[20:40]]
    copies += [np.clip(p + random.integers(-8, 9, p.shape), 0, 255).astype(np.uint8) for p in pictures[40:60]]
    found = {tuple(pair) for pair in near_pairs(*looks(pictures + copies)).tolist()}
    expected = {(number, n + number) for number in range(60)}
    assert found <= expected  # none of the others, and no two originals
    assert len(found) >= 54


def test_pictures_of_16_bit_look_as_their_8_bit_selves(root) -> None:
    pictures = sample(root)[:10]
    (thumbnails, bits), (others, same) = looks(pictures), looks([p.astype(np.uint16) * 257 for p in pictures])
    np.testing.assert_array_equal(thumbnails, others)
    np.testing.assert_array_equal(bits, same)


def test_flat_pictures_are_not_near_each_other() -> None:
    flat = [np.full((32, 32, 3), shade, np.uint8) for shade in range(100, 140)]
    assert len(near_pairs(*looks(flat))) == 0


def test_digests_are_of_pixels_shape_and_transparency() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    one = digest(Picture(pixels))
    assert one == digest(Picture(pixels.copy(), "P"))
    assert one != digest(Picture(pixels.reshape(2, 8, 3)))
    assert one != digest(Picture(pixels, "RGBA", np.zeros((4, 4), np.uint8)))
    assert one != digest(Picture(pixels.astype(np.uint16)))


def test_groups() -> None:
    assert groups_of_equal([b"a", None, b"b", b"a", None, b"a"]) == [[0, 3, 5]]
    assert groups_of_pairs([(4, 9), (1, 2), (2, 9), (5, 6)]) == [[1, 2, 4, 9], [5, 6]]
    assert groups_of_pairs([]) == []
