"""A small site: a folder with images of two classes, an archive's worth of numbers, a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient
from tests.web.helpers import OWN

from pureebm.web.app import create_app
from pureebm.web.guard import Rules
from pureebm.web.site import SiteConfig


@pytest.fixture
def config(tmp_path: Path, image_folder: Path, tiny_model: Path, root: Path) -> SiteConfig:
    shown = tmp_path / "shown"
    shown.mkdir()
    image_folder.rename(shown / "images")
    rng = np.random.default_rng(1)
    np.savez(shown / "numbers.npz", images=rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    return SiteConfig(
        root=shown,
        workspace=tmp_path / "workspace",
        results=root / "results",
        model=str(tiny_model),
        precision="float32",
        rules=Rules(max_upload=2**20),
    )


@pytest.fixture
def client(config: SiteConfig) -> Iterator[TestClient]:
    with TestClient(create_app(config), base_url="http://localhost", headers=OWN) as client:
        yield client
