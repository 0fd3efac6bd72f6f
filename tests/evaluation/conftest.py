"""One run of the smoke suite for all tests that look at its cards, tables and page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pureebm.evaluation.arrays import Shelf
from pureebm.evaluation.runner import Outcome, Runner, read_suite_cards
from pureebm.evaluation.scenarios import Suite, load_suite
from pureebm.evaluation.store import Store
from pureebm.evaluation.victims import Bench
from pureebm.types import JSON


@dataclass(frozen=True)
class Smoke:
    suite: Suite
    bench: Bench
    out: Path
    outcome: Outcome

    @property
    def cards(self) -> list[JSON]:
        return read_suite_cards(self.suite, self.out)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    folder = tmp_path_factory.mktemp("smoke")
    bench = Bench(Shelf(None, folder / "cache"), Store(folder / "cache"), precision="float32")
    suite = load_suite("smoke")
    return Smoke(suite, bench, folder / "out", Runner(suite, bench=bench, out=folder / "out").run())
