"""The documents' tables are those of the cards."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

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


def test_every_table_stands_somewhere() -> None:
    whole = "".join((ROOT / name).read_text() for name in tables.FILES)
    assert {name for name in tables.TABLES if f"<!-- table {name} -->" not in whole} == set()


def test_every_card_names_the_one_job_that_makes_it_again() -> None:
    suite = load_suite("cpu")
    for card in read_suite_cards(suite, ROOT / "results"):
        words = shlex.split(card["command"])
        defense, name = (words[words.index(flag) + 1] for flag in ("--defence", "--only"))
        own = tuple(replace(scenario, defenses=()) for scenario in suite.scenarios)
        (job,) = jobs(replace(suite, defenses=(defense,), scenarios=own), name)
        assert (job.defense, job.seed) == (card["defence"], card["seed"])
        assert card["key"] == (job.scenario.key() if job.goal else clean_key(job.scenario))
