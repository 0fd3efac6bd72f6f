"""Fixed batch shapes: exact sizes, padding, and no mixing of what must stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.purify.job_fakes import Shift

from pureebm.data.base import Item, Loaded, Picture
from pureebm.purify.batches import Outcome, Sizes, Work, images_per_batch, purify_items, score_items


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


class Cramped(Shift):
    """Has memory for `most` images at once; says so as CUDA, Python or the processor's allocator do."""

    def __init__(self, most: int, error: BaseException) -> None:
        super().__init__()
        self.most, self.error = most, error

    def purify_batch(self, images, ids, *, seed):  # type: ignore[no-untyped-def]
        if len(images) > self.most:
            raise self.error
        return super().purify_batch(images, ids, seed=seed)

    def energies(self, images):  # type: ignore[no-untyped-def]
        if len(images) > 2 * self.most:
            raise self.error
        return super().energies(images)


def loaded_pictures(n: int) -> list[Loaded]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return [Loaded(Item(i, str(i), str(i)), Picture(pixels[i]), None, "") for i in range(n)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_where_memory_runs_out_halves_give_the_same_result_and_are_counted(error: BaseException) -> None:
    def purify(stage: Shift) -> tuple[list[Outcome], Work]:
        work = Work()
        items = loaded_pictures(13)
        return purify_items(items, stage, seed=3, batch_size=8, work=work, on_batch=lambda n: None), work

    whole, _ = purify(Shift())
    halves, work = purify(Cramped(2, error))
    assert work.shapes == {"2x3x32x32": 8}  # two batches of eight, in quarters
    for one, other in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert (one.energy_before, one.energy_after, other.message) == (other.energy_before, other.energy_after, "")


def test_a_batch_that_fits_in_no_part_fails_by_name_and_other_errors_are_raised() -> None:
    work, seen = Work(), list[int]()
    outcomes = purify_items(
        loaded_pictures(3), Cramped(0, MemoryError()), seed=0, batch_size=2, work=work, on_batch=seen.append
    )
    assert [outcome.message for outcome in outcomes] == ["memory ran out even for one image at a time"] * 3
    assert all(outcome.pixels is None for outcome in outcomes) and sum(seen) == 3
    with pytest.raises(RuntimeError, match="the cable is out"):
        purify_items(
            loaded_pictures(3),
            Cramped(1, RuntimeError("the cable is out")),
            seed=0,
            batch_size=2,
            work=work,
            on_batch=seen.append,
        )


def test_scores_go_on_in_halves_too() -> None:
    items = loaded_pictures(5)
    whole, halves = (score_items(items, stage, batch_size=4) for stage in (Shift(), Cramped(1, MemoryError())))
    assert [one.energy_before for one in whole] == [one.energy_before for one in halves]
