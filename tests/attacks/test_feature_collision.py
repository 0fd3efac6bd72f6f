"""Feature Collision: its objective, its steps, its budget, and that heads fall for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.attacks import worlds

from pureebm.attacks.base import LabeledSet, TargetGoal
from pureebm.attacks.box import Box, as_batch
from pureebm.attacks.feature_collision import Config, collide, craft
from pureebm.errors import InputError

TINY = Config(eps=16, budget=0.1, n_steps=40)


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(200, seed=1)


@pytest.fixture(scope="module")
def test_set() -> LabeledSet:
    return worlds.blobs(200, seed=2)


def test_it_starts_from_a_watermark_cut_to_the_budget(data: LabeledSet, test_set: LabeledSet) -> None:
    network, target = worlds.train(data, seed=0, epochs=1), as_batch(test_set.images[:1])
    for eps in (16, 255):
        box = Box.around(data.images[:5], eps)
        config = replace(TINY, eps=eps, n_steps=0)
        images, losses = collide(box, target, [network], config, worlds.attacker())
        mixed = 0.7 * box.start() + 0.3 * target
        torch.testing.assert_close(images, torch.minimum(torch.maximum(mixed, box.low), box.high))
        features, center = network.features(images), network.features(target)
        expected = ((features - center).norm(dim=1) / center.norm()).square().mean()
        assert losses == [pytest.approx(expected.item(), rel=1e-4)]


def test_no_poison_moves_away_from_the_target_and_each_is_independent(data: LabeledSet, test_set: LabeledSet) -> None:
    networks = [worlds.train(data, seed=seed, epochs=1) for seed in (0, 1)]
    target = as_batch(test_set.images[:1])
    config = replace(TINY, step_size=100.0)  # far too large: must be cut
    _, losses = collide(Box.around(data.images[:5], 16), target, networks, config, worlds.attacker())
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 0.3 * losses[0]
    short = replace(config, n_steps=3)

    def end(rows: slice) -> float:
        return collide(Box.around(data.images[rows], 16), target, networks, short, worlds.attacker())[1][-1]

    alone = [end(slice(row, row + 1)) for row in range(5)]
    assert end(slice(0, 5)) == pytest.approx(sum(alone) / 5, rel=1e-3)


def test_heads_on_the_same_extractor_read_most_targets_as_intended_and_the_budget_holds(
    data: LabeledSet, test_set: LabeledSet
) -> None:
    known = worlds.extractor()
    attacker, clean = worlds.attacker(test_set, extractors=[known]), worlds.transfer(known, data, seed=0)
    hits, floor = 0.0, 0.0
    for seed in range(3):
        poisoned = craft(data, TINY, attacker=attacker, seed=seed)
        assert isinstance(poisoned.goal, TargetGoal)
        assert (poisoned.images.int() - data.images[poisoned.rows].int()).abs().max() <= 16
        assert data.labels[poisoned.rows].equal(poisoned.labels)
        assert (poisoned.labels == poisoned.goal.intended_classes).all() and len(poisoned.rows) == 20
        floor += worlds.target_success(clean, poisoned.goal)
        hits += worlds.target_success(worlds.transfer(known, poisoned.apply(data), seed=0), poisoned.goal)
    assert hits >= floor + 2


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="watermark is a share, 0 to 1; got 1.5"):
        Config(watermark=1.5)
    with pytest.raises(InputError, match="eps .* got 0"):
        Config(eps=0)
