"""The page of a suite: tables, plots and pictures in one HTML file that needs no network.

Made of cards, and of what the cache still holds of pictures and energies. Names come from files and are escaped.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from pureebm.data.durable import write_file
from pureebm.errors import InputError
from pureebm.evaluation.plots import energy_plot, steps_plot, success_plot
from pureebm.evaluation.runner import exhibit_path
from pureebm.evaluation.scenarios import Suite
from pureebm.evaluation.tables import COLUMNS, LEGEND, Block, Row, blocks, cells, make_rows, quoted_rows, sources
from pureebm.types import JSON

AMPLIFIED = 4
PICTURES = ("clean", "poisoned", "purified", "difference")


def write_report(
    path: Path,
    suite: Suite,
    cards: Sequence[JSON],
    *,
    cache: Path | None = None,
    quoted: bool = True,
    asked: str | None = None,
) -> None:
    """Write the page of a suite's cards to `path`, replacing what stands there.

    asked: the suite as the user named it, for the command on the page.
    cache: where the runner kept pictures and energies; without them the page has tables and plots only.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the page's file")
    rows = make_rows(cards)
    found = blocks(rows, quoted_rows(rows) if quoted else ())
    page = _template().render(
        suite=suite,
        columns=COLUMNS,
        sections=[_section(title, block, cards, cache) for title, block in found],
        legend=LEGEND if any(row["quoted"] for _, block in found for row in block) else LEGEND[:-1],
        amplified=AMPLIFIED,
        summary=_summary(cards, found),
        machines=sorted({f"{card['machine']}; device {card['device']}" for card in cards}),
        versions=sorted({", ".join(f"{name} {text}" for name, text in card["versions"].items()) for card in cards}),
        command=f"pureebm bench run --suite {shlex.quote(asked or suite.name)}",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(page.encode("utf-8", "backslashreplace")))


def _summary(cards: Sequence[JSON], found: Sequence[Block]) -> list[tuple[str, str]]:
    hours = sum(card["wall_seconds"] for card in cards) / 3600
    attacked = {card["key"] for card in cards if card["attack"] != "none"}
    time = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    shared = {(card["key"], card["defence_hash"], card["seed"]) for card in cards if card.get("sharing", 1) > 1}
    victims = str(len(shared) + sum(card.get("sharing", 1) == 1 for card in cards))
    defenses = str(len({card["defence"] for card in cards}))
    return [("victims trained", victims), ("scenarios", str(len(attacked))), ("defenses", defenses), ("compute", time)]


def _section(title: str, rows: Sequence[Row], cards: Sequence[JSON], cache: Path | None) -> JSON:
    key = next((row["key"] for row in rows if row["attack"] != "none" and not row["quoted"]), None)
    own = [card for card in cards if card["key"] == key]
    exhibits = _exhibits(own, cache) if cache else []
    return {
        "title": title,
        "rows": [
            {"cells": cells(row), "kind": _row_kind(row), "first": before is not None and _part(before) != _part(row)}
            for before, row in zip([None, *rows], rows, strict=False)
        ],
        "plots": _plots([row for row in rows if row["attack"] != "none"]),
        "sources": sources(rows),
        "flips": _flips(rows),
        "exhibits": exhibits,
        "command": own[0]["command"].partition(" --only ")[0] if own else None,
    }


def _plots(rows: Sequence[Row]) -> list[JSON]:
    """Ours, and beside it what was published: on axes of its own, since other victims reach other accuracies."""
    parts = {"Measured here": [row for row in rows if not row["quoted"]]}
    parts["† As published"] = [row for row in rows if row["quoted"]]
    drawn = [{"name": name, "svg": success_plot(part)} for name, part in parts.items()]
    drawn.append({"name": "Against the number of updates", "svg": steps_plot(parts["Measured here"])})
    return [plot for plot in drawn if plot["svg"] is not None]


def _flips(rows: Sequence[Row]) -> str | None:
    """How often a poison, and not the victim's own weakness, flipped a target; None for other attacks."""
    mine = [row for row in rows if row.get("kind") == "targets"]
    if not mine:
        return None
    told = ", ".join(f"{row['defence']} {row['flipped']} of {row['runs']}" for row in mine)
    return f"Targets that the clean victim reads right and the poisoned one as the attacker wants: {told}."


def _part(row: Row) -> tuple[bool, bool]:
    """Rows of one part of a table: no attack, ours, quoted."""
    return row["attack"] == "none", row["quoted"]


def _row_kind(row: Row) -> str:
    if row["quoted"]:
        return "quoted"
    return "clean" if row["attack"] == "none" else "ours" if row["defence"].startswith("pureebm") else "other"


def _exhibits(cards: Sequence[JSON], cache: Path) -> list[JSON]:
    """One for each defense whose pictures are still kept, in the order of the cards."""
    found = []
    for key, digest, name in dict.fromkeys((card["key"], card["defence_hash"], card["defence"]) for card in cards):
        path = exhibit_path(cache, key, digest)
        if name != "none" and path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                found.append(_exhibit(name, {member: arrays[member] for member in arrays.files}))
    return found


def _exhibit(name: str, arrays: Mapping[str, NDArray[Any]]) -> JSON:
    trios = []
    for clean, poisoned, purified in zip(arrays["clean"], arrays["poisoned"], arrays["purified"], strict=True):
        moved = (purified.astype(int) - poisoned) * AMPLIFIED + 128
        shown = (clean, poisoned, purified, moved.clip(0, 255).astype(np.uint8))
        trios.append(list(zip(PICTURES, map(_data_uri, shown), strict=True)))
    energies = {kind: arrays[f"energy/{kind}"] for kind in PICTURES[:3] if f"energy/{kind}" in arrays}
    return {"name": name, "pictures": trios, "energies": energy_plot(energies) if energies else None}


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _template() -> Any:
    text = (resources.files("pureebm") / "evaluation" / "report.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)
