"""Pages of benchmark cards: the suites of a results folder, their tables, and each card as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Path as Place
from fastapi.responses import Response

from pureebm.errors import InputError
from pureebm.evaluation import cards, tables
from pureebm.evaluation.runner import read_suite_cards
from pureebm.evaluation.scenarios import BUNDLED, load_suite
from pureebm.types import JSON
from pureebm.web.site import Here, Site

router = APIRouter()

MAX_CARD = 4 * 2**20
N_CARDS = 500
Table = dict[str, Any]


@router.get("/cards")
def list_page(site: Here) -> Response:
    """The folders of results, and how many cards each has."""
    root = site.config.results
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        count = sum(1 for _ in folder.rglob("*.json")) if folder.is_dir() else 0
        if count:
            found.append((folder.name, count, load_suite(folder.name).title if folder.name in BUNDLED else ""))
    return site.page("cards.html", found=found, root=root)


@router.get("/cards/{suite}")
def suite_page(site: Here, suite: Annotated[str, Place(max_length=200)]) -> Response:
    """One folder: tables where its cards make some, and the list of its cards."""
    folder = _inside(site, suite)
    if not folder.is_dir():
        raise InputError(f"there are no results {suite!r}")
    paths = sorted(folder.rglob("*.json"))
    names = [path.relative_to(folder.parent).as_posix() for path in paths[:N_CARDS]]
    title, found, legend = suite, list[Table](), list[str]()
    if suite in BUNDLED:
        known = load_suite(suite)
        title, legend = known.title, list(tables.LEGEND)
        rows = tables.make_rows(read_suite_cards(known, folder.parent))
        found = [_table(name, block) for name, block in tables.blocks(rows, tables.quoted_rows(rows))]
    elif suite == "quick":
        title, found = "quick: Narcissus on a small victim", [_quick(cards.read_cards(folder))]
    return site.page("suite.html", title=title, tables=found, legend=legend, names=names, total=len(paths))


@router.get("/card")
def card_page(site: Here, path: Annotated[str, Query(max_length=4096)]) -> Response:
    """One card, every value of it."""
    file = _inside(site, path)
    if file.suffix != ".json" or not file.is_file():
        raise InputError(f"there is no card {path!r}")
    if file.stat().st_size > MAX_CARD:
        raise InputError(f"the card {path!r} has more than {MAX_CARD:,} bytes")
    card = cards.read_card(file)
    plain = [(name, _text(value)) for name, value in card.items() if not isinstance(value, dict | list)]
    nested = [(name, json.dumps(value, indent=1)) for name, value in card.items() if isinstance(value, dict | list)]
    return site.page("card.html", path=path, suite=path.partition("/")[0], plain=plain, nested=nested)


def _inside(site: Site, rest: str) -> Path:
    """A real path in the results folder. Raises `InputError` if there is none, or it leads out."""
    root = site.config.results.resolve()
    try:
        path = (root / rest.lstrip("/")).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"there is nothing at {rest!r}") from error
    if not path.is_relative_to(root):
        raise InputError(f"{rest!r} leads out of the results folder")
    return path


def _table(title: str, rows: Sequence[tables.Row]) -> Table:
    """A block of rows without the columns that are empty in all of them."""
    texts = [tables.cells(row) for row in rows]
    filled = [place for place in range(len(tables.COLUMNS)) if any(line[place] for line in texts)]
    return {
        "title": title,
        "columns": [tables.COLUMNS[place] for place in filled],
        "rows": [
            {"cells": [line[place] for place in filled], "kind": _kind(row)}
            for row, line in zip(rows, texts, strict=True)
        ],
        "sources": tables.sources(rows),
    }


def _kind(row: tables.Row) -> str:
    if row["quoted"]:
        return "quoted"
    return "clean" if row["attack"] == "none" else "ours" if row["defence"].startswith("pureebm") else "other"


def _quick(found: Sequence[JSON]) -> Table:
    """As `bench show` prints it: in %, by data, strength and success."""
    rows = sorted(
        cards.table(card for card in found if "defence" in card),
        key=lambda row: (
            str(row["data"]),
            float(row["eps"] or 0),
            str(row["attack"]),
            float(row["poison_success"] or 0),
        ),
    )
    columns = ["attack", "defense", "eps", "natural acc.", "poison success", "max", "floor", "runs"]
    rates = ("natural_accuracy", "poison_success", "poison_success_max", "clean_floor")
    return {
        "title": "In %: accuracy (high is good), poison success (near the floor is good)",
        "columns": columns,
        "rows": [
            {
                "cells": [
                    "no attack" if row["attack"] == "none" else row["attack"],
                    row["defence"],
                    "" if row["attack"] == "none" else str(row["eps"]),
                    *("" if row[key] is None else f"{100 * float(row[key] or 0):.1f}" for key in rates),
                    str(row["runs"]),
                ],
                "kind": "clean" if row["attack"] == "none" else "other",
            }
            for row in rows
        ],
        "sources": [],
    }


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
