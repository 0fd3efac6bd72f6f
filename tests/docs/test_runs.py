"""The code of the pages runs as it stands there, from top to bottom; that of two more in tests/integrations."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.docs.pages import ROOT, blocks

from pureebm import JobConfig, LangevinConfig, Purifier
from pureebm.attacks.base import LabeledSet
from pureebm.evaluation import defenses
from pureebm.purify.job import run
from pureebm.types import TrainingData

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
GIVEN = {
    "README.md": {"images": torch.zeros(1, 3, 32, 32), "my_network": lambda images: images.flatten(1).sum(1)},
    "docs/attacks.md": {"images": PIXELS, "labels": torch.arange(40) % 10, "my_training": None},
    "docs/quick-start.md": {},
    "docs/python.md": {},
    "docs/chains.md": {},
    "docs/extending.md": {},
}
"""What a page takes for granted."""


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run all Python of a page in a folder with six pictures in `scraped/`; its names."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        path = tmp_path / "scraped" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[number].numpy()).resize((32, 32)).save(path)

    def play(page: str) -> dict[str, Any]:
        module = ModuleType("a_page")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look
        module.__dict__.update(GIVEN[page])
        code = [block for block in blocks(page) if block.language == "python"]
        assert code
        for block in code:
            exec(compile(block.text, str(block), "exec"), module.__dict__)
        return module.__dict__

    yield play


@pytest.mark.parametrize("page", [page for page in GIVEN if page != "docs/extending.md"])
def test_the_python_of_a_page_runs(play: Callable[[str], dict[str, Any]], page: str, tmp_path: Path) -> None:
    if page == "docs/chains.md":
        write_ddpm(tmp_path / "runs" / "ddpm")
    names = play(page)
    if "record" in names:
        assert names["record"].counts["purified"] == 6
        assert (tmp_path / "scraped-purified" / "pureebm-report.html").is_file()


def write_ddpm(folder: Path) -> None:
    """A very small DDPM of random weights."""
    pytest.importorskip("diffusers")
    from pureebm.diffusion.weights import build_unet, save_ddpm, unet_config

    network = build_unet(unet_config(widths=(4, 8), layers=1, patch=2, size=32, attention=False))
    save_ddpm(folder / "model.safetensors", network, {"levels": 250, "data": "none: random weights"})


def test_the_additions_do_what_the_page_says(
    play: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = play("docs/extending.md")

    data = LabeledSet(PIXELS, torch.arange(40) % 2, n_classes=2)
    config = names["Config"](target_class=1, eps=8)
    poisoned = names["craft"](data, config, attacker=None, seed=0)
    change = (poisoned.images.int() - data.images[poisoned.rows].int()).abs().max()
    assert len(poisoned.rows) == 4 and change == 8 and (poisoned.labels == 1).all()

    images = torch.rand(2, 3, 16, 16)
    images[:, :, 5, 5] = 1.0
    assert (Purifier(names["MedianStage"]())(images)[:, :, 5, 5] < 1).all()
    energy = names["SmoothEnergy"]()
    descent = LangevinConfig(n_steps=30, step_size=0.01, temperature=0.05, noise=0.0)
    assert (energy(Purifier.from_energy(energy, descent)(images)) < energy(images)).all()

    np.save(tmp_path / "in.npy", PIXELS.numpy())
    stage = names["MedianStage"]()
    record = run(names["NpySource"](tmp_path / "in.npy"), tmp_path / "out.npy", stage, JobConfig())
    again = names["NpySource"](tmp_path / "out.npy")
    assert record.counts["purified"] == len(again) == 40 and not np.array_equal(again.rows, PIXELS)

    entries = re.findall(r'`("\w+": lambda asked: .*)`', (ROOT / "docs/extending.md").read_text("utf-8"))
    makers = [eval(f"{{{entry}}}", names | vars(defenses)) for entry in entries]
    monkeypatch.setattr(defenses, "MAKERS", {name: make for maker in makers for name, make in maker.items()})
    assert defenses.find_defense("median").settings()["stage"] == "median"
    acting = defenses.find_defense("drop").training
    assert acting is not None
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    rows = acting(0).before_epoch(3, network, TrainingData(data.images, data.labels)).rows
    assert rows is not None and len(rows) == 36


def test_the_pictures_of_how_it_works_are_drawn_by_the_program(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    for name in ("chain.png", "noise.png"):
        assert f"({name})" in (ROOT / "docs/how-it-works.md").read_text("utf-8")
        with Image.open(tmp_path / name) as drawn, Image.open(ROOT / "docs" / name) as shown:
            assert drawn.size == shown.size
