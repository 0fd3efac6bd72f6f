"""Every entry of the paper's suite is put together as it stands, and stepped once on a few tiny images."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from pureebm.attacks.registry import find_attack
from pureebm.classifiers.networks import build_network
from pureebm.evaluation.arrays import Shelf
from pureebm.evaluation.defenses import Defense, find_defense
from pureebm.evaluation.runner import Runner, jobs
from pureebm.evaluation.scenarios import Scenario, load_suite
from pureebm.evaluation.store import Store
from pureebm.evaluation.victims import Bench, attack_config, recipe_of, regime, victim_label

SUITE = load_suite("paper")
SMALL = {
    "n_steps": 1, "restarts": 1, "surrogate_epochs": 1, "warm_up_epochs": 1, "batch_size": 8, "n_draws": 1,
    "block_size": 16, "n_validation": 8,
}  # fmt: skip
"""Of any attack's Config, where it has such a field."""


def shrink(scenario: Scenario) -> Scenario:
    """The same attack, networks, recipes and goals' kind, on 16 images, for one pass."""
    size = 64 if "64px" in scenario.data else 32
    own = {one.name for one in fields(find_attack(scenario.attack).load().Config)}
    step = {"epochs": 1, "batch_size": 8}
    return replace(
        scenario,
        data=f"synthetic-{size}px-16",
        pretrain_data=scenario.pretrain_data and f"synthetic-{size}px-16",
        budget=1.0 if scenario.budget == 1 else 0.125,
        config={**scenario.config, **{name: value for name, value in SMALL.items() if name in own}},
        recipe_overrides=step,
        pretrain_overrides=step,
        surrogate_recipe=None,
        pretrain_recipe="fast",
        classes=scenario.classes[1:2],
        targets=min(scenario.targets, 1),
        seeds=(0,),
        defenses=("none",),
    )


@pytest.mark.parametrize("scenario", SUITE.scenarios, ids=lambda scenario: scenario.name)
def test_every_entry_names_an_attack_networks_and_recipes_that_exist(scenario: Scenario) -> None:
    for goal in scenario.goals():
        config = attack_config(scenario, goal)[1]
        assert config.eps == scenario.config["eps"] if "eps" in scenario.config else config.eps in (8, 25)
    assert recipe_of(scenario).epochs >= 15
    assert victim_label(scenario).startswith(scenario.victim)
    assert (regime(scenario) == "scratch") == (scenario.pretrain_data is None)
    for network in (scenario.victim, *(name.partition("@")[0] for name in scenario.surrogates)):
        build_network(network, 10, size=32, seed=0)


def test_the_suite_has_the_sizes_of_the_paper() -> None:
    n_goals = {scenario.name: len(scenario.goals()) * len(scenario.seeds) for scenario in SUITE.scenarios}
    assert (n_goals["gm-resnet18-200"], n_goals["ns-resnet18-200"], n_goals["ntga"]) == (100, 10, 8)
    assert (n_goals["bp-linear-resnet18"], n_goals["bp-white-box"]) == (48, 100)
    names = {job.defense for job in jobs(SUITE)}
    assert {"none", "epic-0.1", "friends-b", "ddpm", "jpeg-75", "pureebm", "reps"} <= names


def test_what_acts_in_transfer_has_the_papers_schedules_there() -> None:
    for scenario in SUITE.scenarios:
        settings = {name: found.training_settings for name in SUITE.defenses_of(scenario) if (found := training(name))}
        frozen = recipe_of(scenario).batch_norm == "frozen"
        (epic, *_), (friends, *_) = (
            [one for one in settings.values() if one and one["method"] == method] or [None]
            for method in ("epic", "friends")
        )
        if epic is None or friends is None:
            assert "high-power" in scenario.name  # what acts in training is no part of that table
        elif regime(scenario) == "scratch":
            first = 5 if scenario.name == "ns-r18-hlb" else 10
            assert (epic["every"], epic["drop_after"], friends["begin"]) == (first, first, 5)
        else:
            first = int(scenario.name.startswith("bp-linear"))
            assert (epic["every"], epic["drop_after"], friends["begin"]) == (1, first, 0)
            assert friends["batch_statistics"] is not frozen
            assert "ddpm-125" in SUITE.defenses_of(scenario)


def training(name: str) -> Defense | None:
    """The defense of that name, if it acts in training."""
    return find_defense(name) if name.startswith(("epic", "friends")) else None


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SUITE.scenarios, ids=lambda scenario: scenario.name)
def test_every_entry_runs_from_poison_to_card(scenario: Scenario, tmp_path: Path) -> None:
    small = shrink(scenario)
    bench = Bench(Shelf(None, tmp_path), Store(tmp_path), precision="float32")
    runner = Runner(replace(SUITE, scenarios=(small,)), bench=bench, out=tmp_path / "out")
    assert runner.run(only="seed0/none").failed == {}
