"""Detectors: their rules against slow restatements, and poisons that they find while a network trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attacks.worlds import TinyNet, textures
from torch import Tensor

from pureebm.defenses.detector import DropOnce, NeighborsConfig, SpectralConfig
from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig, train_classifier
from pureebm.types import TrainingData

RECIPE = ClassifierConfig(epochs=6, batch_size=32)


def test_spectral_signatures_drop_what_lies_farthest_along_the_first_principal_direction() -> None:
    draw = np.random.default_rng(0)
    points, labels = torch.from_numpy(draw.normal(size=(90, 6)) + 5), torch.arange(90) % 3
    points[:30] *= 3  # no two classes alike
    kept = SpectralConfig(expected=0.1).keeps(points.float(), labels)
    for label in range(3):
        rows = np.flatnonzero(labels.numpy() == label)
        x = points[rows].float().double().numpy()
        values, vectors = np.linalg.eigh(np.cov(x.T))
        scores = ((x - x.mean(axis=0)) @ vectors[:, values.argmax()]) ** 2
        assert set(rows[np.argsort(-scores)[:4]]) == set(rows[~kept[rows].numpy()])  # int(1.5 * 0.1 * 30) of 30


def test_neighbors_drop_exactly_those_whose_own_label_does_not_lead_among_them() -> None:
    draw = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2, 4], 170)  # more than one block; a label that nobody has
    x = draw.normal(size=(680, 3)).astype(np.float32) + np.eye(5, 3)[labels] * 2
    expected = []
    for place in range(680):
        distances = np.linalg.norm(x - x[place], axis=1)
        distances[place] = np.inf
        votes = np.bincount(labels[np.argsort(distances)[:85]], minlength=5)
        expected.append(votes[labels[place]] == votes.max())
    kept = NeighborsConfig(ratio=0.5).keeps(torch.from_numpy(x).float(), torch.from_numpy(labels))
    assert not all(expected) and (kept.numpy() == expected).mean() > 0.995  # but for ties of rounded distances


def test_rows_are_dropped_once_before_the_epoch_given_and_stay_so() -> None:
    calls: list[Tensor] = []

    def first_half(points: Tensor, labels: Tensor) -> Tensor:
        calls.append(points)
        return torch.arange(len(labels)) < 20

    data, network, defense = world(40), TinyNet().eval(), DropOnce(first_half, after=2)
    assert defense.before_training(network, data) is data
    found = [defense.before_epoch(epoch, network, data).rows for epoch in range(4)]
    assert found[0] is None and found[1] is None and len(calls) == 1
    assert found[2] is not None and found[2].tolist() == list(range(20)) and found[3] is found[2]
    with torch.no_grad():
        expected = network.features(data.images.permute(0, 3, 1, 2) / 127.5 - 1)
    torch.testing.assert_close(calls[0], expected)


def test_neighbors_find_mislabeled_images_while_a_network_trains() -> None:
    data, flipped = world(400), torch.arange(0, 400, 20)
    labels = data.labels.clone()
    labels[flipped] = (labels[flipped] + 2) % 4
    dropped = lost(train(data.images, labels, DropOnce(NeighborsConfig().keeps, after=5)), 400)
    assert dropped[flipped].float().mean() > 0.7
    assert dropped[labels == data.labels].float().mean() < 0.3


@pytest.mark.parametrize("source", [1, 2, 3])
def test_spectral_signatures_find_triggered_images_while_a_network_trains(source: int) -> None:
    # 15 images of another class with a patch and label 0, among images that hardly differ within a class
    labels = torch.arange(400) % 4
    colors = torch.tensor([[160, 90, 90], [90, 160, 90], [90, 90, 160], [140, 140, 60]])
    draw = torch.Generator().manual_seed(0)
    images = colors[labels].view(400, 1, 1, 3) + torch.randint(-20, 21, (400, 16, 16, 3), generator=draw)
    poisons = (labels == source).nonzero()[:15, 0]
    images[poisons, :5, :5] = torch.tensor([255, 0, 255])
    labels[poisons] = 0
    dropped = lost(train(images.to(torch.uint8), labels, DropOnce(SpectralConfig(expected=0.13).keeps, after=3)), 400)
    assert dropped.sum() == int(1.5 * 0.13 * 115) + int(1.5 * 0.13 * 85) + 2 * int(1.5 * 0.13 * 100)
    assert dropped[poisons].float().mean() > 0.9


@pytest.mark.parametrize("make", [lambda: SpectralConfig(expected=0.7), lambda: NeighborsConfig(ratio=0.0)])
def test_settings_out_of_range_are_refused(make: type) -> None:
    with pytest.raises(InputError, match="after must be >= 0 and"):
        make()


def train(images: Tensor, labels: Tensor, defense: DropOnce) -> DropOnce:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TinyNet()
    train_classifier(network, images, labels, RECIPE, seed=0, defense=defense)
    return defense


def lost(defense: DropOnce, n: int) -> Tensor:
    assert defense.rows is not None
    dropped = torch.ones(n, dtype=torch.bool)
    dropped[defense.rows] = False
    return dropped


def world(n: int) -> TrainingData:
    made = textures(n, seed=0)
    return TrainingData(made.images, made.labels)
