"""From a source to one array of one size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pureebm.errors import InputError
from pureebm.training.images import load_images, square


def test_an_integer_factor_averages_areas_exactly():
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 4
    means = pixels.reshape(2, 2, 2, 2, 3).astype(float).mean((1, 3))
    assert np.abs(square(pixels, 2) - means).max() <= 0.5


def test_any_other_size_keeps_a_flat_image_flat_and_cuts_the_longer_side_at_its_centre():
    pixels = np.zeros((20, 50, 3), np.uint8)
    pixels[:, 15:35] = 200
    assert (square(pixels, 16) == 200).all() and square(pixels, 16).shape == (16, 16, 3)


def test_16_bit_pixels_are_scaled_not_wrapped():
    assert (square(np.full((16, 16, 3), 65535, np.uint16), 16) == 255).all()


def test_the_cache_serves_until_the_source_changes(tmp_path: Path):
    source, cache = tmp_path / "images.npz", tmp_path / "images.npy"
    np.savez(source, images=np.full((3, 16, 16, 3), 7, np.uint8))
    first, about = load_images(source, 16, cache=cache)
    stamp = cache.stat().st_mtime_ns
    again, same = load_images(source, 16, cache=cache)
    assert np.array_equal(first, again) and about == same and cache.stat().st_mtime_ns == stamp
    np.savez(source, images=np.full((5, 16, 16, 3), 9, np.uint8))
    changed, other = load_images(source, 16, cache=cache)
    assert (changed == 9).all() and len(changed) == 5 and other["sha256"] != about["sha256"]


def test_unreadable_images_are_counted_and_a_source_of_nothing_else_is_refused(tmp_path: Path):
    from PIL import Image

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "b.png").write_text("no image")
    with pytest.raises(InputError, match="none of its 1 images"):
        load_images(folder, 16)
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    lines: list[str] = []
    images, about = load_images(folder, 16, report=lines.append)
    assert images.shape == (1, 16, 16, 3) and about["unreadable"] == 1
    assert "1 images" in lines[0] and "left out" in lines[0]
