"""Scores: exact energies, highest first; what cannot be scored is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.purify.job_fakes import FakeSource, Shift, write_source

from pureebm.errors import InputError
from pureebm.purify.score import score

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_scores_are_the_stages_energies_highest_first(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "set.npy", 21))
    scores = score(source, Shift(), batch_size=1, out=tmp_path / "deep" / "scores.parquet")
    expected = {f"a/{i:05d}.jpg": (pixels / 127.5 - 1).mean() for i, pixels in enumerate(source.pixels)}
    assert scores.table["id"].to_pylist() == sorted(expected, key=expected.__getitem__, reverse=True)
    np.testing.assert_allclose(scores.table["energy"], sorted(expected.values(), reverse=True), atol=1e-6)
    assert pq.read_table(tmp_path / "deep" / "scores.parquet").equals(scores.table)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.parquet"]
    assert scores.exit_code == 0 and scores.to_json()["scored"] == 21


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "set.npy", 20), broken=[3], shapes={4: (8, 16)})
    scores = score(source, Shift(), limit=10)
    assert scores.failures == {
        "a/00003.jpg": "truncated <b>file</b>",
        "a/00004.jpg": "16x8 pixels: both sides must have at least 16",
    }
    assert (len(scores.table), scores.exit_code) == (8, 1)


def test_non_finite_energies_are_failures_and_not_ranked(tmp_path: Path) -> None:
    class Broken(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            return super().energies(images) * float("nan")

    scores = score(FakeSource(write_source(tmp_path / "set.npy", 3)), Broken())
    assert len(scores.table) == 0 and set(scores.failures.values()) == {"its energy is nan"}


def test_a_purifier_without_energy_is_refused(tmp_path: Path) -> None:
    class Plain(Shift):
        def energies(self, images):  # type: ignore[no-untyped-def]
            return None

    with pytest.raises(InputError, match="has no energy"):
        score(FakeSource(write_source(tmp_path / "set.npy", 3)), Plain())


def test_a_folder_as_output_and_a_limit_of_zero_are_refused(tmp_path: Path) -> None:
    source = FakeSource(write_source(tmp_path / "set.npy", 3))
    with pytest.raises(InputError, match="name a .parquet file"):
        score(source, Shift(), out=tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        score(source, Shift(), limit=0)
