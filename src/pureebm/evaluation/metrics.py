"""What tables hold: rates in 0..1, PSNR in dB, the share of a perturbation that survives, AUROC."""

from __future__ import annotations

import torch
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
