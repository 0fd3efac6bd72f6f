"""Blended: its formula, its key, and that a victim learns it."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.many import EPOCHS, MANY, clean_victim
from tests.attacks.worlds import SIZE, accuracy, attacker, textures, train, trigger_success

from pureebm.attacks import blended
from pureebm.attacks.base import TriggerGoal
from pureebm.errors import InputError

DATA = textures(400, seed=0)
TEST = textures(200, seed=1)


def test_poisons_are_four_fifths_image_and_one_fifth_key_rounded_once() -> None:
    poisoned = blended.craft(DATA, blended.Config(target_class=1), attacker=attacker(), seed=0)
    key = blended.key_image(SIZE, SIZE).double()
    exact = 0.8 * DATA.images[poisoned.rows].double() + 0.2 * key
    assert (poisoned.images.double() - exact).abs().max() <= 0.5 + 1e-4
    assert (poisoned.labels == 1).all() and len(poisoned.rows) == 40


def test_the_key_is_the_same_for_everybody_and_uses_all_of_the_range() -> None:
    key = blended.key_image(32, 48)
    assert key.shape == (32, 48, 3) and key.dtype == torch.uint8
    assert key.equal(blended.key_image(32, 48))
    assert (key.amin(dim=(0, 1)) < 5).all() and (key.amax(dim=(0, 1)) > 250).all()


def test_full_weight_leaves_the_key_alone_and_none_is_refused() -> None:
    poisoned = blended.craft(DATA, blended.Config(alpha=1.0), attacker=attacker(), seed=0)
    assert (poisoned.images == blended.key_image(SIZE, SIZE)).all()
    with pytest.raises(InputError, match="alpha .* got 0"):
        blended.Config(alpha=0)


def test_a_victim_reads_triggered_images_as_the_target_class_and_others_as_before() -> None:
    # A stronger key than the published: 16 px show less of it.
    poisoned = blended.craft(MANY, blended.Config(alpha=0.3), attacker=attacker(), seed=0)
    clean, victim = clean_victim(), train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    assert trigger_success(victim, poisoned.goal, TEST) > trigger_success(clean, poisoned.goal, TEST) + 0.5
    assert accuracy(victim, TEST) > accuracy(clean, TEST) - 0.15
