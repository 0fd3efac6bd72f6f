"""Suites from TOML: what is accepted, what is refused and in which words, what makes two results the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pureebm.errors import InputError
from pureebm.evaluation.defenses import NotInstalledError, find_defense
from pureebm.evaluation.runner import jobs
from pureebm.evaluation.scenarios import BUNDLED, Scenario, Suite, load_suite, parse_suite
from pureebm.evaluation.victims import attack_config

TABLE = {
    "title": "A suite",
    "defenses": ["jpeg-50", "none"],
    "defaults": {"data": "cifar10-1000", "seeds": [0, 1]},
    "scenario": [
        {"name": "a", "attack": "narcissus", "config": {"eps": 8}, "classes": [2, 5]},
        {"name": "b", "attack": "gradient-matching", "targets": 3, "data": "cifar10", "defenses": ["blur-0.7"]},
    ],
}


def parse(table: dict[str, object]) -> Suite:
    return parse_suite(table, name="s", where="s.toml")


def test_defaults_fill_what_a_scenario_does_not_say() -> None:
    first, second = parse(TABLE).scenarios
    assert (first.data, second.data) == ("cifar10-1000", "cifar10")
    assert first.seeds == second.seeds == (0, 1)


def test_each_class_or_target_is_a_goal_with_a_seed_of_its_own() -> None:
    first, second = (replace(one, attack_seed=100) for one in parse(TABLE).scenarios)
    assert [(g.name, dict(g.overrides), g.seed) for g in first.goals()] == [
        ("class2", {"target_class": 2}, 102),
        ("class5", {"target_class": 5}, 105),
    ]
    assert [(g.name, dict(g.overrides), g.seed) for g in second.goals()] == [
        (f"target{n}", {}, 100 + n) for n in range(3)
    ]
    assert [g.name for g in replace(first, classes=()).goals()] == ["all"]


def test_no_defense_and_no_attack_come_first_whatever_the_file_says() -> None:
    suite = parse(TABLE)
    names = [job.name for job in jobs(suite, "a/")]
    assert names[:4] == [f"a/no-attack/seed{seed}/{name}" for name in ("none", "jpeg-50") for seed in (0, 1)]
    assert names[4:8] == [f"a/class{c}/seed0/{name}" for c in (2, 5) for name in ("none", "jpeg-50")]
    assert len(names) == 4 + 2 * 2 * 2
    assert {job.defense for job in jobs(suite, "b/")} == {"none", "blur-0.7"}


def test_scenarios_that_share_their_victims_share_the_no_attack_rows() -> None:
    scenario = parse(TABLE).scenarios[0]
    twins = (scenario, replace(scenario, name="c", config={"eps": 16}), replace(scenario, name="d", recipe="other"))
    suite = replace(parse(TABLE), scenarios=twins)
    assert {job.scenario.name for job in jobs(suite, "no-attack")} == {"a", "d"}


def test_only_takes_a_part_of_a_name_or_a_pattern() -> None:
    suite = parse(TABLE)
    assert {job.name for job in jobs(suite, "class5*jpeg")} == {f"a/class5/seed{s}/jpeg-50" for s in (0, 1)}
    assert not list(jobs(suite, "class7"))


def test_the_key_is_of_what_changes_results_and_of_nothing_else() -> None:
    scenario = parse(TABLE).scenarios[0]
    for change in ({"name": "z"}, {"classes": (1,)}, {"seeds": (7,)}, {"defenses": ("none",)}):
        assert replace(scenario, **change).key() == scenario.key()
    for change in ({"budget": 0.02}, {"config": {"eps": 9}}, {"victim": "x"}, {"attack_seed": 1}, {"data": "cifar10"}):
        assert replace(scenario, **change).key() != scenario.key()


def test_all_faults_of_a_file_are_told_at_once_with_what_is_known() -> None:
    bad = {
        "defences": ["none"],
        "scenario": [
            {"name": "a", "attack": "x", "recepe": "fast"},
            {"attack": "x", "targets": "ten"},
            {"name": "c", "attack": "x", "budget": 2},
        ],
    }
    with pytest.raises(InputError) as caught:
        parse(bad)
    text = str(caught.value)
    assert "s.toml has no field 'defences'; did you mean 'defenses'? Known: title, about" in text
    assert "scenario 'a' has no field 'recepe'; did you mean 'recipe'? Known: name, attack, config" in text
    assert "scenario 2 has no 'name'" in text
    assert "targets must be a whole number, got 'ten'" in text
    assert "scenario 'c': budget is a share above 0 and at most 1, got 2" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenario": []}, "has no .*scenario"),
        ({"scenario": TABLE["scenario"][:1] * 2}, "two scenarios are named 'a'"),
        ({"scenario": [{"name": "a", "attack": "x", "classes": [1], "targets": 2}]}, "classes .triggered. or targets"),
        ({"scenario": [{"name": "a", "attack": "x", "seeds": []}]}, "seeds is empty"),
        ({"scenario": [{"name": "a", "attack": "x", "seeds": [-1]}]}, "seeds must be 0 or more"),
        ({"scenario": [{"name": "a", "attack": "x", "config": {"budget": 0.2}}]}, "budget in config"),
        ({"scenario": [{"name": "a", "attack": "x", "through_steps": 2}]}, "the purifier that through names"),
        ({"scenario": [{"name": "a", "attack": "x", "through_noise": "fixed"}]}, "through_noise is of the purifier"),
        (
            {"scenario": [{"name": "a", "attack": "x", "through": "m", "through_in": "both!"}]},
            "through_in is one of generation, surrogate, both, got 'both!'",
        ),
        ({"defenses": "none"}, "defenses must be a list of names, got 'none'"),
        ({"defaults": {"classes": [True]}}, "classes must be a list of int"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse({**TABLE, **change})


def test_a_file_is_read_by_its_path_and_a_bad_name_tells_the_bundled_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[scenario]]\nname = "a"\nattack = "badnets"\nclasses = [0]\n')
    suite = load_suite(path)
    assert (suite.name, suite.defenses, suite.scenarios) == (
        "mine",
        ("none",),
        (Scenario(name="a", attack="badnets", classes=(0,)),),
    )
    path.write_text("[[scenario]\n")
    with pytest.raises(InputError, match="mine.toml is not TOML"):
        load_suite(path)
    with pytest.raises(
        InputError, match="unknown suite 'cpus': .* the bundled ones are smoke, cpu, claims, mid-run, paper"
    ):
        load_suite("cpus")


@pytest.mark.parametrize("name", BUNDLED)
def test_every_defense_of_a_bundled_suite_is_found_or_is_known_to_come_later(name: str) -> None:
    suite = load_suite(name)
    assert suite.title and suite.about
    names = {name for scenario in suite.scenarios for name in suite.defenses_of(scenario)}
    assert len(names) >= 2
    for one in names:
        try:
            assert find_defense(one).name == one
        except NotInstalledError as error:
            assert str(error).startswith(f"defense not installed: {one}")


def test_targets_that_share_a_victim_are_meant_for_different_classes() -> None:
    alone = Scenario(name="a", attack="gradient-matching", targets=3, attack_seed=7)
    joint = replace(alone, joint=True)
    assert [goal.overrides for goal in alone.goals()] == [{}, {}, {}]
    assert [goal.overrides for goal in joint.goals()] == [{"intended_class": number} for number in range(3)]
    assert [goal.seed for goal in joint.goals()] == [7, 8, 9]
    assert attack_config(joint, joint.goals()[2])[1].intended_class == 2
