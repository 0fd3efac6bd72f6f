"""What the trainings are tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 images of 16 px."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return tmp_path / "images.npz"
