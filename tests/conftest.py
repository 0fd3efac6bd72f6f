"""Fixtures that several rooms of the house share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pureebm.energy.networks import LocalEnergy
from pureebm.energy.weights import save_model

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real image sets: $PUREEBM_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("PUREEBM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("needs ../shared/data")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a very small network with random weights and a gentle sampler of three updates."""
    torch.manual_seed(0)
    energy = LocalEnergy(widths=(4,), blocks=(1,))
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    sampler = {"n_steps": 3, "step_size": 0.02, "temperature": 1e-2}
    save_model(path, energy, {"sampler": sampler, "data": "none: random weights", "auto_steps": 5})
    return path


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """64 random 32x32 images in two class folders."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for index in range(64):
        path = folder / ("cat", "dog")[index % 2] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of eight images, so that a small set has many of them; and reports without plots, which take a second."""
    from pureebm.purify import batches, report

    monkeypatch.setattr(batches, "CHUNK_ITEMS", 8)
    monkeypatch.setattr(report, "_plots", lambda rows: [])
