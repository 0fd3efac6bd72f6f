"""Metrics against hand-worked numbers and slow restatements."""

from __future__ import annotations

from itertools import product
from math import comb, sqrt

import pytest
import torch

from pureebm.errors import InputError
from pureebm.evaluation.metrics import (
    accuracy,
    auroc,
    bootstrap_interval,
    frechet_distance,
    mean_l2,
    paired_share,
    poison_success,
    psnr,
    survival,
    triggered_rates,
    wilson_interval,
)


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


def test_triggered_rates_count_what_the_attacker_aims_at_and_need_not_make_1() -> None:
    labels = torch.tensor([2, 0, 1, 3, 4])
    predicted = torch.tensor([2, 2, 1, 0, 2])
    wanted = torch.full_like(labels, 2)
    assert triggered_rates(predicted, labels, wanted, labels != 2) == pytest.approx((2 / 4, 1 / 4))
    assert triggered_rates(predicted, labels, wanted, labels == 3) == (0, 0)  # one source class
    with pytest.raises(InputError, match="none of the 5 test images"):
        triggered_rates(predicted, labels, wanted, labels == 9)


def test_l2_is_in_units_of_the_pixel_range() -> None:
    images = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    moved = images.clone()
    moved[0] = 51  # 12 values of 0.2; the second image does not move
    assert mean_l2(moved, images) == pytest.approx(0.2 * 12**0.5 / 2)


def test_the_interval_of_few_values_is_that_of_all_resamples_listed_one_by_one() -> None:
    values = [0.1, 0.4, 0.4, 0.9]
    means = sorted(sum(draw) / 4 for draw in product(values, repeat=4))  # 4**4 resamples, equally likely
    low = next(mean for place, mean in enumerate(means, start=1) if place / len(means) >= 0.05)
    high = next(mean for place, mean in enumerate(means, start=1) if place / len(means) >= 0.95)
    assert bootstrap_interval(values, level=0.9) == pytest.approx((low, high))


def test_the_interval_of_yes_and_no_is_binomial() -> None:
    # Resamples of k ones in n are Binomial(n, k / n) / n: the quantiles in closed form.
    def quantile(n: int, k: int, level: float) -> float:
        total = 0.0
        for ones in range(n + 1):
            total += comb(n, ones) * (k / n) ** ones * (1 - k / n) ** (n - ones)
            if total >= level - 1e-12:
                return ones / n
        raise AssertionError

    for n, k in ((10, 3), (7, 1), (5, 4)):
        found = bootstrap_interval([1.0] * k + [0.0] * (n - k))
        assert found == pytest.approx((quantile(n, k, 0.025), quantile(n, k, 0.975)))
    drawn = bootstrap_interval([1.0] * 30 + [0.0] * 70, seed=1)  # too many to list
    assert drawn == pytest.approx((quantile(100, 30, 0.025), quantile(100, 30, 0.975)), abs=0.011)
    assert drawn == bootstrap_interval([1.0] * 30 + [0.0] * 70, seed=1)


def test_the_interval_of_equal_values_is_a_point_and_of_one_value_unknown() -> None:
    assert bootstrap_interval([0.25] * 6) == (0.25, 0.25)
    assert bootstrap_interval([0.25]) is None
    with pytest.raises(InputError, match="between 0 and 1, got 95"):
        bootstrap_interval([0.1, 0.2], level=95)


def test_wilsons_interval_solves_its_equation_and_covers_as_it_promises() -> None:
    # Its ends p solve |k/n - p| = z sqrt(p (1 - p) / n).
    for k, n in ((0, 10), (3, 10), (10, 10), (1, 48)):
        for end in wilson_interval(k, n):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(k / n - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5)
    assert (wilson_interval(0, 10)[0], wilson_interval(10, 10)[1]) == pytest.approx((0, 1))
    covered = sum(
        comb(20, k) * 0.3**k * 0.7 ** (20 - k)
        for k in range(21)
        if wilson_interval(k, 20)[0] <= 0.3 <= wilson_interval(k, 20)[1]
    )
    assert 0.92 < covered < 0.99


def spread(mean: torch.Tensor, deviations: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """2 D points of exactly this mean and the covariance turn diag(deviations^2) turn^T."""
    n = 2 * len(mean)
    axes = (turn * deviations).T * sqrt((n - 1) / 2)
    return mean + torch.cat([axes, -axes])


def test_the_frechet_distance_is_that_of_normal_distributions_in_closed_form() -> None:
    # Where the covariances have common axes it is |m1 - m2|^2 + sum (s1 - s2)^2, in any rotation.
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    means = torch.tensor([[0.0, 1, 2, 3], [1.0, 1, 2, 1]], dtype=torch.float64)
    one, other = torch.tensor([[1.0, 2, 0.5, 0], [3.0, 2, 0, 0]], dtype=torch.float64)
    expected = 5 + (one - other).square().sum().item()
    assert frechet_distance(spread(means[0], one, turn), spread(means[1], other, turn)) == pytest.approx(expected)
    # Axes turned by 45 degrees: C1 = diag(9, 1), C2 = [[5, 4], [4, 5]]; C1 C2 has trace 50 and determinant 81, so
    # the roots of its eigenvalues sum to sqrt(50 + 2 * 9).
    half = sqrt(0.5)
    corner = torch.tensor([[half, half], [half, -half]], dtype=torch.float64)
    straight = spread(torch.zeros(2), torch.tensor([3.0, 1]), torch.eye(2))
    turned = spread(torch.zeros(2), torch.tensor([3.0, 1]), corner)
    assert frechet_distance(straight, turned) == pytest.approx(20 - 2 * sqrt(68))
    assert frechet_distance(turned, straight) == pytest.approx(20 - 2 * sqrt(68))


def test_the_frechet_distance_of_a_set_to_itself_is_nothing_and_one_image_has_none() -> None:
    points = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert abs(frechet_distance(points, points)) < 1e-9
    with pytest.raises(InputError, match="at least 2 images, got 1 and 50"):
        frechet_distance(points[:1], points)
