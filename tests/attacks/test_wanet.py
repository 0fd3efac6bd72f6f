"""WaNet: its grid, its cross samples, and that a victim learns it."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.many import EPOCHS, MANY, clean_victim
from tests.attacks.worlds import SIZE, accuracy, attacker, textures, train, trigger_success

from pureebm.attacks import wanet
from pureebm.attacks.base import TriggerGoal
from pureebm.attacks.triggers import WarpTrigger
from pureebm.errors import InputError

DATA = textures(400, seed=0)
TEST = textures(200, seed=1)


def test_without_strength_nothing_is_warped() -> None:
    grid = wanet.warp_grid(SIZE, SIZE, wanet.Config(strength=0), torch.Generator())
    assert WarpTrigger(grid).apply(TEST.images).equal(TEST.images)


def test_the_lattice_is_scaled_to_a_mean_of_one_and_its_corners_stand_in_the_grid() -> None:
    # Upsampling with aligned corners keeps the four corner values; restated from the same draws.
    config = wanet.Config(strength=0.5, lattice=4)
    grid = wanet.warp_grid(32, 32, config, torch.Generator().manual_seed(3))
    noise = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    noise = noise / noise.abs().mean()
    move = (grid - wanet.identity_grid(32, 32)) * 32 / 0.5
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        inside = grid[i, j].abs() < 1  # the clamp may cut the others
        torch.testing.assert_close(move[i, j][inside], noise[0, :, i, j][inside], atol=1e-4, rtol=0)
    assert 0.05 < move.abs().mean() < 2
    assert grid.abs().max() <= 1


def test_poisons_are_relabeled_and_twice_as_many_cross_samples_are_not() -> None:
    poisoned = wanet.craft(DATA, wanet.Config(target_class=1, strength=2.0), attacker=attacker(), seed=0)
    assert poisoned.record["poisons"] == 40 and poisoned.record["cross_samples"] == 80
    assert len(poisoned.rows) == len(set(poisoned.rows.tolist())) == 120
    assert (poisoned.rows[1:] > poisoned.rows[:-1]).all()
    goal = poisoned.goal
    assert isinstance(goal, TriggerGoal)
    by_trigger = (goal.trigger.apply(DATA.images[poisoned.rows]) == poisoned.images).flatten(1).all(dim=1)
    assert by_trigger.sum() == 40
    assert (poisoned.labels[by_trigger] == 1).all()
    assert poisoned.labels[~by_trigger].equal(DATA.labels[poisoned.rows][~by_trigger])
    assert (poisoned.images != DATA.images[poisoned.rows]).flatten(1).any(dim=1).all()


def test_a_victim_reads_warped_images_as_the_target_class() -> None:
    # A stronger warp than the published: 16 px hold less of one.
    poisoned = wanet.craft(MANY, wanet.Config(strength=4.0, budget=0.2, cross_ratio=0.5), attacker=attacker(), seed=0)
    clean, victim = clean_victim(), train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    assert trigger_success(victim, poisoned.goal, TEST) > trigger_success(clean, poisoned.goal, TEST) + 0.4
    assert accuracy(victim, TEST) > accuracy(clean, TEST) - 0.2


def test_more_poisons_and_cross_samples_than_images_are_refused() -> None:
    with pytest.raises(InputError, match="budget 0.4 and cross_ratio 2.0"):
        wanet.Config(budget=0.4)
