"""A very small DDPM with random weights, as ours and as diffusers save one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def network() -> Any:
    pytest.importorskip("diffusers")
    from pureebm.diffusion.weights import build_unet, unet_config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(unet_config(widths=(4, 8), layers=1, patch=2, size=32, attention=False)).eval()


@pytest.fixture
def tiny_ddpm(network: Any, tmp_path: Path) -> Path:
    from pureebm.diffusion.weights import save_ddpm

    path = tmp_path / "ddpm" / "model.safetensors"
    save_ddpm(path, network, {"levels": 250, "data": "none: random weights"})
    return path
