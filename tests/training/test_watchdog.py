"""Divergence is seen, and named in words."""

from __future__ import annotations

import math

import pytest
import torch

from pureebm.training.watchdog import Watchdog, check_parameters


def calm() -> Watchdog:
    dog = Watchdog()
    for step in range(50):
        assert dog.check_step(0.5, 1.0 + 0.1 * (step % 3), 20.0 * (-1) ** step) is None
    return dog


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((math.nan, 1.0, 1.0), "loss became nan"),
        ((0.5, math.inf, 1.0), "gradient norm became inf"),
        ((0.5, 200.0, 1.0), "gradient norm jumped to 200, where 1.1 was usual"),
        ((0.5, 1.0, -2e4), "energy gap jumped to -2e[+]04, where 20 was usual"),
    ],
)
def test_a_step_that_diverges_is_named(numbers, words):
    assert calm().check_step(0.5, 5.0, 100.0) is None
    dog = calm()
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(dog.check_step(*numbers))
    assert dog.gradients == calm().gradients  # a bad step does not become the usual


def test_the_first_steps_of_a_training_may_be_wild():
    dog = Watchdog()
    assert [dog.check_step(1.0, norm, None) for norm in (1e-3, 1e3, 1.0)] == [None] * 3


def test_negatives_must_stay_finite_diverse_and_in_range():
    dog, images = Watchdog(), torch.rand(16, 3, 8, 8) * 2 - 1
    assert dog.check_negatives(images) is None
    assert "collapsed" in dog.check_negatives(images[:1] + 0.01 * torch.randn(16, 3, 8, 8))
    assert "left the range" in dog.check_negatives(10 * images)
    assert "non-finite" in dog.check_negatives(images * math.nan)


def test_parameters_must_be_finite():
    assert check_parameters([torch.ones(3)]) is None
    assert "non-finite" in check_parameters([torch.ones(3), torch.tensor([math.inf])])
