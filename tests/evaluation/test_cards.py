"""Cards on disk and the table that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pureebm.errors import InputError
from pureebm.evaluation.cards import provenance, read_cards, table, write_card
from pureebm.types import JSON

KEYS = [
    "attack", "eps", "budget", "data", "victim", "defence", "natural_accuracy", "natural_accuracy_sd", "poison_success",
    "poison_success_sd", "poison_success_max", "clean_floor", "runs", "defence_seconds", "train_seconds", "quoted",
]  # fmt: skip


def card(defence: str = "none", attack: str = "narcissus", **values: object) -> JSON:
    base = {"attack": attack, "eps": 8, "budget": 0.01, "data": "cifar10", "victim": "small", "defence": defence}
    numbers = {"natural_accuracy": 0.8, "poison_success": 0.2, "clean_floor": 0.02, "target_class": 1}
    return base | numbers | {"defence_seconds": 0.0, "train_seconds": 60.0} | values


def test_a_row_holds_mean_spread_and_the_worst_class_over_its_seeds() -> None:
    cards = [
        card(target_class=1, poison_success=0.5),
        card(target_class=2, poison_success=0.1, natural_accuracy=0.7),
        card(target_class=1, poison_success=0.3, train_seconds=30.0),
    ]
    (row,) = table(cards)
    assert list(row) == KEYS
    assert row["poison_success"] == pytest.approx(0.3)
    assert row["poison_success_sd"] == pytest.approx(0.2)  # of 0.5, 0.1, 0.3, with n - 1
    assert row["poison_success_max"] == pytest.approx(0.4)  # class 1, the mean of its two seeds
    assert row["natural_accuracy"] == pytest.approx(2.3 / 3)
    assert row["clean_floor"] == pytest.approx(0.02)
    assert (row["runs"], row["train_seconds"], row["quoted"]) == (3, 50.0, False)


def test_classes_that_share_a_victim_are_one_run() -> None:
    joint = {"protocol": {"joint": True}, "seed": 0}
    (row,) = table([card(target_class=1, **joint), card(target_class=2, poison_success=0.4, **joint)])
    assert (row["runs"], row["natural_accuracy_sd"]) == (1, None) and row["poison_success"] == pytest.approx(0.3)


def test_attacks_and_defenses_have_rows_of_their_own_and_one_run_has_no_spread() -> None:
    clean = card(attack="none", budget=0.0, poison_success=None, clean_floor=None)
    rows = table([clean, card(), card("jpeg-25"), card("jpeg-25", quoted=True, data="other")])
    assert [(row["attack"], row["defence"], row["quoted"]) for row in rows] == [
        ("none", "none", False),
        ("narcissus", "none", False),
        ("narcissus", "jpeg-25", False),
        ("narcissus", "jpeg-25", True),
    ]
    assert rows[0]["poison_success"] is None and rows[0]["poison_success_max"] is None
    assert rows[1]["poison_success_sd"] is None


def test_cards_come_back_as_they_were_written_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write_card(tmp_path / "b" / "2.json", card("second"))
    write_card(tmp_path / "a" / "1.json", card("first"))
    assert read_cards(tmp_path) == [card("first"), card("second")]
    assert read_cards(tmp_path / "nowhere") == []
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["1.json", "2.json"]  # nothing left beside


def test_a_number_that_json_does_not_know_and_a_file_that_is_no_card_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_card(tmp_path / "nan.json", card(poison_success=float("nan")))
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="list.json is not a card"):
        read_cards(tmp_path)
    (tmp_path / "list.json").write_text("{")
    with pytest.raises(InputError, match="list.json is not a JSON card"):
        read_cards(tmp_path)


def test_provenance_names_machine_and_versions() -> None:
    found = provenance()
    assert set(found) == {"machine", "versions", "commit"}
    assert set(found["versions"]) == {"pureebm", "torch", "python"}
