"""JPEG and blur as stages."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pureebm.data.ranges import to_pm1, to_uint8
from pureebm.errors import InputError
from pureebm.purify.baselines import BlurStage, JPEGStage, baseline


@pytest.fixture
def images() -> Tensor:
    """Smooth pictures with some noise: (8, 3, 32, 32) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 5, 5, generator=generator) * 1.6 - 0.8
    smooth = torch.nn.functional.interpolate(coarse, size=32, mode="bicubic")
    return (smooth + 0.05 * torch.randn(8, 3, 32, 32, generator=generator)).clamp(-1, 1)


def ids(images: Tensor) -> list[str]:
    return [str(i) for i in range(len(images))]


def test_better_jpeg_is_nearer_to_the_original(images: Tensor) -> None:
    errors = [
        (JPEGStage(q).purify_batch(images, ids(images), seed=0) - images).square().mean() for q in (10, 25, 50, 75, 95)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 4 * errors[-1]


def test_jpeg_halves_the_resolution_of_color_but_not_of_brightness() -> None:
    # Alternating columns: in brightness they survive quality 95, in color alone they are averaged away (4:2:0).
    stripes = torch.tensor([0.5, -0.5]).repeat(16).expand(1, 32, 32)
    gray = stripes.expand(1, 3, 32, 32).contiguous()
    luma = torch.tensor([0.299, 0.587, 0.114])
    color = torch.stack([stripes * luma[1] / luma[0], -stripes, torch.zeros_like(stripes)], dim=1) * 0.4
    after_gray, after_color = (JPEGStage(95).purify_batch(x, ["a"], seed=0) for x in (gray, color))
    assert (after_gray * gray).sum() / gray.square().sum() > 0.95
    assert (after_color * color).sum() / color.square().sum() < 0.1


def test_blur_keeps_constants_and_is_the_gaussian_on_a_point() -> None:
    constant = to_pm1(torch.full((1, 3, 32, 32), 77, dtype=torch.uint8))
    assert BlurStage(1.0).purify_batch(constant, ["a"], seed=0).equal(constant)
    point = torch.full((1, 3, 33, 33), -1.0)
    point[:, :, 16, 16] = 1.0
    out = to_uint8(BlurStage(0.7).purify_batch(point, ["a"], seed=0))[0, 0].double()
    weights = [math.exp(-(d**2) / (2 * 0.7**2)) for d in range(-3, 4)]
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            expected = 255 * weights[dy + 3] * weights[dx + 3] / sum(weights) ** 2
            assert out[16 + dy, 16 + dx].item() == pytest.approx(expected, abs=0.51)


def test_blur_reflects_at_the_border() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16).contiguous()
    ramp = to_pm1(to_uint8(ramp))
    out = BlurStage(0.5).purify_batch(ramp, ["a"], seed=0)
    weights = [math.exp(-(d**2) / (2 * 0.5**2)) for d in range(-2, 3)]
    expected = sum(w * ramp[0, 0, 0, abs(d)].item() for w, d in zip(weights, range(-2, 3), strict=True)) / sum(weights)
    assert out[0, 0, 8, 0].item() == pytest.approx(expected, abs=1 / 255)


@pytest.mark.parametrize("name", ["jpeg-50", "blur-0.7"])
def test_a_baseline_gives_8_bit_values_draws_nothing_and_has_no_energy(name: str, images: Tensor) -> None:
    stage = baseline(name)
    assert stage is not None
    out = stage.purify_batch(images, ids(images), seed=0)
    assert out.equal(to_pm1(to_uint8(out)))
    assert out.equal(stage.purify_batch(images, ids(images)[::-1], seed=5))
    assert out[3:4].equal(stage.purify_batch(images[3:4], ["x"], seed=0))
    assert stage.energies(images) is None


def test_names_make_stages_with_their_settings() -> None:
    assert baseline("none") is None
    made = [stage.settings() for name in ("jpeg-25", "blur-0.7") if (stage := baseline(name))]
    assert made == [{"stage": "jpeg", "quality": 25}, {"stage": "blur", "sigma": 0.7}]
    for name in ("jpeg", "jpg-25", "blur-", "median-3"):
        with pytest.raises(InputError, match=f"unknown defense '{name}'; known: none, jpeg-QUALITY"):
            baseline(name)


def test_numbers_out_of_range_are_refused() -> None:
    for quality in (0, 101):
        with pytest.raises(InputError, match=f"quality must be 1 to 100, got {quality}"):
            JPEGStage(quality)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma must be"):
            BlurStage(sigma)
    with pytest.raises(InputError, match="needs sides above 8 px"):
        BlurStage(2.0).purify_batch(torch.zeros(1, 3, 8, 8), ["a"], seed=0)
