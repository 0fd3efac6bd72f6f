"""Train a classifier on labeled uint8 images: SGD with a triangular rate, crops and flips.

The recipe is the victim's and the surrogate's alike. It knows no defense and no attack: what it
gets are images and labels. Nothing here draws from the global random state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.data.augment import augment
from pureebm.data.ranges import to_pm1
from pureebm.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is trained. Rates are those of SGD with Nesterov momentum 0.9."""

    epochs: Annotated[int, "passes over the training set"] = 8
    batch_size: Annotated[int, "images an update; the last, short batch of a pass is left out"] = 64
    peak_rate: Annotated[float, "learning rate at the top of the triangle"] = 0.1
    warm_up: Annotated[float, "share of all updates until the top"] = 0.2
    weight_decay: Annotated[float, "l2 penalty on all weights"] = 5e-4
    label_smoothing: Annotated[float, "0 is plain cross-entropy"] = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1:
            raise InputError(f"epochs must be >= 0 and batch_size >= 1, got {self.epochs} and {self.batch_size}")
        if not 0 < self.warm_up < 1:
            raise InputError(f"warm_up must lie between 0 and 1, got {self.warm_up}")

    def rate(self, update: int, n_updates: int) -> float:
        """Learning rate of update 0 .. n_updates-1: up to `peak_rate` and down to (almost) 0, linearly."""
        done = (update + 0.5) / n_updates
        return self.peak_rate * min(done / self.warm_up, (1 - done) / (1 - self.warm_up))


def train_classifier(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: ClassifierConfig,
    *,
    seed: int,
    device: str = "cpu",
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train `network` in place and return it, in eval mode: the last epoch's weights, never the "best".

    Args:
        network: (N, 3, H, W) in [-1, 1] -> logits. Initialized by the caller.
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        config: the recipe.
        seed: of order, crops and flips.
        on_epoch: called with the epoch (from 1) and its mean training loss.

    Raises:
        InputError: `images` are not uint8 NHWC, there are fewer than a batch, or labels differ in number.
    """
    n_batches = _check(images, labels, config)
    generator = torch.Generator().manual_seed(seed)
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images, labels = images.to(device), labels.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    for epoch in range(config.epochs):
        order, total = torch.randperm(len(images), generator=generator).to(device), 0.0
        for batch in range(n_batches):
            rows = order[batch * config.batch_size : (batch + 1) * config.batch_size]
            x = to_pm1(augment(images[rows], generator)).permute(0, 3, 1, 2)
            loss = F.cross_entropy(network(x), labels[rows], label_smoothing=config.label_smoothing)
            optimizer.param_groups[0]["lr"] = config.rate(epoch * n_batches + batch, config.epochs * n_batches)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        if on_epoch:
            on_epoch(epoch + 1, total / n_batches)
    return network.eval()


def _check(images: Tensor, labels: Tensor, config: ClassifierConfig) -> int:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"images must be (N, H, W, 3) uint8, got {tuple(images.shape)} {images.dtype}")
    if len(images) != len(labels):
        raise InputError(f"{len(images)} images, but {len(labels)} labels")
    if len(images) < config.batch_size:
        raise InputError(f"{len(images)} images are fewer than one batch of {config.batch_size}; lower batch_size")
    return len(images) // config.batch_size


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, *, batch_size: int = 500, device: str = "cpu") -> Tensor:
    """Predicted classes, int64 (N,) on the CPU, of (N, H, W, 3) uint8 images."""
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    classes = [network(to_pm1(batch.to(device)).permute(0, 3, 1, 2)).argmax(dim=1).cpu() for batch in batches]
    return torch.cat(classes) if classes else torch.empty(0, dtype=torch.int64)


def fit(network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, peak_rate: float, seed: int) -> None:
    """`train_classifier` as an attack calls it for its surrogate (`attacks.narcissus.Fit`)."""
    train_classifier(network, images, labels, ClassifierConfig(epochs=epochs, peak_rate=peak_rate), seed=seed)
