"""Fixed batch shapes: exact sizes, padding, and no mixing of what must stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.purify.job_fakes import Shift

from pureebm.data.base import Item, Loaded, Picture
from pureebm.purify.batches import Outcome, Sizes, Work, images_per_batch, purify_items


def loaded(index: int, pixels: np.ndarray) -> Loaded:
    return Loaded(Item(index, str(index), str(index)), Picture(pixels), None, "")


@pytest.mark.parametrize(
    ("batch_size", "height", "width", "expected"),
    [(64, 32, 32, 64), (64, 64, 64, 16), (64, 16, 16, 256), (64, 224, 224, 1), (1, 64, 64, 1), (64, 33, 32, 62)],
)
def test_batch_of_a_size_is_a_function_of_area(batch_size: int, height: int, width: int, expected: int) -> None:
    assert images_per_batch(batch_size, height, width) == expected


def test_chunks_shrink_with_the_area_of_the_pictures() -> None:
    assert Sizes(((32, 32),), None).chunk_items() == 256
    assert Sizes(((512, 512),), None).chunk_items() == 96
    assert Sizes(((8192, 8192),), None).chunk_items() == 1


def test_sixteen_bit_pictures_do_not_share_a_batch_with_eight_bit_ones() -> None:
    eight = np.full((16, 16, 3), 128, np.uint8)
    sixteen = np.full((16, 16, 3), 128 * 257, np.uint16)
    outcomes = purify_items(
        [loaded(0, eight), loaded(1, sixteen), loaded(2, eight)],
        Shift(0.0),
        seed=0,
        batch_size=1,
        work=Work(),
        on_batch=lambda n: None,
    )
    assert [outcome.pixels.dtype for outcome in outcomes] == [np.uint8, np.uint16, np.uint8]  # type: ignore[union-attr]
    assert [outcome.psnr() for outcome in outcomes] == [float("inf")] * 3
    assert outcomes[0].energy_before == pytest.approx(outcomes[1].energy_before, abs=1e-4)


def test_padding_repeats_the_first_image_and_its_id() -> None:
    seen = []

    class Watching(Shift):
        def purify_batch(self, images, ids, *, seed):  # type: ignore[no-untyped-def]
            seen.append((images.clone(), ids))
            return super().purify_batch(images, ids, seed=seed)

    items = [loaded(index, np.full((16, 16, 3), 40 * index, np.uint8)) for index in range(3)]
    purify_items(items, Watching(), seed=0, batch_size=1, work=Work(), on_batch=lambda n: None)
    ((images, ids),) = seen
    assert ids == ["0", "1", "2", "0"] and torch.equal(images[3], images[0])


def test_psnr_is_that_of_its_definition() -> None:
    old, new = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 51, np.uint8)
    assert Outcome(loaded(0, old), new).psnr() == pytest.approx(20 * np.log10(5))  # a fifth of the range everywhere
