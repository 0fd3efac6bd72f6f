"""Cards to rows to tables: means over goals, the marks of quoted figures, and the three ways to write."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pureebm.evaluation.metrics import bootstrap_interval
from pureebm.evaluation.tables import (
    COLUMNS,
    CONTRACT,
    blocks,
    cells,
    latex,
    make_rows,
    markdown,
    quoted_rows,
    quoted_seconds,
)
from pureebm.types import JSON

from .conftest import Smoke


def card(goal: str = "class1", seed: int = 0, success: float | None = 0.5, **values: Any) -> JSON:
    base: JSON = {
        "key": "narcissus-1", "clean_key": "no-attack-1", "attack": "narcissus", "eps": 8, "budget": 0.01,
        "data": "cifar10", "victim": "resnet18, scratch-200, 200 epochs", "regime": "scratch", "kind": "trigger",
        "defence": "none", "defence_hash": "0", "goal": goal, "seed": seed, "poison_success": success,
        "natural_accuracy": 0.9, "clean_floor": 0.02, "still_true": 0.4, "clean_still_true": 0.9,
        "l2": 0.0, "psnr": None,
        "defence_seconds": 0.0, "train_seconds": 60.0, "defence_peak_mb": 0.0, "train_peak_mb": 100.0,
    }  # fmt: skip
    return base | values


def clean(**values: Any) -> JSON:
    gone = {"poison_success": None, "clean_floor": None, "still_true": None, "clean_still_true": None}
    own = {"key": "no-attack-1", "attack": "none", "eps": None, "budget": 0.0, "kind": "none", "goal": "no-attack"}
    return card() | gone | own | values


def test_a_mean_is_over_goals_each_the_mean_of_its_seeds() -> None:
    # Class 1 was run with two seeds, class 2 with one: it must not count twice.
    cards = [card("class1", 0, 0.5), card("class1", 1, 0.3, natural_accuracy=0.6), card("class2", 0, 0.1)]
    (row,) = make_rows(cards)
    assert tuple(row)[: len(CONTRACT)] == CONTRACT
    assert row["poison_success"] == pytest.approx(0.25)
    assert row["poison_success_sd"] == pytest.approx(0.3 / 2**0.5)  # of 0.4 and 0.1
    assert row["poison_success_seed_sd"] == pytest.approx(0.2 / 2**0.5)  # of 0.5 and 0.3
    assert row["poison_success_max"] == pytest.approx(0.4)
    assert row["natural_accuracy"] == pytest.approx((0.75 + 0.9) / 2)
    assert row["natural_accuracy_sd"] == pytest.approx(0.03**0.5)  # of 0.9, 0.6, 0.9
    assert (row["runs"], row["goals"], row["clean_floor"], row["quoted"]) == (3, 2, 0.02, False)
    assert row["poison_success_interval"] == bootstrap_interval([0.4, 0.1])


def test_one_victim_has_no_spread_and_no_interval() -> None:
    (row,) = make_rows([card()])
    assert [row[key] for key in ("poison_success_sd", "poison_success_seed_sd", "poison_success_interval")] == [
        None
    ] * 3


def test_a_flip_is_the_poisons_only_where_the_clean_victim_reads_the_target_right() -> None:
    targets = [
        card("target0", success=1.0, kind="targets", clean_still_true=1.0),
        card("target1", success=1.0, kind="targets", clean_still_true=0.0),
        card("target2", success=0.0, kind="targets", clean_still_true=1.0),
    ]
    (row,) = make_rows(targets)
    assert (row["flipped"], row["poison_success"]) == (1, pytest.approx(2 / 3))
    assert cells(row)[COLUMNS.index("max")] == ""  # a maximum over targets would only say that one flipped
    assert make_rows([card(success=1.0)])[0]["flipped"] == 0


def test_the_budget_of_a_warp_is_the_share_with_new_labels() -> None:
    warp = {"attack": "wanet", "budget": 0.3, "n_train": 100, "attack_record": {"poisons": 10, "cross_samples": 20}}
    (row,) = make_rows([card(**warp)])
    assert row["budget"] == 0.1 and "wanet, eps 8/255, 10 % poisons" in blocks([row])[0][0]


def test_equal_names_of_different_settings_are_different_rows() -> None:
    rows = make_rows([card(), card(defence_hash="1"), card(key="narcissus-2")])
    assert len(rows) == 3


def test_every_block_begins_with_its_no_attack_rows_and_has_the_quoted_figures_of_its_attack_only() -> None:
    other = {"key": "gm-1", "attack": "gradient-matching", "kind": "targets", "clean_key": "no-attack-2"}
    cards = [clean(), clean(defence="jpeg-50", defence_hash="1"), card(), card(**other), clean(key="no-attack-3")]
    rows = make_rows(cards)
    found = blocks(rows, quoted_rows(rows))
    assert [[row["attack"] for row in block][:3] for _, block in found] == [
        ["none", "none", "narcissus"],
        ["gradient-matching"] * 3,
        ["none"],
    ]
    for title, block in found[:2]:
        published = [row for row in block if row["quoted"]]
        assert published and {(row["attack"], row["eps"], row["regime"]) for row in published} == {
            (title.split(",")[0], 8, "scratch")
        }
    assert found[0][0] == "narcissus, eps 8/255, 1 % poisons; cifar10, resnet18, scratch-200, 200 epochs"


def test_quoted_figures_are_rates_with_a_source_and_hold_what_the_paper_says() -> None:
    rows = quoted_rows()
    assert len(rows) > 60
    for row in rows:
        assert row["quoted"] is True and "arXiv 2405.18627" in row["source"]
        assert all(row[key] is None or 0 <= row[key] <= 1 for key in ("poison_success", "natural_accuracy"))
        assert set(CONTRACT) <= set(row)
    (known,) = [
        row for row in rows if row["title"].endswith("CIFAR-10, ResNet-18, 200 epochs") and row["attack"] == "narcissus"
        and row["defence"] == "pureebm"
    ]  # fmt: skip
    assert (known["poison_success"], known["natural_accuracy"], known["poison_success_max"]) == pytest.approx(
        (0.0139, 0.9292, 0.025)
    )


def test_figures_that_belong_to_no_table_stand_beside_none_of_ours() -> None:
    every, ours = quoted_rows(), make_rows([card(eps=16, victim="not named")])
    asides = {row["title"]: row for row in every if row["aside"]}
    assert len(asides) == 2
    beside = quoted_rows(ours)
    assert beside and not {row["title"] for row in beside} & asides.keys()
    assert quoted_seconds() == {"pureebm": 923, "ddpm": 4181, "none": 3690, "friends": 11502}


def test_cells_show_percents_with_spread_and_leave_unknown_things_empty() -> None:
    (row,) = make_rows([card("class1", success=0.5), card("class2", success=0.1)])
    assert dict(zip(COLUMNS[:9], cells(row)[:9], strict=True)) == {
        "attack": "narcissus", "defense": "none", "natural acc.": "90.0 ±0.0", "poison success": "30.0 ±28.3",
        "95 %": "10.0-50.0", "max": "50.0", "floor": "2.0", "true class": "40.0", "PSNR dB": "",
    }  # fmt: skip


def test_markdown_is_a_table_a_block_and_latex_escapes_what_it_must() -> None:
    rows = make_rows([clean(), card(), card(defence="pureebm:steps=auto", defence_hash="1", data="a_b")])
    found = blocks(rows, quoted_rows(rows))
    text = markdown(found)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert "† quoted from the papers" in text and "ASR" in text and "ACC" in text
    assert "† quoted" not in markdown(blocks(rows))
    body = latex(blocks([*rows[:2], {**rows[2], "key": "x_1"}]))
    assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 2
    for line in body.splitlines():
        if not line.startswith("%"):
            assert not re.search(r"(?<!\\)[%#_±†]", line), line
    row = next(line for line in body.splitlines() if line.startswith("narcissus & none"))
    assert row.count("&") == len(COLUMNS) - 1 and row.endswith(r"\\")


def test_the_smoke_suites_rows_keep_the_contract(smoke: Smoke) -> None:
    rows = make_rows(smoke.cards)
    assert [(row["attack"], row["defence"], row["runs"]) for row in rows if row["attack"] != "none"] == [
        (attack, defense, runs)
        for attack, runs in (("badnets", 2), ("gradient-matching", 1))
        for defense in ("none", "jpeg-50", "pureebm:steps=2")
    ]
    assert [row["defence"] for row in rows if row["attack"] == "none"] == ["none", "jpeg-50", "pureebm:steps=2"]
    for row in rows:
        assert tuple(row)[: len(CONTRACT)] == CONTRACT
        assert (row["clean_floor"] is None) == (row["attack"] == "none")


def test_a_title_names_the_purifier_that_the_attacker_made_its_poisons_through() -> None:
    blind, aware = (make_rows([card(protocol={"through": through})]) for through in (None, "student"))
    both = make_rows([card(protocol={"through": "student", "through_in": "both", "through_noise": "fixed"})])
    assert "made through student, both, fixed" in blocks(both)[0][0]
    assert "made through" not in blocks(blind)[0][0] and "made through student" in blocks(aware)[0][0]
