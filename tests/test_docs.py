"""The documents' tables are those of the cards."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

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
