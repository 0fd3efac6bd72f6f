"""The documents' tables are those of the cards."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from pureebm.evaluation.cards import write_card
from pureebm.evaluation.runner import clean_key, jobs, read_suite_cards
from pureebm.evaluation.scenarios import load_suite

ROOT = Path(__file__).parent.parent

spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
assert spec is not None and spec.loader is not None
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


@pytest.mark.parametrize("name", tables.FILES)
def test_no_table_differs_from_the_cards(name: str) -> None:
    text = (ROOT / name).read_text()
    assert text.count("<!-- table ") == text.count("<!-- end ")
    assert tables.filled(text) == text, "out of date: make tables"


def test_published_figures_stand_beside_the_defense_of_ours_that_is_most_like() -> None:
    title = "Narcissus, CIFAR-10, HyperLight medium"
    defenses = ["pureebm", "pureebm:steps=auto", "ddpm-125:ddim=10", "jpeg-25"]
    text = tables._beside(["defense"], [[name] for name in defenses], defenses, title)
    assert text.splitlines()[2:6] == [
        "| pureebm | 1.89, 91.94 |",
        "| pureebm:steps=auto |  |",
        "| ddpm-125:ddim=10 | 1.75, 89.34 |",
        "| jpeg-25 |  |",  # the paper's is the best of several
    ]
    assert f"Published (success, accuracy): {title}, 8/255 (PureGen)" in text
    assert "JPEG (its best variant) 1.73, 90.92" in text and "no defense 76.39, 93.95" in text
    assert "PureGen-EBM" not in text and "Not in the table" in text
    assert tables._beside(["defense"], [], [], title).startswith("*Not measured yet.*")
    times = {name: tables._timed(name) for name in ("pureebm", "pureebm:steps=auto", "friends-b:preset=short", "knn")}
    assert list(times.values()) == ["923 (150 updates)", "", "11,502", ""]


def test_models_of_other_training_sets_have_a_table_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number, name in enumerate(("near", "poisoned-16")):
        write_card(tmp_path / "shift" / f"{name}.json", {"set": name, "frechet_distance": number + 0.5})
    defenses = ("jpeg-25", "pureebm:model=runs/shift/poisoned-16/model.safetensors,sampler=residual-32")
    rates = {"natural_accuracy": 0.75, "poison_success": 0.25}
    every = [({"defence": name, **rates}, "76.0") for name in (*defenses, "ddpm:ddpm=runs/shift/poisoned-16-ddpm")]
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "_every_row", lambda name, of: every * (name == "narcissus-eps16"))
    assert [row["defence"] for row, _ in tables._rows("narcissus-eps16", "claims")] == ["jpeg-25"]
    assert tables.shift().splitlines()[2:] == [
        "| `near` | energy | 0.500 |  |  |  |  |  |  |",
        "| `poisoned-16` | energy | 1.500 | 76.0 |  |  | 75.0 | 25.0 | 17.73 |",
        "| `poisoned-16` | DDPM | 1.500 | 76.0 |  |  | 75.0 | 25.0 |  |",
    ]


def test_every_table_stands_somewhere() -> None:
    whole = "".join((ROOT / name).read_text() for name in tables.FILES)
    assert {name for name in tables.TABLES if f"<!-- table {name} -->" not in whole} == set()


@pytest.mark.parametrize("of", ["cpu", "claims", "mid-run"])
def test_every_card_names_the_one_job_that_makes_it_again(of: str) -> None:
    suite = load_suite(of)
    for card in read_suite_cards(suite, ROOT / "results"):
        words = shlex.split(card["command"])
        defense, name = (words[words.index(flag) + 1] for flag in ("--defence", "--only"))
        own = tuple(replace(scenario, defenses=()) for scenario in suite.scenarios)
        (job,) = jobs(replace(suite, defenses=(defense,), scenarios=own), name)
        assert (job.defense, job.seed) == (card["defence"], card["seed"])
        assert card["key"] == (job.scenario.key() if job.goal else clean_key(job.scenario))
