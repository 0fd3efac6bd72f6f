"""Convex Polytope: the simplex, the best mixture, the budget, and that heads fall for it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tests.attacks import worlds
from torch import Tensor

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.box import as_batch
from pureebm.attacks.convex_polytope import Config, Hull, craft, nearest_mixture, onto_simplex

TINY = Config(eps=16, budget=0.1, n_steps=30, inner_steps=30)


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(200, seed=1)


@pytest.fixture(scope="module")
def test_set() -> LabeledSet:
    return worlds.blobs(200, seed=2)


def by_trying_every_support(values: Tensor) -> Tensor:
    """The nearest point of the simplex: of each face, where that is inside, the projection onto its plane."""
    best = None
    for size in range(1, len(values) + 1):
        for support in map(list, itertools.combinations(range(len(values)), size)):
            point = torch.zeros_like(values)
            point[support] = values[support] - (values[support].sum() - 1) / size
            if point.min() >= 0 and (best is None or (point - values).norm() < (best - values).norm()):
                best = point
    assert best is not None
    return best


def test_the_projection_onto_the_simplex_is_the_nearest_point() -> None:
    g = torch.Generator().manual_seed(0)
    for spread in (0.1, 1.0, 10.0):
        for size in (1, 2, 5, 6):
            values = spread * torch.randn(size, generator=g, dtype=torch.float64)
            torch.testing.assert_close(onto_simplex(values), by_trying_every_support(values))
    inside = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(onto_simplex(inside), inside)
    torch.testing.assert_close(onto_simplex(torch.full((4,), 9.0)), torch.full((4,), 0.25))


def test_the_mixture_meets_the_conditions_of_an_optimum() -> None:
    # On the simplex, c is best exactly where the gradient is equal on its support and nowhere smaller.
    g = torch.Generator().manual_seed(0)
    points, target = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((8, 12), (12,)))
    c = nearest_mixture(points, target, torch.full((8,), 1 / 8).double(), n_steps=20_000, tolerance=1e-12)
    gradient = points @ (c @ points - target)
    assert c.min() >= 0 and c.sum().item() == pytest.approx(1)
    used = c > 1e-8
    assert 1 < used.sum() < 8
    assert gradient[used].max() - gradient[used].min() < 1e-6
    assert gradient[~used].min() > gradient[used].max()


def test_a_target_among_the_poisons_has_distance_0(data: LabeledSet, test_set: LabeledSet) -> None:
    network = worlds.train(data, seed=0, epochs=1)
    hull = Hull.at(network, test_set.images[:1], 3, "cpu")
    images = as_batch(torch.cat([data.images[:2], test_set.images[:1]]))
    assert hull.miss(images, 10_000).item() == pytest.approx(0, abs=1e-4)
    assert hull.coefficients[2] > 0.9
    alone = Hull.at(network, test_set.images[:1], 1, "cpu").miss(as_batch(data.images[:1]), 10)
    center, feature = (network.features(as_batch(images[:1]))[0] for images in (test_set.images, data.images))
    expected = ((center - feature).norm() / center.norm()).square() / 2
    assert alone.item() == pytest.approx(expected.item(), rel=1e-4)


def test_heads_on_the_same_extractor_read_targets_as_intended_and_the_budget_holds(
    data: LabeledSet, test_set: LabeledSet
) -> None:
    known = worlds.extractor()
    attacker, clean = worlds.attacker(test_set, extractors=[known]), worlds.transfer(known, data, seed=0)
    hits, floor = 0.0, 0.0
    for seed in range(4):
        poisoned = craft(data, TINY, attacker=attacker, seed=seed)
        assert isinstance(poisoned.goal, TargetGoal)
        assert poisoned.record["loss_end"] < 0.1 * poisoned.record["loss_start"]
        assert (poisoned.images.int() - data.images[poisoned.rows].int()).abs().max() <= 16
        assert data.labels[poisoned.rows].equal(poisoned.labels)
        assert (poisoned.labels == poisoned.goal.intended_classes).all() and len(poisoned.rows) == 20
        floor += worlds.target_success(clean, poisoned.goal)
        hits += worlds.target_success(worlds.transfer(known, poisoned.apply(data), seed=0), poisoned.goal)
    assert hits >= floor + 2


def test_two_extractors_each_have_their_own_coefficients(data: LabeledSet, test_set: LabeledSet) -> None:
    networks = [worlds.train(data, seed=seed, epochs=1, network=width) for seed, width in ((0, "8"), (1, "4"))]
    config = replace(TINY, n_steps=3, target_index=0, intended_class=1)
    starts = [
        craft(data, config, attacker=worlds.attacker(test_set, extractors=known), seed=0).record["loss_start"]
        for known in (networks[:1], networks[1:], networks)
    ]
    assert starts[2] == pytest.approx((starts[0] + starts[1]) / 2, rel=1e-3)
