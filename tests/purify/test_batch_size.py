"""The search for a batch size: only where it pays, remembered, and never an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pureebm.energy.networks import LocalEnergy
from pureebm.purify import batch_size
from pureebm.purify.batch_size import cache_path, choose_batch_size, fastest
from pureebm.purify.stages import Chain, LangevinStage
from pureebm.sampling.langevin import LangevinConfig


@pytest.fixture
def stage() -> LangevinStage:
    return LangevinStage(LocalEnergy((4,), (1,)), LangevinConfig(), precision="float32", model={"name": "tiny"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pureebm" / "batch-size.json"


@pytest.mark.parametrize(("small_costs", "expected"), [(0.8, 16), (0.95, 64)])
def test_another_size_is_taken_only_if_it_is_clearly_faster(
    stage: LangevinStage, small_costs: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: LangevinStage, batch: Tensor) -> float:
        return len(batch) * {16: small_costs, 64: 1.0, 256: 1.1}[len(batch)]

    monkeypatch.setattr(batch_size, "_seconds", seconds)
    assert fastest(stage, 32, 32) == expected


def test_a_choice_is_remembered_for_its_model_and_shape(
    stage: LangevinStage, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[tuple[int, int]] = []
    monkeypatch.setattr(batch_size, "fastest", lambda _, height, width: searches.append((height, width)) or 256)
    for height in (32, 32, 64):
        assert choose_batch_size(stage, 64, 50_000, height, 32) == 256
    assert searches == [(32, 32), (64, 32)] and cache == cache_path() and cache.is_file()
    cache.write_text("not JSON")
    assert choose_batch_size(stage, 64, 50_000, 32, 32) == 256 and len(searches) == 3


def test_a_cache_that_cannot_be_written_is_no_error(
    stage: LangevinStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose_batch_size(stage, 64, 50_000, 32, 32) in (16, 64, 256)


def test_small_sets_mixed_sizes_and_other_stages_are_not_searched(
    stage: LangevinStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "fastest", lambda *_: pytest.fail("searched"))
    assert choose_batch_size(stage, 64, 4_999, 32, 32) == 64
    assert choose_batch_size(stage, 1, 50_000, 32, 32) == 1
    assert choose_batch_size(Chain([stage]), 64, 50_000, 32, 32) == 64


def test_without_xdg_the_cache_stands_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_path() == tmp_path / ".cache" / "pureebm" / "batch-size.json"


def test_the_search_measures_real_gradients(stage: LangevinStage) -> None:
    assert fastest(stage, 32, 32) in (16, 64, 256) and torch.is_grad_enabled()
