"""Whitened coordinates: an exact change of coordinates with the noise spectrum that it promises."""

from __future__ import annotations

import math

import pytest
import torch

from pureebm.energy.coordinates import Whitening
from pureebm.errors import InputError


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (20, 37)])
def test_color_undoes_whiten(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    way = Whitening()
    torch.testing.assert_close(way.color(way.whiten(x)), x, atol=1e-5, rtol=0)
    assert (way.whiten(x) - x).abs().mean() > 0.1


def test_a_cosine_wave_is_scaled_by_the_formula_and_by_nothing_else() -> None:
    n, k = 32, 5
    wave = torch.cos(math.pi * (torch.arange(n, dtype=torch.float64) + 0.5) * k / n).expand(1, 1, n, n)
    amplitude = math.sqrt(1 + 3.0**2 / (1 + (k / (2 * n) / 0.1) ** 2))
    way = Whitening(strength=3.0, corner=0.1)
    torch.testing.assert_close(way.color(wave), wave * amplitude)
    torch.testing.assert_close(way.whiten(wave), wave / amplitude)


def test_chroma_scales_what_differs_between_the_colors_and_leaves_their_mean() -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, way = Whitening(), Whitening(chroma=2.0)
    gray = x.mean(1, keepdim=True).expand_as(x)
    torch.testing.assert_close(way.color(gray), plain.color(gray))
    torch.testing.assert_close(way.color(x - gray), 2 * plain.color(x - gray))
    torch.testing.assert_close(way.color(way.whiten(x)), x)


def test_the_gain_is_the_deviation_of_its_noise_in_pixels() -> None:
    way = Whitening(8.0, chroma=2.0)
    noise = way.color(torch.randn(400, 3, 24, 24, generator=torch.Generator().manual_seed(0)))
    assert noise.std().item() == pytest.approx(way.gain(24), rel=0.01)
    assert Whitening(0.0).gain(32) == 1


def test_without_strength_nothing_changes() -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Whitening(strength=0.0).whiten(x), x, atol=1e-5, rtol=0)


def test_a_pixel_far_from_the_border_is_filtered_alike_in_images_of_any_size() -> None:
    large = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = large[:, :, 24:72, 24:72]
    difference = Whitening().whiten(large)[:, :, 24:72, 24:72] - Whitening().whiten(small)
    assert difference[:, :, 18:30, 18:30].abs().max() < 1e-3 < difference.abs().max()


def test_the_map_is_symmetric_so_that_a_gradient_passes_through_it_unchanged_in_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 3, 12, 20, generator=generator, dtype=torch.float64) for _ in range(2))
    way = Whitening(chroma=2.0)
    torch.testing.assert_close((way.whiten(x) * y).sum(), (x * way.whiten(y)).sum())


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="strength must be 0 or more"):
        Whitening(strength=-1)
    with pytest.raises(InputError, match="corner and chroma above 0"):
        Whitening(corner=0)
    with pytest.raises(InputError, match="corner and chroma above 0"):
        Whitening(chroma=0)
