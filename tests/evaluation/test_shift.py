"""Training sets for energies: which images they hold, and how far they are said to lie."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pureebm.attacks.base import LabeledSet, Poisoned, TriggerGoal
from pureebm.attacks.triggers import AddTrigger
from pureebm.cli.bench_energy import SETS
from pureebm.data.open import open_source
from pureebm.errors import InputError
from pureebm.evaluation import shift
from pureebm.evaluation.arrays import DataSet, Shelf
from pureebm.evaluation.scenarios import AimedAt, Scenario
from pureebm.evaluation.shift import MAKERS, Ruler, check_names, run_shift
from pureebm.evaluation.store import Store
from pureebm.evaluation.victims import Bench

N = 30
CLASSES = {"cifar10": 2, "tiny-imagenet": 4}


class Shades(Shelf):
    """CIFAR-10 is dark: class c has gray 20 + 20 c; classes 0 to 3 of Tiny-ImageNet have 30, 90, 150 and 210."""

    def load(self, name: str) -> DataSet:
        base, _, n = name.rpartition("-") if name[-1].isdigit() and "-" in name else (name, "", "80")
        labels = torch.arange(int(n)) % CLASSES[base]
        shades = 20 + 20 * labels if base == "cifar10" else 30 + 60 * labels
        noise = torch.randint(0, 9, (int(n), 32, 32, 3), generator=torch.Generator().manual_seed(len(base)))
        train = LabeledSet((shades[:, None, None, None] + noise).to(torch.uint8), labels, CLASSES[base])
        return DataSet(name, train, [str(row) for row in range(int(n))], train)


@pytest.fixture
def ruler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ruler:
    monkeypatch.setattr(shift, "N_IMAGES", N)
    monkeypatch.setattr(shift, "N_CLASSES", 2)
    found = shift._scenario

    def small(name: str) -> Scenario:
        return replace(found(name), data="cifar10-40", recipe_overrides={"epochs": 0, "batch_size": 20})

    monkeypatch.setattr(shift, "_scenario", small)
    return Ruler(Bench(Shades(None, tmp_path), Store(tmp_path), precision="float32"))


def shades(images: Tensor) -> set[int]:
    return {round(shade) for shade in (images.double().mean(dim=(1, 2, 3)) / 10).tolist()}


def test_no_image_of_the_victims_or_of_the_reference_is_in_the_set_of_their_kind(ruler: Ruler) -> None:
    every = ruler.bench.shelf.load(f"cifar10-{40 + 2 * N}").train.images
    assert torch.equal(MAKERS["cifar10"](ruler), every[40 : 40 + N])
    assert torch.equal(ruler.reference, every[40 + N :]) and len(ruler.reference) == N


def test_near_and_far_are_the_classes_whose_features_are(ruler: Ruler) -> None:
    assert shades(MAKERS["near"](ruler)) == {3, 9}
    assert shades(MAKERS["far"](ruler)) == {15, 21}
    assert len(MAKERS["near"](ruler)) == len(MAKERS["far"](ruler)) == N
    own, near, far = (ruler.distance(MAKERS[name](ruler)) for name in ("cifar10", "near", "far"))
    assert own < near < far


def test_every_image_of_a_poisoned_set_carries_a_trigger_all_classes_in_turn(
    ruler: Ruler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def poisons(scenario: Scenario, goal: AimedAt, data: DataSet, *, bench: Bench) -> Poisoned:
        asked.append((scenario.name, goal.name))
        trigger = AddTrigger(torch.full((3, 32, 32), len(asked) / 127.5))
        return Poisoned(torch.arange(1), data.train.images[:1], data.train.labels[:1], TriggerGoal(0, trigger))

    monkeypatch.setattr(shift, "poisons", poisons)
    changed = MAKERS["poisoned-8"](ruler).int() - MAKERS["mixed"](ruler).int()
    assert asked == [("narcissus-eps8", f"class{label}") for label in range(10)]
    for row in range(N):
        assert (changed[row] == row % 10 + 1).all()


def test_a_set_is_a_source_of_images_and_its_card_says_what_measured_it(ruler: Ruler, tmp_path: Path) -> None:
    card = run_shift("textures", ruler, folder=tmp_path / "sets", out=tmp_path, command="pureebm bench shift textures")
    assert json.loads((tmp_path / "shift" / "textures.json").read_text()) == card
    assert card["frechet_distance"] == ruler.distance(MAKERS["textures"](ruler)) > 0
    assert card["features"]["trained_on"] == "cifar10-40" and 0 <= card["features"]["accuracy"] <= 1
    assert len(open_source(Path(card["file"]))) == N
    with np.load(card["file"]) as arrays:
        assert arrays["images"].shape == (N, 32, 32, 3) and arrays["images"].dtype == np.uint8


def test_the_command_line_names_the_sets_that_there_are() -> None:
    assert tuple(MAKERS) == SETS == tuple(check_names(SETS))
    with pytest.raises(InputError, match="unknown set 'texture'; known: cifar10, near"):
        check_names(["far", "texture"])
