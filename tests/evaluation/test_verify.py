"""Verification tells a poison that works from one that does not."""

from __future__ import annotations

import pytest
import torch
from tests.attacks.worlds import SIZE, TinyNet, textures

from pureebm.attacks.base import AvailabilityGoal, LabeledSet, Poisoned, TargetGoal, TriggerGoal
from pureebm.attacks.triggers import PatchTrigger
from pureebm.evaluation import verify as module
from pureebm.evaluation.surrogates import Surrogates
from pureebm.evaluation.verify import VICTIM_SEED, _train, verify
from pureebm.training.recipes import find_recipe

DATA, TEST = textures(256, seed=0), textures(120, seed=1)
PATCH = PatchTrigger(torch.full((6, 6, 3), 255, dtype=torch.uint8), (SIZE - 6, SIZE - 6))


def triggered(labels: bool) -> Poisoned:
    """A large square on a quarter of the set, with new labels or without."""
    rows = torch.arange(0, 256, 4) + torch.arange(64) % 4
    images = PATCH.apply(DATA.images[rows])
    new = torch.full((64,), 1) if labels else DATA.labels[rows]
    return Poisoned(rows, images, new, TriggerGoal(1, PATCH))


def test_a_backdoor_is_seen_above_its_floor_and_its_absence_too() -> None:
    works = verify(triggered(True), DATA, TEST, epochs=12)
    assert works["floor"] == works["clean"]["success"] < 0.3
    assert works["success"] == works["poisoned"]["success"] > works["floor"] + 0.5
    assert works["poisoned"]["still_true"] < works["clean"]["still_true"]
    assert works["clean"]["accuracy"] > 0.6
    idle = verify(triggered(False), DATA, TEST, epochs=12)
    assert idle["clean"] == works["clean"]  # the same seed, the same victim
    assert idle["success"] < idle["floor"] + 0.3


def test_targets_are_told_one_by_one() -> None:
    goal = TargetGoal(TEST.images[:3], TEST.labels[:3], torch.tensor([1, 2, 3]))
    rows = torch.arange(60)  # the targets themselves, many times, with the wanted labels
    bluntly = Poisoned(rows, TEST.images[:3].repeat(20, 1, 1, 1), goal.intended_classes.repeat(20), goal)
    result = verify(bluntly, DATA, TEST, epochs=12)
    assert result["success"] > result["floor"] and result["success"] >= 2 / 3
    flipped = [p == wanted for p, wanted in zip(result["poisoned"]["predicted"], [1, 2, 3], strict=True)]
    assert sum(flipped) / 3 == result["success"]


def test_availability_is_a_matter_of_accuracies() -> None:
    noise = torch.randint(256, DATA.images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    result = verify(Poisoned(torch.arange(256), noise, DATA.labels, AvailabilityGoal()), DATA, TEST, epochs=6)
    assert "success" not in result and "floor" not in result
    assert result["poisoned"]["accuracy"] < result["clean"]["accuracy"] - 0.2


def test_with_an_extractor_only_a_fresh_head_is_trained_and_the_extractor_stays_as_it_was() -> None:
    extractor = TinyNet(7).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    result = verify(triggered(True), DATA, TEST, epochs=2, extractor=extractor)
    assert result["victim"]["recipe"] == "linear-transfer" and result["victim"]["network"] == "TinyNet"
    assert all(value.equal(before[name]) for name, value in extractor.state_dict().items())
    assert extractor.head.out_features == 7


def test_with_a_recipe_for_all_weights_those_of_a_copy_of_the_extractor_move() -> None:
    extractor = TinyNet(4).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in extractor.state_dict().items()}
    trained = []
    for recipe in ("linear-transfer", "fine-tune"):
        config = find_recipe(recipe, epochs=1)
        victim = _train(DATA, "", config, extractor, 0, "cpu")
        trained.append(victim.state_dict()["stem.0.weight"].equal(before["stem.0.weight"]))
        assert verify(triggered(True), DATA, TEST, epochs=1, extractor=extractor, recipe=recipe)["victim"] == {
            "network": "TinyNet", "recipe": recipe, "epochs": 1, "seed": VICTIM_SEED
        }  # fmt: skip
    assert trained == [True, False]
    assert all(value.equal(before[name]) for name, value in extractor.state_dict().items())


def test_no_victim_is_the_attackers_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate = Surrogates(network="small-resnet", recipe=find_recipe("fast", epochs=1))(DATA, seed=0)
    seeds, config = (0, VICTIM_SEED), find_recipe("fast", epochs=1)
    same, victim = (_train(DATA, "small-resnet", config, None, seed, "cpu") for seed in seeds)
    assert same.head.weight.equal(surrogate.head.weight)  # what happens with the attack's own seed
    assert victim.head.weight.ne(surrogate.head.weight).any()
    trained: list[int] = []
    monkeypatch.setattr(module, "train_classifier", lambda *_, seed, **__: trained.append(seed))
    nothing = Poisoned(torch.arange(0), DATA.images[:0], DATA.labels[:0], AvailabilityGoal())
    assert verify(nothing, DATA, TEST, epochs=1, seed=3)["victim"]["seed"] == VICTIM_SEED + 3
    assert trained == [VICTIM_SEED + 3] * 2


def test_progress_is_told_of_both_victims() -> None:
    lines: list[str] = []
    small = LabeledSet(DATA.images[:32], DATA.labels[:32], 4)
    nothing = Poisoned(torch.arange(0), DATA.images[:0], DATA.labels[:0], AvailabilityGoal())
    verify(nothing, small, TEST, epochs=1, report=lines.append)
    assert [line.split(":")[0] for line in lines] == ["clean victim", "poisoned victim"]
