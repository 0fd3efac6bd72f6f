"""`pureebm bench` from the command line: run, killed and repeated, shown in every format, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pureebm.cli.bench import _split_defenses
from pureebm.cli.main import run
from pureebm.evaluation.tables import CONTRACT

SUITE = """
title = "Mine"
defenses = ["jpeg-50", "ddpm"]

[[scenario]]
name = "b"
attack = "badnets"
budget = 0.1
data = "synthetic-60"
recipe_overrides = { epochs = 0, batch_size = 20 }
classes = [1]
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.toml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pureebm.evaluation.defenses.bundled_path", lambda: Path("nowhere"))
    return "mine.toml"


def test_a_suite_is_run_shown_and_reported(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench", "run", "--suite", suite, "--precision", "float32"]
    assert run([*base, "--only", "none", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["made"] == ["b/no-attack/seed0/none", "b/class1/seed0/none"]
    assert run(base) == 1  # one defense is not installed
    told = capsys.readouterr().err
    assert "2 cards made, 2 were there, in results/mine" in told
    assert "not run: b/no-attack/seed0/ddpm and 1 others: defense not installed: ddpm" in told

    assert run(["bench", "show", "--suite", suite, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["attack"], row["defence"]) for row in rows] == [
        ("none", "none"),
        ("none", "jpeg-50"),
        ("badnets", "none"),
        ("badnets", "jpeg-50"),
    ]
    assert all(list(row)[: len(CONTRACT)] == list(CONTRACT) for row in rows)

    for form, mark in (
        ("markdown", "| badnets | jpeg-50 |"),
        ("latex", "badnets & jpeg-50 &"),
        ("terminal", "badnets"),
    ):
        assert run(["bench", "show", "--suite", suite, "--format", form]) == 0
        assert mark in capsys.readouterr().out

    assert run(["bench", "report", "--suite", suite, "--out", "page.html"]) == 0
    assert "4 cards -> page.html" in capsys.readouterr().err
    assert "<title>Mine</title>" in Path("page.html").read_text()


def test_rows_of_a_diagnosis_have_the_keys_that_all_rows_have(capsys: pytest.CaptureFixture[str]) -> None:
    results = Path(__file__).parents[2] / "results"
    assert run(["bench", "show", "--suite", "diagnosis", "--out", str(results), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows and all(list(row)[: len(CONTRACT)] == list(CONTRACT) for row in rows)
    assert all(row["survival"] and row["poison_success"] is None and row["quoted"] is False for row in rows)


def test_the_command_of_a_card_makes_that_card_again(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "run", "--suite", suite, "--only", "class1/seed0/jpeg"]) == 0
    (path,) = Path("results").rglob("*.json")
    card = json.loads(path.read_text())
    path.unlink()
    capsys.readouterr()
    assert run(card["command"].split()[1:]) == 0
    again = json.loads(path.read_text())
    same = ("natural_accuracy", "poison_success", "clean_floor", "psnr", "l2", "hashes", "defence_hash", "command")
    assert {key: again[key] for key in same} == {key: card[key] for key in same}


def test_the_suites_defenses_can_be_replaced_and_time_can_be_limited(
    suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "run", "--suite", suite, "--defence", "blur-0.7,jpeg-25", "--max-minutes", "0", "--json"]) == 0
    left = json.loads(capsys.readouterr().out)["left"]
    assert {name.rpartition("/")[2] for name in left} == {"none", "blur-0.7", "jpeg-25"}


def test_commas_after_a_colon_belong_to_the_defense_before_them() -> None:
    assert _split_defenses("none,pureebm:model=a.safetensors,steps=20,jpeg-50, pureebm:steps=auto") == [
        "none",
        "pureebm:model=a.safetensors,steps=20",
        "jpeg-50",
        "pureebm:steps=auto",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "cpus"], "unknown suite 'cpus'"),
        (["run", "--suite", "smoke", "--steps", "3", "--joint"], "leave out --steps, --joint"),
        (["run", "--suite", "quick", "--only", "x"], "--suite quick takes no --only"),
        (["run", "--suite", "smoke", "--only", "nothing"], "no job of suite 'smoke' is like 'nothing'"),
        (["show", "--suite", "smoke"], "no cards in results/smoke; make some by: pureebm bench run --suite smoke"),
        (["show", "--suite", "quick", "--format", "latex"], "--suite quick has no LaTeX"),
        (["report", "--suite", "quick"], "--suite quick has no report"),
        (["show", "--suite", "quick"], "no cards in results/quick"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], message: str, suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
