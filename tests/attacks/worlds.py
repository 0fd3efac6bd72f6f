"""A tiny world for attacks: textures of a few classes, a small residual network, and a trainer of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pureebm.attacks.base import Attacker, LabeledSet, TargetGoal, TriggerGoal
from pureebm.classifiers.base import Classifier
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier

SIZE = 16


class TinyNet(Classifier):
    """Two residual blocks of `width` channels at half the resolution: 0.3 ms an image to train."""

    def __init__(self, n_classes: int = 4, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)) for _ in range(2)
        )
        self.head = nn.Linear(width, n_classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        h = F.relu(self.stem(self.normalize(images)))
        outputs = []
        for block in self.blocks:
            h = h + F.relu(block(h))
            outputs.append(h)
        return outputs


def textures(n: int, *, seed: int, n_classes: int = 4, noise: float = 20.0) -> LabeledSet:
    """n colored gratings of random phase in noise, classes in turn: angle and color belong to the class.

    Period, contrast, color and angle vary within a class, so that images of a class differ and classes touch.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes

    def spread(mean: float, sd: float) -> Tensor:
        return (mean + sd * torch.randn(n, generator=g)).view(n, 1, 1, 1)

    angle = labels.view(n, 1, 1, 1) * torch.pi / n_classes + spread(0, 0.2)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    x, y = x[None, :, :, None], y[None, :, :, None]
    phase = 2 * torch.pi * torch.rand(n, 1, 1, 1, generator=g)
    wave = torch.sin(2 * torch.pi * (x * angle.cos() + y * angle.sin()) / spread(5, 0.7) + phase)
    hue = 2 * torch.pi * labels / n_classes
    tint = torch.stack([hue.cos(), (hue - 2.1).cos(), (hue + 2.1).cos()], dim=1).view(n, 1, 1, 3)
    color = 12 * tint + 20 * torch.randn(n, 1, 1, 3, generator=g)
    pixels = 128 + wave * spread(40, 10) + color + noise * torch.randn(n, SIZE, SIZE, 3, generator=g)
    return LabeledSet(pixels.clamp(0, 255).round().to(torch.uint8), labels, n_classes)


def train(
    data: LabeledSet,
    *,
    seed: int,
    epochs: int | None = None,
    network: str | None = None,
    start: Classifier | None = None,
    peak_rate: float | None = None,
) -> Classifier:
    """`TrainSurrogate` for `TinyNet`s; `network` is a width, e.g. "8"."""
    if start is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = TinyNet(data.n_classes, width=int(network or 8))
    else:
        fresh = TinyNet(data.n_classes, width=start.head.in_features)
        fresh.load_state_dict(start.state_dict())
    config = ClassifierConfig(epochs=8 if epochs is None else epochs, batch_size=32, peak_rate=peak_rate or 0.1)
    train_classifier(fresh, data.images, data.labels, config, seed=seed)
    return fresh.requires_grad_(False)


def attacker(test: LabeledSet | None = None, *, extractors: Sequence[Classifier] = (), **means: object) -> Attacker:
    """Someone with the tiny trainer."""
    return Attacker(train=train, extractors=extractors, test=test, **means)  # type: ignore[arg-type]


def transfer(
    extractor: Classifier, data: LabeledSet, *, seed: int, epochs: int = 60, all_weights: bool = False
) -> Classifier:
    """A copy of `extractor` in eval mode with a new head: trained on its frozen features, or then with all weights."""
    victim = TinyNet(data.n_classes, width=extractor.head.in_features)
    body = {name: value for name, value in extractor.state_dict().items() if not name.startswith("head.")}
    victim.load_state_dict(body, strict=False)
    victim.eval().requires_grad_(False)
    images = data.images.permute(0, 3, 1, 2) / 127.5 - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        victim.head = nn.Linear(extractor.head.in_features, data.n_classes)
        _adam(victim.head, victim.features(images), data.labels, rate=0.1, epochs=epochs)
        if all_weights:
            _adam(victim.requires_grad_(True), images, data.labels, rate=1e-3, epochs=epochs // 6)
    return victim.requires_grad_(False)


def _adam(network: nn.Module, inputs: Tensor, labels: Tensor, *, rate: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = rate * 0.1 ** (epoch // max(1, epochs // 3))
        for rows in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()


@cache
def extractor(seed: int = 0) -> Classifier:
    """A network of 32 channels, pretrained on 800 `blobs` of its own; reads about 90 % of others right."""
    return train(blobs(800, seed=11), seed=seed, epochs=10, network="32")


def accuracy(network: nn.Module, data: LabeledSet) -> float:
    """Share of the images read right."""
    return (predict(network, data.images) == data.labels).float().mean().item()


def trigger_success(network: nn.Module, goal: TriggerGoal, test: LabeledSet, *, seed: int = 0) -> float:
    """Share of the triggered test images of other classes (of the source class, if any) read as the target class."""
    if goal.source_class is None:
        rows = test.labels != goal.target_class
    else:
        rows = test.labels == goal.source_class
    triggered = goal.trigger.apply(test.images[rows], seed=seed)
    return (predict(network, triggered) == goal.target_class).float().mean().item()


def target_success(network: nn.Module, goal: TargetGoal) -> float:
    """Share of the target images read as intended."""
    return (predict(network, goal.images) == goal.intended_classes).float().mean().item()


def blobs(n: int, *, seed: int, n_classes: int = 4, contrast: float = 20.0) -> LabeledSet:
    """n images of individual smooth random fields, each with a weak field of its class in it, classes in turn.

    Classes are hard and images are rich: a network learns both, and reads a single image as it was taught to.
    """
    g = torch.Generator().manual_seed(seed)

    def fields(count: int, generator: torch.Generator) -> Tensor:
        coarse = torch.randn(count, 3, 6, 6, generator=generator)
        smooth = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        return smooth.permute(0, 2, 3, 1)

    labels = torch.arange(n) % n_classes
    templates = fields(n_classes, torch.Generator().manual_seed(12345))
    pixels = 128 + contrast * templates[labels] + 35 * fields(n, g) + 5 * torch.randn(n, SIZE, SIZE, 3, generator=g)
    return LabeledSet(pixels.clamp(0, 255).round().to(torch.uint8), labels, n_classes)
