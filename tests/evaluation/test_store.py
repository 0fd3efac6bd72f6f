"""What is kept comes back as it was, and only for equal settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pureebm.attacks.base import AvailabilityGoal, Goal, Poisoned, TargetGoal, TriggerGoal
from pureebm.attacks.triggers import AddTrigger, BlendTrigger, PatchTrigger, WarpTrigger
from pureebm.evaluation.arrays import textures
from pureebm.evaluation.defenses import Defense
from pureebm.evaluation.quick import Defense as QuickDefense
from pureebm.evaluation.quick import purify_cached
from pureebm.evaluation.store import Store, set_hash

from .test_runner import Shift

PIXELS = torch.arange(4 * 4 * 3, dtype=torch.uint8).view(4, 4, 3)
GOALS: list[Goal] = [
    TriggerGoal(1, AddTrigger(torch.linspace(-0.1, 0.1, 48).view(3, 4, 4), 3.0)),
    TriggerGoal(2, PatchTrigger(PIXELS, (1, 2), torch.ones(4, 4, dtype=torch.bool)), source_class=3),
    TriggerGoal(None, PatchTrigger(PIXELS, None)),
    TriggerGoal(0, BlendTrigger(PIXELS, 0.2)),
    TriggerGoal(0, WarpTrigger(torch.rand(4, 4, 2))),
    TargetGoal(PIXELS[None], torch.tensor([1]), torch.tensor([2])),
    AvailabilityGoal(),
]


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.equal(other) and one.dtype == other.dtype
    if hasattr(one, "__slots__") and hasattr(one, "__dataclass_fields__"):
        fields = one.__dataclass_fields__
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in fields)
    return one == other


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: type(getattr(goal, "trigger", goal)).__name__)
def test_poisons_come_back_whole_and_are_crafted_once(goal: Goal, tmp_path: Path) -> None:
    store, record = Store(tmp_path), {"attack": "x", "config": {"eps": 8}, "seconds": 1.5}
    made = Poisoned(torch.tensor([3, 7]), torch.stack([PIXELS, PIXELS + 1]), torch.tensor([1, 1]), goal, record)
    assert same(store.poisoned({"a": 1}, lambda: made), made)

    def never() -> Poisoned:
        raise AssertionError("crafted again")

    assert same(store.poisoned({"a": 1}, never), made)
    with pytest.raises(AssertionError):
        store.poisoned({"a": 2}, never)


def test_purified_images_are_kept_by_settings_seed_ids_and_pixels_and_shared_with_the_quick_suite(
    tmp_path: Path,
) -> None:
    data, ids = textures(620, 16, seed=0), [f"i{n}" for n in range(620)]
    store, defense = Store(tmp_path), Defense("a", Shift())
    images, cost = store.purified(defense, data.images, ids)
    assert cost.seconds > 0 and cost.peak_mb > 0
    assert len(list((tmp_path / "purified").iterdir())) == 2  # chunks of 500
    again, same_cost = store.purified(Defense("another name", Shift()), data.images, ids)
    assert images.equal(again) and same_cost == cost
    assert purify_cached(QuickDefense("a", Shift()), data.images, ids, tmp_path)[0].equal(images)
    assert len(list((tmp_path / "purified").iterdir())) == 2
    assert not store.purified(Defense("a", Shift(), seed=1), data.images, ids)[0].equal(images)
    assert not store.purified(defense, data.images, ids[::-1])[0].equal(images)
    untouched, free = store.purified(Defense("none"), data.images, ids)
    assert untouched.equal(data.images) and free.seconds == 0


def test_a_set_is_known_by_pixels_labels_and_classes() -> None:
    data = textures(20, 16, seed=0)
    assert set_hash(data) == set_hash(textures(20, 16, seed=0))
    other = textures(20, 16, seed=0, n_classes=5)
    assert len({set_hash(one) for one in (data, other, textures(20, 16, seed=1))}) == 3
