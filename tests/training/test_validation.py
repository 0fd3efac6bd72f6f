"""The figure of merit, on purifiers whose effect is known."""

from __future__ import annotations

import math

import pytest
import torch

from pureebm.sampling.langevin import LangevinConfig
from pureebm.training.validation import EPSILON, auroc, perturbations, psnr, validate


def test_perturbations_reach_8_of_255_and_never_more():
    for change in perturbations(torch.zeros(3, 3, 32, 32)).values():
        assert change.abs().max().item() == pytest.approx(16 / 255, rel=1e-6)
        assert change.square().mean().sqrt() > 0.5 * EPSILON
    assert torch.equal(*perturbations(torch.zeros(2, 3, 32, 32))["smooth"])  # universal
    assert not torch.equal(*perturbations(torch.zeros(2, 3, 32, 32))["signs"])  # each its own


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_linear_purifier_leaves_the_share_that_it_multiplies_by(noise):
    # Two updates of E = |x|^2 / 2 multiply x by (1 - drift)^2, clean or not; the noise is the same in both.
    drift = 0.1
    config = LangevinConfig(n_steps=2, step_size=math.sqrt(2 * drift), temperature=1.0, noise=noise * drift)
    result = validate(lambda x: x.square().sum((1, 2, 3)) / 2, torch.rand(4, 3, 16, 16) * 0.2, config, batch=3)
    for kind in result["perturbations"].values():
        assert kind["survival"] == pytest.approx(0.81, abs=1e-4)


def test_a_purifier_that_does_nothing_leaves_everything():
    images = torch.zeros(4, 3, 16, 16)
    result = validate(lambda x: x.abs().sum((1, 2, 3)), images, LangevinConfig(n_steps=0))
    distances = [change.square().mean().item() for change in perturbations(images).values()]
    assert result["figure"] == pytest.approx(sum(distances) / 3, rel=1e-5)
    assert result["clean_psnr"] == 120  # the cap: no error at all
    for kind in result["perturbations"].values():
        assert (kind["survival"], kind["paired"], kind["auroc"]) == pytest.approx((1, 1, 1))


def test_auroc_counts_pairs_and_halves_ties():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0])) == (1 + 0.5 + 1 + 1) / 4


def test_psnr_is_that_of_the_range_minus_one_to_one():
    assert psnr(torch.full((2, 3, 4, 4), 0.02), torch.zeros(2, 3, 4, 4)) == pytest.approx(40)
