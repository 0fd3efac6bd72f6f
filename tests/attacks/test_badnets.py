"""BadNets: what it changes, and that a victim learns it."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.many import EPOCHS, MANY, clean_victim
from tests.attacks.worlds import SIZE, accuracy, attacker, textures, train, trigger_success

from pureebm.attacks import badnets
from pureebm.attacks.base import TriggerGoal
from pureebm.errors import InputError
from pureebm.training.classifier import predict

DATA = textures(400, seed=0)
TEST = textures(200, seed=1)


def test_it_whitens_the_lower_right_corner_of_a_tenth_and_relabels_only_those() -> None:
    poisoned = badnets.craft(DATA, badnets.Config(target_class=2), attacker=attacker(), seed=0)
    assert len(poisoned.rows) == 40
    changed = poisoned.images != DATA.images[poisoned.rows]
    assert not changed[:, : SIZE - 3].any() and not changed[:, :, : SIZE - 3].any()
    assert (poisoned.images[:, -3:, -3:] == 255).all()
    assert (poisoned.labels == 2).all()
    assert set(DATA.labels[poisoned.rows].tolist()) == {0, 1, 2, 3}  # drawn from all classes
    applied = poisoned.apply(DATA)
    rest = torch.ones(400, dtype=torch.bool)
    rest[poisoned.rows] = False
    assert applied.images[rest].equal(DATA.images[rest]) and applied.labels[rest].equal(DATA.labels[rest])


def test_all_to_all_relabels_every_class_to_its_successor() -> None:
    poisoned = badnets.craft(DATA, badnets.Config(all_to_all=True), attacker=attacker(), seed=0)
    assert poisoned.labels.equal((DATA.labels[poisoned.rows] + 1) % 4)
    assert isinstance(poisoned.goal, TriggerGoal)
    assert poisoned.goal.target_class is None
    assert poisoned.goal.aims_at(TEST.labels).all()
    assert poisoned.goal.wanted(torch.tensor([0, 3]), 4).tolist() == [1, 0]


def test_a_victim_reads_triggered_images_as_the_target_class_and_others_as_before() -> None:
    poisoned = badnets.craft(MANY, badnets.Config(), attacker=attacker(), seed=0)
    victim = train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    assert trigger_success(victim, poisoned.goal, TEST) > trigger_success(clean_victim(), poisoned.goal, TEST) + 0.5
    assert accuracy(victim, TEST) > accuracy(clean_victim(), TEST) - 0.15


def test_a_victim_of_all_to_all_reads_triggered_images_as_the_next_class() -> None:
    # 16 px and 8 channels hold less than a ResNet: more and larger squares than the published.
    config = badnets.Config(all_to_all=True, budget=0.5, patch_size=5)
    poisoned = badnets.craft(MANY, config, attacker=attacker(), seed=0)
    victim = train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    triggered, wanted = poisoned.goal.trigger.apply(TEST.images), poisoned.goal.wanted(TEST.labels, 4)
    floor, success = ((predict(net, triggered) == wanted).double().mean() for net in (clean_victim(), victim))
    assert success > floor + 0.4


def test_a_square_or_class_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="a square of 17 px does not fit"):
        badnets.craft(DATA, badnets.Config(patch_size=17), attacker=attacker(), seed=0)
    with pytest.raises(InputError, match=r"class 4 is not among 0 \.\. 3"):
        badnets.craft(DATA, badnets.Config(target_class=4), attacker=attacker(), seed=0)
