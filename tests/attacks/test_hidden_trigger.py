"""Hidden Trigger: its pairs, its budget, and that heads obey a patch that they never saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.attacks import worlds

from pureebm.attacks.base import LabeledSet, TriggerGoal
from pureebm.attacks.box import as_batch
from pureebm.attacks.hidden_trigger import Config, craft, greedy_pairs
from pureebm.attacks.triggers import PatchTrigger
from pureebm.errors import InputError

TINY = Config(eps=16, budget=0.1, n_steps=40, intended_class=0, source_class=3)


@pytest.fixture(scope="module")
def data() -> LabeledSet:
    return worlds.blobs(200, seed=1)


def test_pairs_are_taken_nearest_first_and_no_source_twice() -> None:
    distances = torch.tensor([[1.0, 2.0, 9.0], [0.5, 3.0, 9.0], [5.0, 2.5, 4.0]])
    assert greedy_pairs(distances).tolist() == [1, 0, 2]
    g = torch.Generator().manual_seed(0)
    distances = torch.rand(7, 9, generator=g)
    expected, rows, columns = [-1] * 7, set(range(7)), set(range(9))
    while rows:
        _, row, column = min((distances[row, column].item(), row, column) for row in rows for column in columns)
        expected[row] = column
        rows.remove(row), columns.remove(column)
    before = distances.clone()
    assert greedy_pairs(distances).tolist() == expected
    assert distances.equal(before)


def test_the_patch_stands_5_pixels_off_the_lower_right_corner_and_is_in_no_training_image(data: LabeledSet) -> None:
    known = worlds.train(data, seed=0, epochs=1)
    poisoned = craft(data, replace(TINY, n_steps=3), attacker=worlds.attacker(extractors=[known]), seed=0)
    goal = poisoned.goal
    assert isinstance(goal, TriggerGoal) and isinstance(goal.trigger, PatchTrigger)
    assert (goal.target_class, goal.source_class, goal.trigger.corner) == (0, 3, (6, 6))
    shown = goal.trigger.apply(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))[0]
    assert shown[6:11, 6:11].equal(goal.trigger.patch)
    shown[6:11, 6:11] = 0
    assert shown.max() == 0
    assert (data.labels[poisoned.rows] == 0).all() and poisoned.labels.tolist() == [0] * 20
    assert (poisoned.images.int() - data.images[poisoned.rows].int()).abs().max() <= 16


def test_the_loss_is_the_relative_squared_distance_of_pairs(data: LabeledSet) -> None:
    known = worlds.train(data, seed=0, epochs=1)
    config = replace(TINY, budget=0.25, n_steps=1)  # all images of both classes, so that the sources are known
    poisoned = craft(data, config, attacker=worlds.attacker(extractors=[known]), seed=0)
    assert isinstance(poisoned.goal, TriggerGoal)
    sources = known.features(as_batch(poisoned.goal.trigger.apply(data.images[data.labels == 3])))
    bases = known.features(as_batch(data.images[data.labels == 0]))
    distances = torch.cdist(bases, sources)
    total = sum(distances[row, column] ** 2 for row, column in enumerate(greedy_pairs(distances)))
    assert poisoned.record["loss_start"] == pytest.approx((total / sources.square().sum()).item(), rel=1e-3)
    twice = craft(data, config, attacker=worlds.attacker(extractors=[known, known]), seed=0)
    assert twice.record["loss_start"] == pytest.approx(poisoned.record["loss_start"], rel=1e-4)


def test_heads_on_the_same_extractor_obey_the_patch_far_more_often_than_clean_ones(data: LabeledSet) -> None:
    known, test_set = worlds.extractor(), worlds.blobs(400, seed=2)
    attacker, clean = worlds.attacker(extractors=[known]), worlds.transfer(known, data, seed=0)
    gains = []
    for seed in range(2):
        config = replace(TINY, intended_class=None, source_class=None)
        poisoned = craft(data, config, attacker=attacker, seed=seed)
        assert isinstance(poisoned.goal, TriggerGoal)
        assert poisoned.record["loss_end"] < 0.1 * poisoned.record["loss_start"]
        victim = worlds.transfer(known, poisoned.apply(data), seed=0)
        gains.append(
            worlds.trigger_success(victim, poisoned.goal, test_set)
            - worlds.trigger_success(clean, poisoned.goal, test_set)
        )
    assert sum(gains) / 2 > 0.15


def test_what_cannot_be_paired_or_placed_is_refused(data: LabeledSet) -> None:
    known = worlds.attacker(extractors=[worlds.TinyNet()])
    with pytest.raises(InputError, match="a patch of 12 and its margin of 5 exceed images of 16 x 16"):
        craft(data, replace(TINY, patch_size=12), attacker=known, seed=0)
    with pytest.raises(InputError, match="class 0 is not possible here"):
        craft(data, replace(TINY, source_class=0), attacker=known, seed=0)
    with pytest.raises(InputError, match="needs a pretrained extractor"):
        craft(data, TINY, attacker=worlds.attacker(), seed=0)
