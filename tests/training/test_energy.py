"""The training run: resume, rollback, schedule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pureebm.errors import DivergedError, Interrupted, MismatchError
from pureebm.training import energy as training
from pureebm.training.energy import Phase, Runtime, Trainer, train_energy
from pureebm.training.settings import EnergySettings
from pureebm.training.workers import Workers

TINY = {"widths": (4,), "blocks": (1,), "width": 4, "size": 16, "batch": 4, "validation_images": 4, "lr_warmup": 2}
DSM = EnergySettings(**TINY, warm_steps=6, steps=8, sample_steps=2, validate_every=5)
MLE = EnergySettings(
    **TINY, objective="mle", model="sngan", steps=12, chain_steps=3, bank_size=12, sample_steps=2, rejuvenation=0.3
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return tmp_path / "images.npz"


def stop_after(n_steps: int):
    calls = iter(range(10**9))
    return lambda: next(calls) >= n_steps - 1


def runtime(**options) -> Runtime:
    return Runtime(workers=Workers("cpu"), **options)


@pytest.mark.parametrize("settings", [DSM, MLE], ids=["dsm", "mle"])
@pytest.mark.parametrize("at", [3, 6, 9])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(source, tmp_path, settings, at):
    train_energy(source, tmp_path / "whole", settings, runtime=runtime())
    with pytest.raises(Interrupted, match="repeat the same command"):
        train_energy(source, tmp_path / "cut", settings, runtime=runtime(stop=stop_after(at)))
    train_energy(source, tmp_path / "cut", settings, runtime=runtime())
    for name in ("model.safetensors", "last.safetensors", f"checkpoints/step-{14 if settings is DSM else 12:09d}.safetensors"):
        whole, cut = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert whole.keys() == cut.keys() and len(whole) > 5
        for key in whole:
            assert torch.equal(whole[key], cut[key]), (name, key)
    records = [[json.loads(line) for line in (tmp_path / run / "scalars.jsonl").open()] for run in ("whole", "cut")]
    for record in (*records[0], *records[1]):
        record.pop("minutes", None)
    assert records[0] == records[1]
