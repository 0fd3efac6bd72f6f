"""Label-Consistent: its adversarial images, its patterns, and that a victim learns them."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.many import EPOCHS, MANY, clean_victim
from tests.attacks.worlds import TinyNet, accuracy, attacker, textures, train, trigger_success

from pureebm.attacks import label_consistent
from pureebm.attacks.base import LabeledSet, TriggerGoal
from pureebm.errors import InputError

DATA = textures(400, seed=0)
TEST = textures(200, seed=1)
SURROGATE = train(DATA, seed=7)


def test_pgd_stays_within_the_budget_and_makes_images_hard_to_read() -> None:
    hard = label_consistent.pgd(SURROGATE, TEST.images, TEST.labels, 8, 10, 1.5)
    change = (hard.int() - TEST.images.int()).abs()
    assert change.max() == 8
    assert accuracy(SURROGATE, LabeledSet(hard, TEST.labels, 4)) < accuracy(SURROGATE, TEST) - 0.25


def test_no_steps_change_nothing_and_a_random_start_does() -> None:
    assert label_consistent.pgd(SURROGATE, TEST.images, TEST.labels, 8, 0, 1.5).equal(TEST.images)
    draw = torch.Generator().manual_seed(0)
    started = label_consistent.pgd(SURROGATE, TEST.images, TEST.labels, 8, 0, 1.5, start=draw)
    change = (started.int() - TEST.images.int()).abs()
    assert change.max() == 8 and 3 < change.float().mean() < 5  # uniform in -8 .. 8: a mean size of 4


def test_the_corners_are_the_published_checkers_and_cover_nothing_else() -> None:
    gray = LabeledSet(torch.full((1, 8, 8, 3), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 1)
    painted = label_consistent.corner_trigger(gray).apply(gray.images)[0, :, :, 0]
    left, right = [[255, 0, 0], [0, 255, 0], [255, 0, 255]], [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    for rows in (slice(0, 3), slice(5, 8)):
        assert painted[rows, :3].tolist() == left
        assert painted[rows, 5:].tolist() == right
    assert (painted[3:5] == 128).all() and (painted[:, 3:5] == 128).all()


def test_corners_are_full_in_training_and_labels_stay() -> None:
    config = label_consistent.Config(target_class=2, n_steps=5)
    poisoned = label_consistent.craft(DATA, config, attacker=attacker(extractors=[SURROGATE]), seed=0)
    assert len(poisoned.rows) == 40 and (DATA.labels[poisoned.rows] == 2).all() and (poisoned.labels == 2).all()
    goal = poisoned.goal
    assert isinstance(goal, TriggerGoal)
    assert goal.trigger.apply(poisoned.images).equal(poisoned.images)  # they carry it already
    inner = (poisoned.images.int() - DATA.images[poisoned.rows].int())[:, 3:-3, 3:-3].abs()
    assert inner.max() == 8
    assert poisoned.record["surrogate_reads_hard"] < poisoned.record["surrogate_reads_clean"]


def test_the_faint_patch_stays_within_the_budget_in_training_and_is_full_at_test_time() -> None:
    config = label_consistent.Config(variant="faint-patch", target_class=1, n_steps=3)
    poisoned = label_consistent.craft(DATA, config, attacker=attacker(extractors=[SURROGATE]), seed=0)
    assert len(poisoned.rows) == 4  # 1 %
    change = poisoned.images.int() - DATA.images[poisoned.rows].int()
    assert change.abs().max() == 8
    goal = poisoned.goal
    assert isinstance(goal, TriggerGoal)
    full = goal.trigger.apply(DATA.images[poisoned.rows])
    assert set(full[:, -5:, -5:].flatten().tolist()) == {0, 255}
    towards = (full.int() - DATA.images[poisoned.rows].int())[:, -5:, -5:]
    far = towards.abs() > 8
    assert (change[:, -5:, -5:][far] == 8 * towards[far].sign()).all()


# As the published figures have it, the corners are strong and the faint patch is weak (5 % of 25 poisons on CIFAR-10):
# it needs a budget of 32, the whole class and a patch of three quarters of the side to be learned by every seed here.
@pytest.mark.parametrize(
    "config",
    [
        label_consistent.Config(budget=0.2, eps=16, n_steps=20),
        label_consistent.Config(variant="faint-patch", budget=0.25, eps=32, n_steps=20, patch_size=12),
    ],
    ids=lambda config: config.variant,
)
def test_a_victim_reads_triggered_images_as_the_target_class(config: label_consistent.Config) -> None:
    poisoned = label_consistent.craft(MANY, config, attacker=attacker(extractors=[SURROGATE]), seed=0)
    victim = train(poisoned.apply(MANY), seed=0, epochs=EPOCHS)
    assert isinstance(poisoned.goal, TriggerGoal)
    floor, success = (trigger_success(network, poisoned.goal, TEST) for network in (clean_victim(), victim))
    assert success > floor + 0.5


def test_an_extractor_of_other_classes_and_images_too_small_are_refused() -> None:
    with pytest.raises(InputError, match="tells 7 classes apart, the training set has 4"):
        label_consistent.craft(DATA, label_consistent.Config(), attacker=attacker(extractors=[TinyNet(7)]), seed=0)
    small = LabeledSet(DATA.images[:, :5, :5], DATA.labels, 4)
    with pytest.raises(InputError, match="do not fit into images of 5 x 5"):
        label_consistent.craft(small, label_consistent.Config(), attacker=attacker(), seed=0)
