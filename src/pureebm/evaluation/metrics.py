"""What tables hold: rates in 0..1, PSNR in dB, the share of a perturbation that survives, AUROC, intervals of means;
and the Frechet distance of two sets of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pureebm.errors import InputError


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of (N,) predictions that equal their labels."""
    return (predicted == labels).double().mean().item()


def poison_success(predicted: Tensor, labels: Tensor, target_class: int) -> float:
    """Share of triggered images of all *other* classes that are taken for the target class.

    Raises:
        InputError: every image is of the target class.
    """
    others = labels != target_class
    if not others.any():
        raise InputError(f"all {len(labels)} images are of the target class {target_class}: nothing could be misread")
    return (predicted[others] == target_class).double().mean().item()


def triggered_rates(predicted: Tensor, labels: Tensor, wanted: Tensor, aimed: Tensor) -> tuple[float, float]:
    """(share read as wanted, share still read as what they show) of the images that the attacker aims at; each 0..1.

    The two need not make 1: the rest is read as a third class.

    Args:
        predicted, labels, wanted: (N,) classes.
        aimed: (N,) bool; for one target class, the images of all other classes.

    Raises:
        InputError: no image is aimed at.
    """
    if not aimed.any():
        raise InputError(f"none of the {len(labels)} test images is of a class that the attacker aims at")
    return accuracy(predicted[aimed], wanted[aimed]), accuracy(predicted[aimed], labels[aimed])


def mean_l2(images: Tensor, originals: Tensor) -> float:
    """Mean over images of the Euclidean distance in the [0, 1] range, both (N, ...) uint8."""
    return ((images.double() - originals.double()) / 255).flatten(1).square().sum(dim=1).sqrt().mean().item()


EXACT_UP_TO = 10
"""Values whose bootstrap distribution is enumerated; of more, it is sampled."""


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, n_draws: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of the mean of independent values; None for fewer than two.

    Up to `EXACT_UP_TO` values all resamples are enumerated with their probabilities: the interval is exact, without
    chance. With more, `n_draws` resamples are drawn from `seed`.

    Raises:
        InputError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, got {level}")
    n, x = len(values), np.asarray(values, dtype=np.float64)
    if n < 2:
        return None
    if n <= EXACT_UP_TO:
        counts, weights = _resamples(n)
        means = counts @ x / n
    else:
        means = x[np.random.default_rng(seed).integers(n, size=(n_draws, n))].mean(axis=1)
        weights = np.full(n_draws, 1 / n_draws)
    order = np.argsort(means, kind="stable")
    below = np.cumsum(weights[order])
    ends = [
        min(int(np.searchsorted(below, share - 1e-12)), len(means) - 1)
        for share in (1 / 2 - level / 2, 1 / 2 + level / 2)
    ]
    low, high = (float(means[order[end]]) for end in ends)
    return low, high


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate of which `successes` in `n` were seen; unlike the bootstrap's, no point at 0."""
    z, rate = 1.959964, successes / n
    center, half = rate + z**2 / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    low, high = ((center + side * half) / (1 + z**2 / n) for side in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


@cache
def _resamples(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every way to draw n of n things with replacement: how often each is drawn, (M, n), and its probability, (M,)."""
    chosen = np.array(list(combinations_with_replacement(range(n), n)))
    counts = np.stack([(chosen == thing).sum(axis=1) for thing in range(n)], axis=1).astype(np.float64)
    factorials = np.array([math.factorial(k) for k in range(n + 1)], dtype=np.float64)
    weights = factorials[n] / factorials[counts.astype(int)].prod(axis=1) / float(n) ** n
    return counts, weights


def psnr(images: Tensor, originals: Tensor) -> float:
    """Mean over images of 10 log10(255**2 / MSE), both (N, ...) uint8; infinite where two are equal."""
    error = (images.double() - originals.double()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(255**2 / error)).mean().item()


def survival(before: Tensor, after: Tensor) -> float:
    """How much of a perturbation passes a purifier: mean over images of <after, before> / <before, before>.

    Args:
        before: d = x' - x, (N, ...) floating point.
        after: Psi(x') - Psi(x), purified with the same noise. 1 for the identity, 0 for a constant map.

    Raises:
        InputError: some image was not perturbed at all.
    """
    before, after = before.double().flatten(1), after.double().flatten(1)
    power = before.square().sum(dim=1)
    if not (power > 0).all():
        raise InputError(f"{int((power == 0).sum())} of {len(power)} images carry no perturbation")
    return ((before * after).sum(dim=1) / power).mean().item()


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Probability that a positive lies above a negative, ties counted half: 1-D tensors of any lengths."""
    ordered = negatives.double().sort().values
    positives = positives.double()
    below = torch.searchsorted(ordered, positives)
    up_to = torch.searchsorted(ordered, positives, right=True)
    return ((below + up_to).double().mean() / (2 * len(ordered))).item()


def paired_share(originals: Tensor, changed: Tensor) -> float:
    """Share of pairs in which the changed image lies strictly above its own original."""
    return (changed > originals).double().mean().item()


def frechet_distance(points: Tensor, others: Tensor) -> float:
    """Frechet distance of the normal distributions that have the means and covariances of two sets of features.

        |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((S C2 S)^(1/2)),  S = C1^(1/2)

    In float64, by eigenvalues: S C2 S is symmetric and has those of C1 C2. With n images it is too large by about
    tr(C) / n even if both are of one distribution: compare sets of equal size, and only under one network of features.

    Args:
        points, others: (N, D) and (M, D), at least 2 rows each.

    Raises:
        InputError: a set has fewer than 2 rows.

    Source: Heusel et al., arXiv 1706.08500. Differs: any features; theirs are of an Inception network, and so are the
        published figures, which do not compare with these.
    """
    if min(len(points), len(others)) < 2:
        raise InputError(f"a covariance needs at least 2 images, got {len(points)} and {len(others)}")
    (mean, cov), (other_mean, other_cov) = _moments(points), _moments(others)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    common = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * common)


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), n - 1, of (N, D) features."""
    centered = points.double() - points.double().mean(dim=0)
    return points.double().mean(dim=0), centered.T @ centered / (len(points) - 1)
