"""Stored attacks come back as they were, and nothing is pickled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pureebm.attacks.base import AvailabilityGoal, Goal, TargetGoal, TriggerGoal
from pureebm.attacks.storage import ARRAYS_NAME, RECORD_NAME, StoredAttack, load_attack, save_attack
from pureebm.attacks.triggers import AddTrigger, BlendTrigger, PatchTrigger, WarpTrigger
from pureebm.errors import InputError

PATCH = torch.arange(12, dtype=torch.uint8).view(2, 2, 3)
IMAGES = torch.randint(256, (5, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
TRIGGERS = [
    AddTrigger(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)), 3.0),
    PatchTrigger(PATCH, (6, 5)),
    PatchTrigger(PATCH, None, torch.tensor([[True, False], [True, True]])),
    BlendTrigger(IMAGES[0], 0.2),
    WarpTrigger(torch.rand(8, 8, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1),
]


def stored(goal: Goal) -> StoredAttack:
    rows, labels = torch.tensor([2, 5, 7]), torch.tensor([1, 1, 0])
    return StoredAttack(goal, rows, labels, {"attack": "test", "config": {"eps": 8}})


def there_and_back(goal: Goal, folder: Path) -> StoredAttack:
    save_attack(folder, stored(goal), old_labels=torch.tensor([0, 1, 2]))
    return load_attack(folder)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: type(trigger).__name__)
def test_a_trigger_comes_back_and_does_the_same(trigger: AddTrigger, tmp_path: Path) -> None:
    for target_class, source_class in ((3, None), (0, 2), (None, None)):
        back = there_and_back(TriggerGoal(target_class, trigger, source_class), tmp_path).goal
        assert isinstance(back, TriggerGoal) and type(back.trigger) is type(trigger)
        assert (back.target_class, back.source_class) == (target_class, source_class)
        assert back.trigger.apply(IMAGES, seed=4).equal(trigger.apply(IMAGES, seed=4))


def test_targets_come_back(tmp_path: Path) -> None:
    goal = TargetGoal(IMAGES, torch.arange(5), torch.arange(5).flip(0))
    back = there_and_back(goal, tmp_path).goal
    assert isinstance(back, TargetGoal)
    assert back.images.equal(IMAGES) and back.true_classes.equal(goal.true_classes)
    assert back.intended_classes.equal(goal.intended_classes) and back.intended_classes.dtype == torch.int64


def test_rows_labels_and_record_come_back_from_wherever_the_record_stands(tmp_path: Path) -> None:
    side = tmp_path / "set.npz.pureebm"
    save_attack(side, stored(AvailabilityGoal()), old_labels=torch.tensor([0, 1, 2]))
    for path in (tmp_path / "set.npz", side, side / RECORD_NAME):
        back = load_attack(path)
        assert back.goal == AvailabilityGoal()
        assert back.rows.tolist() == [2, 5, 7] and back.labels.tolist() == [1, 1, 0]
        assert back.record["config"] == {"eps": 8}
    with np.load(side / ARRAYS_NAME, allow_pickle=False) as arrays:
        assert arrays["y_base"].tolist() == [0, 1, 2]
        assert all(arrays[name].dtype != object for name in arrays)


def test_a_set_without_a_record_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only sets made by `pureebm attack` have one"):
        load_attack(tmp_path)
    there_and_back(AvailabilityGoal(), tmp_path)
    (tmp_path / ARRAYS_NAME).write_bytes(b"PK no")
    with pytest.raises(InputError, match="damaged or missing"):
        load_attack(tmp_path)
    save_attack(tmp_path, stored(AvailabilityGoal()), old_labels=torch.zeros(3))
    (tmp_path / RECORD_NAME).write_text('{"goal": {"kind": "world peace"}}')
    with pytest.raises(InputError, match="world peace"):
        load_attack(tmp_path)
