"""The campaigns themselves: each finds what is wrong, and a short run of each finds nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from tests.trust import corpus, determinism, faults, fuzz

from pureebm.errors import InputError
from pureebm.evaluation.cards import read_card

ROOT = faults.ROOT


@pytest.fixture
def world(tmp_path: Path) -> faults.World:
    return faults.World(tmp_path, seed=0)


def test_a_lost_image_other_bytes_and_leftovers_are_counted(world: faults.World, monkeypatch) -> None:
    whole = {"out.npz": b"a", "out.npz.pureebm/pureebm-manifest.parquet": b"m"}
    world.whole["npz", faults.OPTIONS] = (whole, 0, 1.0)
    target, tally = world.target("npz"), faults.Tally()
    (target.parent / "out.npz.pureebm").mkdir(parents=True)
    target.write_bytes(b"b")
    (target.parent / ".out.npz.pureebm-partial").mkdir()
    world.compare(tally, "npz", target, "trial")
    assert (tally.lost, tally.wrong) == (1, 2)  # the manifest; other bytes, and what was left behind
    (target.parent / "out.npz.pureebm" / "pureebm-manifest.parquet").write_bytes(b"m")
    (target.parent / ".out.npz.pureebm-partial").rmdir()
    target.write_bytes(b"a")
    world.compare(tally, "npz", target, "trial")
    assert (tally.lost, tally.wrong) == (1, 2) and not target.exists()


@pytest.mark.slow
def test_a_short_fault_campaign_loses_nothing(world: faults.World) -> None:
    tallies = [
        faults.sigkill(world, 4),
        faults.disk(world, 6, errno.ENOSPC, "the disk is full"),
        faults.failing_files(world, 1),
        faults.two_at_once(world, 2),
        faults.same_result(world, 2, "run_out_of_memory", most=4),
    ]
    assert [(tally.lost, tally.wrong, tally.problems) for tally in tallies] == [(0, 0, [])] * 5
    assert all(tally.hit for tally in tallies)


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_every_parser_takes_its_valid_file(name: str, tmp_path: Path) -> None:
    data, read, file_name = fuzz.PARSERS[name]()
    (tmp_path / file_name).write_bytes(data)
    read(tmp_path / file_name)
    (tmp_path / file_name).write_bytes(b"")
    with pytest.raises((InputError, fuzz.ItemError)):
        read(tmp_path / file_name)


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_the_corpus_of_every_parser_is_taken_or_refused_as_its_names_say(name: str, tmp_path: Path) -> None:
    _, read, file_name = fuzz.PARSERS[name]()
    taken = set()
    for seed, content in corpus.seeds(name).items():
        (tmp_path / file_name).write_bytes(content)
        try:
            read(tmp_path / file_name)
            taken.add(seed)
        except (InputError, fuzz.ItemError) as error:
            assert str(error), seed
    assert taken == {seed for seed in corpus.seeds(name) if seed.startswith(corpus.GOOD)}


def test_the_corpus_is_small_and_belongs_to_the_parsers() -> None:
    files = [path for path in corpus.FOLDER.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(fuzz.PARSERS) == set(corpus.MAKERS)
    assert sum(path.stat().st_size for path in files) < 200_000


def test_injuries() -> None:
    assert fuzz.injured(b"abcdef", [(2, "change", b"XY")]) == b"abXYef"
    assert fuzz.injured(b"abcdef", [(2, "insert", b"XY"), (0, "remove", b"_")]) == b"bXYcdef"
    assert fuzz.injured(b"abcdef", [(4, "double", b"__"), (5, "cut", b"_")]) == b"abcdc"


@pytest.mark.slow
def test_a_crash_and_a_dead_process_are_counted() -> None:
    told = fuzz.fuzz("unpickler", 30, 0)
    assert told["crashes"] == 0 and told["accepted"] + told["refused"] == 30 + len(corpus.seeds("unpickler"))


def test_a_changed_value_is_measured() -> None:
    base = {name: np.zeros((4, 4, 3), np.uint8) for name in "ab"}
    other = {name: image.copy() for name, image in base.items()}
    other["b"][0, 0] = 3, 0, 1
    told = determinism.row("x", False, base, other)
    assert (told["changed_images"], told["changed_values"], told["largest_change"]) == (1, 2, 3)


def test_the_cards_say_that_nothing_was_lost_and_how_to_make_them_again() -> None:
    folder = ROOT / "results" / "trust"
    cards = {path.stem: read_card(path) for path in folder.glob("*.json")}
    assert cards.keys() == {"faults", "fuzz", "determinism"}
    assert (cards["faults"]["lost"], cards["faults"]["wrong"]) == (0, 0)
    assert cards["faults"]["faults"]["sigkill"]["kills"] >= 100
    assert set(cards["faults"]["faults"]) >= {"sigkill", "disk_full", "read_only", "two_processes", "out_of_memory"}
    assert cards["fuzz"]["crashes"] == 0 and set(cards["fuzz"]["parsers"]) == set(fuzz.PARSERS)
    assert cards["determinism"]["broken_promises"] == []
    promised = {row["what"] for row in cards["determinism"]["rows"] if row["promised"]}
    assert promised >= {"in three shards", "resumed", "by two worker processes", "by two Ray workers"}
    assert all(card["command"].startswith("python -m tests.trust.") for card in cards.values())
