"""The bundled model on real images that lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch

from pureebm import JobConfig, Purifier
from pureebm.attacks.triggers import AddTrigger
from pureebm.data.open import open_source
from pureebm.data.ranges import to_pm1
from pureebm.evaluation.demo import load_sample
from pureebm.evaluation.metrics import auroc, paired_share


def test_cifar10_parquet_is_purified_with_labels_and_order_kept(shared_data: Path, tmp_path: Path) -> None:
    source, target = shared_data / "cifar10" / "test.parquet", tmp_path / "out.parquet"
    record = Purifier.from_pretrained().purify(source, target, config=JobConfig(limit=48))
    assert record.counts["purified"] == 48 and record.exit_code == 0
    assert pq.read_table(target)["label"].to_pylist() == pq.read_table(source)["label"].to_pylist()[:48]
    rows = pq.read_table(tmp_path / "out.parquet.pureebm" / "pureebm-manifest.parquet")
    assert all(24 < psnr < 37 for psnr in rows["psnr"].to_pylist())


def test_energy_tells_poisoned_images_from_their_originals(shared_data: Path) -> None:
    loaded = open_source(shared_data / "cifar10" / "test.parquet").load(0, 300)
    pixels = [item.picture.pixels for item in loaded if item.picture is not None]
    clean = torch.stack([torch.from_numpy(image) for image in pixels])
    poisoned = AddTrigger(load_sample().trigger).apply(clean)
    stage = Purifier.from_pretrained().stage
    before, after = (stage.energies(to_pm1(images).permute(0, 3, 1, 2)) for images in (clean, poisoned))
    assert before is not None and after is not None
    assert paired_share(before, after) >= 0.99
    assert auroc(before, after) >= 0.98
