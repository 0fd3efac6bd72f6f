"""Diagnosis: perturbations within the budget, and what is said of known purifiers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.data.ranges import to_pm1
from pureebm.evaluation.arrays import LabeledImages
from pureebm.evaluation.diagnosis import diagnose, perturbations, sinusoid, targeted_pgd
from pureebm.evaluation.metrics import psnr
from pureebm.evaluation.quick import Defense
from pureebm.types import JSON


class Known:
    """Keeps a share of what differs from gray; its energy is the spread of neighbors."""

    def __init__(self, share: float) -> None:
        self.share = share

    def purify_batch(self, images: Tensor, ids: Sequence[str], *, seed: int) -> Tensor:
        return self.share * images

    def energies(self, images: Tensor) -> Tensor:
        return images.diff(dim=3).square().mean(dim=(1, 2, 3))

    def settings(self) -> JSON:
        return {"stage": "known", "share": self.share}


@pytest.fixture
def clean() -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 156, (20, 32, 32, 3), generator=generator).to(torch.uint8)
    return LabeledImages(images, torch.arange(20) % 10)


@pytest.fixture
def network() -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(10, (8, 8, 8)).eval().requires_grad_(False)


def test_every_perturbation_uses_the_budget_and_keeps_it(clean: LabeledImages, network: SmallResNet) -> None:
    changed = perturbations(clean, sinusoid(32), network)
    assert list(changed) == ["trigger", "pgd", "sinusoid", "random"]
    for images in changed.values():
        assert images.dtype == torch.uint8
        assert (images.int() - clean.images.int()).abs().flatten(1).amax(dim=1).eq(8).all()
    assert (changed["random"].int() - clean.images.int()).abs().eq(8).all()


def test_the_sinusoid_has_six_periods_along_the_columns() -> None:
    pattern = sinusoid(32) * 127.5
    assert pattern[0, 0, 0].item() == pytest.approx(0)
    assert pattern[2, 31, 3].item() == pytest.approx(
        8 * torch.sin(torch.tensor(2 * torch.pi * 6 * 3 / 32)).item(), abs=1e-4
    )
    spectrum = torch.fft.rfft(pattern[1, 5])
    assert spectrum.abs().argmax() == 6


def test_pgd_moves_images_toward_their_target_classes(clean: LabeledImages, network: SmallResNet) -> None:
    targets = (clean.labels + 1) % 10

    def loss(images: Tensor) -> float:
        return torch.nn.functional.cross_entropy(network(to_pm1(images).permute(0, 3, 1, 2)), targets).item()

    moved = targeted_pgd(network, clean.images, targets)
    random = clean.images + 8 * torch.randint(-1, 2, clean.images.shape, generator=torch.Generator().manual_seed(0))
    assert loss(moved) < loss(clean.images) - 3 * abs(loss(random.to(torch.uint8)) - loss(clean.images))


def test_no_defense_keeps_all_and_a_gray_map_nothing(
    clean: LabeledImages, network: SmallResNet, tmp_path: Path
) -> None:
    changed = perturbations(clean, sinusoid(32), network)
    none = diagnose(Defense("none", None), clean.images, changed, tmp_path)
    assert none["psnr"] is None and none["energy"] is None
    assert all(share == pytest.approx(1) for share in none["survival"].values())
    gray = diagnose(Defense("gray", Known(0.0)), clean.images, changed, tmp_path)
    assert all(share == 0 for share in gray["survival"].values())
    half = diagnose(Defense("half", Known(0.5)), clean.images, changed, tmp_path)
    assert half["survival"]["random"] == pytest.approx(0.5, abs=0.01)
    assert half["psnr"] > gray["psnr"] > 15


def test_the_energy_is_asked_to_tell_triggered_images_from_clean_ones(
    clean: LabeledImages, network: SmallResNet, tmp_path: Path
) -> None:
    smooth = LabeledImages((clean.images // 8 + 100).to(torch.uint8), clean.labels)
    found = diagnose(
        Defense("known", Known(1.0)), smooth.images, perturbations(smooth, sinusoid(32), network), tmp_path
    )
    assert found["energy"] == {"auroc": 1.0, "paired_share": 1.0}


def test_psnr_is_that_of_the_images_that_were_changed(
    clean: LabeledImages, network: SmallResNet, tmp_path: Path
) -> None:
    images = clean.images.clone()
    images[:2] = 128  # what the gray map leaves as it is
    some = LabeledImages(images, clean.labels)
    found = diagnose(Defense("gray", Known(0.0)), images, perturbations(some, sinusoid(32), network), tmp_path)
    n = len(images)
    assert found["changed_share"] == pytest.approx((n - 2) / n)
    gray = torch.full_like(images, 128)
    assert found["psnr"] == pytest.approx(psnr(gray[2:], images[2:]))
