"""The page of a suite: it is whole, it is offline, it says what the cards say."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from pureebm.evaluation.plots import energy_plot, steps_plot, success_plot
from pureebm.evaluation.report import write_report
from pureebm.evaluation.tables import COLUMNS, blocks, cells, make_rows
from pureebm.types import JSON

from .conftest import Smoke
from .test_tables import card


class Reader(HTMLParser):
    """All opened tags, all text cells, and every address that the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    return reader


def test_the_page_needs_no_network_and_holds_every_row_plot_and_picture(smoke: Smoke, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "page.html"
    write_report(path, smoke.suite, smoke.cards, cache=smoke.bench.store.folder)
    text, page = path.read_text("utf-8"), read(path)
    assert all(address.startswith(("data:image/png", "#")) for address in page.addresses)
    assert "script" not in page.open and not re.search(r"@import|url\((?!#)", text)
    rows = make_rows(smoke.cards)
    for _, block in blocks(rows):
        for row in block:
            for value in cells(row):
                assert not value or value in page.cells
    assert text.count("<th>") == 2 * len(COLUMNS)
    assert page.open.count("svg") == 2 + 2  # a plot of success for each scenario, and energies where there is an energy
    n_pictures = 2 * 2 * 4 * 4  # scenarios, defenses that do something, images, pictures of each
    assert page.open.count("img") == n_pictures
    assert "ASR" in text and "clean accuracy" in text and "pureebm bench run --suite smoke" in text


def test_without_the_cache_the_page_has_tables_and_plots_only(smoke: Smoke, tmp_path: Path) -> None:
    write_report(tmp_path / "page.html", smoke.suite, smoke.cards, cache=tmp_path / "none")
    page = read(tmp_path / "page.html")
    assert page.open.count("svg") == 2 and "img" not in page.open


def test_names_from_files_are_escaped_and_quoted_figures_are_marked(smoke: Smoke, tmp_path: Path) -> None:
    told = {"machine": "m", "device": "cpu", "versions": {}, "wall_seconds": 1.0, "command": "pureebm", "scenario": "s"}
    evil = [card(defence="<script>x</script>", **told), card("class2", **told)]
    write_report(tmp_path / "page.html", smoke.suite, evil)
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert 'class="quoted"' in text and "† quoted from the papers" in text
    write_report(tmp_path / "page.html", smoke.suite, evil, quoted=False)
    assert "†" not in (tmp_path / "page.html").read_text("utf-8")


def test_equal_rows_give_equal_plots_and_rows_without_success_give_none() -> None:
    rows = make_rows([card("class1"), card("class2", success=0.1)])
    assert success_plot(rows) == success_plot(rows)
    assert success_plot(make_rows([card(success=None)])) is None
    import numpy as np

    energies = {"clean": np.zeros(5, dtype=np.float32), "purified": np.ones(5, dtype=np.float32)}
    assert energy_plot(energies) == energy_plot(energies)
    assert energy_plot(dict.fromkeys(energies, energies["clean"])).startswith("<svg")  # no spread at all


def test_lengths_of_one_chain_make_a_pair_of_curves_from_no_defense_on() -> None:
    def chain(n_steps: int, options: str = "step_size=0.1") -> JSON:
        name = f"pureebm:steps={n_steps},{options}"
        return card(defence=name, defence_hash=name, settings={"n_steps": n_steps})

    one = [card(), *map(chain, (1, 5, 20))]
    assert steps_plot(make_rows(one)) is None  # too few for a curve
    other = [card(defence="pureebm", defence_hash="5", settings={"n_steps": 5})]  # its own chain, not a length of that
    plot = steps_plot(make_rows([*one, chain(2000), *other]))
    assert plot is not None and plot.count("poison success") == 1 and plot.count("natural accuracy") == 1
    two = steps_plot(make_rows([*one, chain(2000), *(chain(n, "noise=0") for n in (1, 5, 20, 50))]))
    assert two is not None and two.count("poison success") == 2 and "pureebm:noise=0" in two
