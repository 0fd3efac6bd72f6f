"""One image, one result: with the real purifier and real sources, nothing around an image changes a byte of it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.purify.job_fakes import tree

from pureebm.data.folder import FolderSource
from pureebm.data.open import open_source
from pureebm.energy.networks import LocalEnergy
from pureebm.errors import Interrupted
from pureebm.purify.job import JobConfig, run
from pureebm.purify.stages import LangevinStage
from pureebm.sampling.langevin import LangevinConfig

pytestmark = pytest.mark.usefixtures("small_chunks")
N = 21
CONFIG = JobConfig(batch_size=4, seed=5)


def stage() -> LangevinStage:
    """A small network whose every weight matters, cold enough to move pixels."""
    generator = torch.Generator().manual_seed(0)
    energy = LocalEnergy(widths=(8, 16), blocks=(1, 1))
    with torch.no_grad():
        for parameter in energy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return LangevinStage(energy, LangevinConfig(n_steps=3, step_size=0.03, temperature=1e-3), precision="float32")


def pictures() -> list[np.ndarray]:
    """Smooth 32x32 pictures, and two of another size."""
    random = np.random.default_rng(3)
    small = random.integers(0, 256, (N, 4, 4, 3), np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return [image[:20] if index in (6, 13) else image for index, image in enumerate(large)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    for index, image in enumerate(pictures()):
        place = path / f"class{index % 2}" / f"{index:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return path


def stored(target: Path) -> dict[str, str]:
    rows = pq.read_table(target / "pureebm-manifest.parquet").to_pylist()
    return {row["id"]: row["sha256_after"] for row in rows}


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> Path:
    target = tmp_path / "whole" / "out"
    record = run(folder, target, stage(), CONFIG)
    assert record.counts["purified"] == N and record.counts["unchanged"] == 0
    return target


def test_repeated_with_another_seed_or_not(folder: Path, whole: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "same" / "out", stage(), CONFIG)
    run(folder, tmp_path / "other" / "out", stage(), JobConfig(batch_size=4, seed=6))
    assert tree(tmp_path / "same" / "out") == tree(whole)
    other = stored(tmp_path / "other" / "out")
    assert all(other[name] != sha256 for name, sha256 in stored(whole).items())


def test_neighbors_and_order_change_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    """With every third image gone, each one left has other neighbors, another place in its batch and in the order."""
    for index in range(0, N, 3):
        next(folder.rglob(f"{index:02d}.png")).unlink()
    run(folder, tmp_path / "fewer" / "out", stage(), CONFIG)
    fewer, all_of_them = stored(tmp_path / "fewer" / "out"), stored(whole)
    assert len(fewer) == N - 7 and all(all_of_them[name] == sha256 for name, sha256 in fewer.items())


def test_shards_change_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    for index in (1, 0):
        run(folder, tmp_path / "shards" / "out", stage(), JobConfig(batch_size=4, seed=5, shard=(index, 2)))
    assert tree(tmp_path / "shards" / "out") == tree(whole)


def test_resuming_changes_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    target = tmp_path / "cut" / "out"
    for _ in range(10):
        stop.clear()
        try:
            record = run(folder, target, stage(), CONFIG, stop=stop, progress=_stop_after_a_chunk(stop))
            break
        except Interrupted:
            pass
    assert record.resumed > 8 and tree(target) == tree(whole)


def _stop_after_a_chunk(stop: threading.Event):  # type: ignore[no-untyped-def]
    def progress(report) -> None:  # type: ignore[no-untyped-def]
        if report.done - report.resumed >= 8:
            stop.set()

    return progress


def test_another_batch_size_changes_at_most_last_bits(folder: Path, whole: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "single" / "out", stage(), JobConfig(batch_size=1, seed=5))
    for path in whole.rglob("*.png"):
        one, other = (
            np.asarray(Image.open(root / path.relative_to(whole))).astype(int)
            for root in (whole, tmp_path / "single" / "out")
        )
        assert np.abs(one - other).max() <= 1 and (one != other).mean() < 0.01


def test_purifying_a_purified_folder_keeps_its_side_files_out(whole: Path, tmp_path: Path) -> None:
    assert len(FolderSource(whole)) == N
    assert run(whole, tmp_path / "again", stage(), CONFIG).counts["purified"] == N


def test_an_npz_file_gives_the_pixels_that_the_stage_gives(tmp_path: Path) -> None:
    images = np.stack([image for image in pictures() if image.shape[0] == 32])
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(len(images)))
    run(tmp_path / "set.npz", tmp_path / "out.npz", stage(), CONFIG)
    ids = [loaded.item.id for loaded in open_source(tmp_path / "set.npz").load(0, 4)]
    batch = torch.from_numpy(images[:4]).permute(0, 3, 1, 2).float() / 127.5 - 1
    moved = stage().purify_batch(batch, ids, seed=5).clamp(-1, 1)
    with np.load(tmp_path / "out.npz") as stored_file:
        expected = ((moved + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(stored_file["images"][:4], expected)
        np.testing.assert_array_equal(stored_file["labels"], np.arange(len(images)))
    assert (tmp_path / "out.npz.pureebm" / "pureebm-report.html").is_file()
