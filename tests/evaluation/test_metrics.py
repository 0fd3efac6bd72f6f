"""Metrics against hand-worked numbers and slow restatements."""

from __future__ import annotations

import pytest
import torch

from pureebm.errors import InputError
from pureebm.evaluation.metrics import accuracy, auroc, paired_share, poison_success, psnr, survival


def test_poison_success_counts_the_images_of_other_classes_only() -> None:
    labels = torch.tensor([2, 2, 2, 0, 1, 3, 4])
    predicted = torch.tensor([2, 2, 2, 2, 1, 2, 0])
    assert poison_success(predicted, labels, 2) == pytest.approx(2 / 4)  # the three true 2s do not count
    assert accuracy(predicted, labels) == pytest.approx(4 / 7)
    with pytest.raises(InputError, match="all 3 images are of the target class 2"):
        poison_success(predicted[:3], labels[:3], 2)


def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_half() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 12, (57,), generator=generator).float()
    high = torch.randint(4, 16, (31,), generator=generator).float()
    pairs = [(h > n).item() + 0.5 * (h == n).item() for h in high for n in low]
    assert auroc(low, high) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert auroc(high, low) == pytest.approx(1 - auroc(low, high), abs=1e-12)


def test_paired_share_compares_each_image_with_its_own_original() -> None:
    assert paired_share(torch.tensor([1.0, 5.0, 3.0, 2.0]), torch.tensor([2.0, 4.0, 3.0, 9.0])) == 0.5


def test_survival_is_1_for_the_identity_0_for_a_constant_map_and_linear_between() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(6, 3, 8, 8, generator=generator)
    assert survival(before, before) == pytest.approx(1)
    assert survival(before, torch.zeros_like(before)) == 0
    assert survival(before, 0.3 * before) == pytest.approx(0.3)
    aside = torch.randn(6, 3, 8, 8, generator=generator)
    flat, beside = before.flatten(1), aside.flatten(1)
    aside = beside - flat * (flat * beside).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True)
    assert survival(before, 0.3 * before + aside.view_as(before)) == pytest.approx(0.3, abs=1e-6)
    before[4] = 0
    with pytest.raises(InputError, match="1 of 6 images carry no perturbation"):
        survival(before, before)


def test_psnr_is_the_mean_over_images_in_decibels_of_255() -> None:
    zero = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    other = zero.clone()
    other[0], other[1] = 255, 1  # 0 dB and 48.13 dB
    assert psnr(other, zero) == pytest.approx((0 + 48.1308) / 2, abs=1e-3)
