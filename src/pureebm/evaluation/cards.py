"""Cards: one JSON file with one measured result. Every table, plot and page is drawn from them.

A card of the `quick` suite is one victim. `table` joins cards into the rows that `bench show` prints.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import pureebm
from pureebm.data.durable import write_file
from pureebm.errors import InputError
from pureebm.types import JSON

Row = dict[str, str | int | float | bool | None]

GROUP = ("attack", "eps", "budget", "data", "victim", "defence")


def write_card(path: Path, card: JSON) -> None:
    """Write beside and rename: a card is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(card, indent=1, allow_nan=False) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def read_card(path: Path) -> JSON:
    """Raises `InputError` for a file that is no card."""
    try:
        card = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON card: {error}") from error
    if not isinstance(card, dict):
        raise InputError(f"{path} is not a card: it holds no JSON object")
    return card


def read_cards(folder: Path) -> list[JSON]:
    """All cards below a folder, in the order of their paths; none if there is no such folder."""
    return [read_card(path) for path in sorted(folder.rglob("*.json"))]


def provenance() -> JSON:
    """Where and with what a result was made: machine, versions, commit."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "versions": {"pureebm": pureebm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checked-out commit of the package's own repository, if it runs from one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def table(cards: Iterable[JSON]) -> list[Row]:
    """One row for each attack x defense: mean, spread and worst case over classes and seeds.

    `poison_success_max` is the worst class, averaged over its seeds. A spread of one run is null.
    """
    groups: dict[tuple[str, ...], list[JSON]] = defaultdict(list)
    for card in cards:
        groups[tuple(json.dumps(card[key]) for key in GROUP)].append(card)
    return [_row(group) for group in groups.values()]


def _row(cards: Sequence[JSON]) -> Row:
    row: Row = {key: cards[0][key] for key in GROUP}
    shared = cards[0].get("protocol", {}).get("joint", False)  # then all cards of a seed are of one victim
    victims = list({card["seed"]: card for card in cards}.values()) if shared else cards
    for key, of in (("natural_accuracy", victims), ("poison_success", cards)):
        values = [card[key] for card in of if card[key] is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    row["poison_success_max"] = _worst_class(cards)
    floors = [card["clean_floor"] for card in cards if card["clean_floor"] is not None]
    row["clean_floor"] = statistics.fmean(floors) if floors else None
    row["runs"] = len(victims)
    row["defence_seconds"] = statistics.fmean(card["defence_seconds"] for card in cards)
    row["train_seconds"] = statistics.fmean(card["train_seconds"] for card in cards)
    row["quoted"] = bool(cards[0].get("quoted", False))
    return row


def _worst_class(cards: Sequence[JSON]) -> float | None:
    by_class: dict[int, list[float]] = defaultdict(list)
    for card in cards:
        if card["poison_success"] is not None:
            by_class[card["target_class"]].append(card["poison_success"])
    return max((statistics.fmean(values) for values in by_class.values()), default=None)
