"""Chunks of eight images, so that a small set has many of them; and reports without plots, which take a second."""

import pytest

from pureebm.purify import batches, report


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_ITEMS", 8)
    monkeypatch.setattr(report, "_plots", lambda rows: [])
