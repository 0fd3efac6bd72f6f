"""The preprocessor inside a classifier of the real toolbox: it acts when training, not when predicting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pureebm import Purifier
from pureebm.errors import InputError

pytest.importorskip("art")
from art.estimators.classification import PyTorchClassifier  # noqa: E402

from pureebm.integrations.art import PurifyingPreprocessor  # noqa: E402


@pytest.fixture
def purifier(tiny_model) -> Purifier:
    return Purifier.from_pretrained(tiny_model, precision="float32")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((6, 3, 16, 16), dtype=np.float32)


class Seen(nn.Module):
    """A linear classifier that remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 2)
        self.images: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.images.append(x.detach().clone())
        return self.layer(x.flatten(1))


def classifier(network: nn.Module, defense: PurifyingPreprocessor) -> PyTorchClassifier:
    return PyTorchClassifier(
        model=network,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        input_shape=(3, 16, 16),
        nb_classes=2,
        clip_values=(0, 1),
        preprocessing_defences=[defense],
        device_type="cpu",
    )


def test_training_sees_purified_images_and_predicting_does_not(purifier: Purifier, images: np.ndarray) -> None:
    network, defense = Seen(), PurifyingPreprocessor(purifier)
    made = classifier(network, defense)
    purified = defense(images)[0]
    assert (purified != images).any() and purified.shape == images.shape and purified.dtype == np.float32
    made.fit(images, np.array([0, 1] * 3), batch_size=6, nb_epochs=1)
    seen = torch.cat(network.images).numpy()
    assert sorted(map(bytes, seen)) == sorted(map(bytes, purified))
    network.images.clear()
    made.predict(images)
    assert np.array_equal(torch.cat(network.images).numpy(), images)


def test_an_attacker_gets_the_gradient_at_the_purified_image(purifier: Purifier, images: np.ndarray) -> None:
    network = Seen()
    defense = PurifyingPreprocessor(purifier, apply_predict=True)
    gradient = classifier(network, defense).loss_gradient(images, np.eye(2)[[0, 1] * 3])
    x = torch.tensor(defense(images)[0], requires_grad=True)
    nn.functional.cross_entropy(network(x), torch.tensor([0, 1] * 3)).backward()
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-7)
    leaf = torch.tensor(images, requires_grad=True)
    defense.estimate_forward(leaf).backward(torch.full_like(leaf, 3.0))
    assert (leaf.grad == 3).all()


def test_ranges_and_channels_are_conventions_and_change_nothing_else(purifier: Purifier, images: np.ndarray) -> None:
    expected = PurifyingPreprocessor(purifier)(images)[0]
    scaled = PurifyingPreprocessor(purifier, clip_values=(-1.0, 3.0))(images * 4 - 1)[0]
    assert 0 < np.abs((scaled + 1) / 4 - images).mean() < 0.1  # other pixels, so another noise, of the same strength
    last = PurifyingPreprocessor(purifier, channels_first=False)(np.moveaxis(images, 1, -1))[0]
    assert last.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(np.moveaxis(last, -1, 1), expected, atol=1e-6)


def test_labels_pass_and_senseless_ranges_are_refused(purifier: Purifier, images: np.ndarray) -> None:
    labels = np.arange(6)
    assert np.array_equal(PurifyingPreprocessor(purifier)(images, labels)[1], labels)
    with pytest.raises(InputError, match="clip_values"):
        PurifyingPreprocessor(purifier, clip_values=(1.0, 0.0))
