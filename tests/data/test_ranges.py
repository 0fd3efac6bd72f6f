from __future__ import annotations

import numpy as np
import pytest
import torch

from pureebm.data.ranges import stack, to_pm1, to_uint8, to_uint16, unstack
from pureebm.errors import InputError


def test_uint8_to_pm1_and_back_is_the_identity_on_all_256_values() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_pm1(values)), values)
    assert to_pm1(values).aminmax() == (-1, 1)


def test_uint16_to_pm1_and_back_is_the_identity_on_all_65536_values() -> None:
    values = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
    assert np.array_equal(to_uint16(to_pm1(values)).numpy(), values.numpy())


def test_values_beyond_the_range_are_clamped_and_halves_rounded_never_wrapped() -> None:
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.9999, 1.0, 7.0])).tolist() == [0, 0, 255, 255, 255]


def test_stacking_and_unstacking_keeps_each_image_and_its_integer_type() -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (5, 4, 3), dtype=np.uint8), rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)]
    batch = stack(pixels)
    assert batch.shape == (2, 3, 5, 4)
    assert all(np.array_equal(a, b) for a, b in zip(unstack(batch, like=pixels), pixels, strict=True))


def test_floats_are_no_pixels_at_rest() -> None:
    with pytest.raises(InputError, match="float32"):
        to_pm1(torch.zeros(3))
