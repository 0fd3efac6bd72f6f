"""SIG: its wave, its rows, and that a victim learns it."""

from __future__ import annotations

import math

import pytest
import torch
from tests.attacks.many import EPOCHS, MANY, clean_victim
from tests.attacks.worlds import accuracy, attacker, textures, train, trigger_success

from pureebm.attacks import sig
from pureebm.attacks.base import LabeledSet, TriggerGoal
from pureebm.errors import InputError

DATA = textures(400, seed=0)
TEST = textures(200, seed=1)


def test_the_wave_is_the_formula_and_clips() -> None:
    gray = LabeledSet(torch.full((10, 32, 32, 3), 128, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64), 1)
    poisoned = sig.craft(gray, sig.Config(budget=1.0), attacker=attacker(), seed=0)
    expected = [round(128 + 40 * math.sin(2 * math.pi * j * 6 / 32)) for j in range(32)]
    assert (poisoned.images == torch.tensor(expected, dtype=torch.uint8).view(1, 1, 32, 1)).all()
    bright = LabeledSet(torch.full_like(gray.images, 250), gray.labels, 1)
    assert sig.craft(bright, sig.Config(budget=1.0), attacker=attacker(), seed=0).images.max() == 255


def test_only_the_target_class_is_poisoned_and_labels_stay() -> None:
    poisoned = sig.craft(DATA, sig.Config(target_class=3), attacker=attacker(), seed=0)
    assert len(poisoned.rows) == 40
    assert (DATA.labels[poisoned.rows] == 3).all() and (poisoned.labels == 3).all()


def test_a_budget_above_the_class_means_all_of_it() -> None:
    poisoned = sig.craft(DATA, sig.Config(target_class=3, budget=0.9), attacker=attacker(), seed=0)
    assert poisoned.rows.equal(DATA.rows_of(3))


def test_a_victim_reads_triggered_images_as_the_target_class_and_others_as_before() -> None:
    # Nearly all of the class, as on CIFAR-10.
    poisoned = sig.craft(MANY, sig.Config(budget=0.2), attacker=attacker(), seed=0)
    clean, victim = clean_victim(), train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    assert trigger_success(victim, poisoned.goal, TEST) > trigger_success(clean, poisoned.goal, TEST) + 0.3
    assert accuracy(victim, TEST) > accuracy(clean, TEST) - 0.2


def test_an_amplitude_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="delta .* got 0"):
        sig.Config(delta=0)
