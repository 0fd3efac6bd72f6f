"""The recipe of victims and surrogates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pureebm.classifiers.small_resnet import SmallResNet
from pureebm.data.augment import PAD, augment
from pureebm.data.ranges import to_pm1
from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier


def test_an_augmented_image_is_a_crop_of_the_zero_padded_image_or_of_its_mirror() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (64, 8, 6, 3), generator=generator).to(torch.uint8)
    out = augment(images, generator)
    found = [_places(image, new) for image, new in zip(images, out, strict=True)]
    assert all(found)  # every one is such a crop
    assert {place for places in found for place in places if place[2]}  # some are mirrored
    assert {place for places in found for place in places if not place[2]}
    assert len({place[:2] for places in found for place in places}) > 2 * PAD  # at many offsets


def _places(image: Tensor, new: Tensor) -> list[tuple[int, int, bool]]:
    padded = torch.zeros(8 + 2 * PAD, 6 + 2 * PAD, 3, dtype=torch.uint8)
    padded[PAD:-PAD, PAD:-PAD] = image
    return [
        (top, left, flipped)
        for top in range(2 * PAD + 1)
        for left in range(2 * PAD + 1)
        for flipped in (False, True)
        if (
            padded[top : top + 8, left : left + 6].flip(1) if flipped else padded[top : top + 8, left : left + 6]
        ).equal(new)
    ]


def test_the_rate_is_a_triangle_with_its_top_after_the_warm_up() -> None:
    config = ClassifierConfig(peak_rate=0.5, warm_up=0.2)
    rates = [config.rate(update, 1000) for update in range(1000)]
    assert rates.index(max(rates)) in (199, 200)
    assert max(rates) == pytest.approx(0.5, rel=0.01)
    assert rates[99] == pytest.approx(0.25, rel=0.01)
    assert rates[599] == pytest.approx(0.25, rel=0.01)
    assert 0 < min(rates) < 0.002


def colors(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Reddish and bluish noise images: learnable in a few updates."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=generator)
    images = torch.randint(60, 180, (n, 32, 32, 3), generator=generator)
    images[:, :, :, 0] += 40 * (labels == 0).view(n, 1, 1)
    images[:, :, :, 2] += 40 * (labels == 1).view(n, 1, 1)
    return images.to(torch.uint8), labels


def test_training_learns_and_a_seed_repeats_it_bit_by_bit() -> None:
    images, labels = colors(512, seed=0)
    test_images, test_labels = colors(200, seed=1)

    def trained(seed: int) -> nn.Module:
        torch.manual_seed(0)
        return train_classifier(SmallResNet(2, (4, 8, 8)), images, labels, ClassifierConfig(epochs=2), seed=seed)

    first, again, other = trained(0), trained(0), trained(1)
    assert (predict(first, test_images) == test_labels).double().mean() > 0.95
    assert not first.training
    assert all(a.equal(b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not all(a.equal(b) for a, b in zip(first.state_dict().values(), other.state_dict().values(), strict=True))


def test_zero_epochs_leave_the_weights_and_training_leaves_the_global_random_state() -> None:
    images, labels = colors(64, seed=0)
    network = SmallResNet(2, (4, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    train_classifier(network, images, labels, ClassifierConfig(epochs=0), seed=0)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    train_classifier(network, images, labels, ClassifierConfig(epochs=1), seed=0)
    assert torch.random.get_rng_state().equal(state)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    torch.manual_seed(0)
    network, images = SmallResNet(5, (4, 4, 4)).eval(), colors(37, seed=0)[0]
    expected = network(to_pm1(images).permute(0, 3, 1, 2)).argmax(dim=1)
    assert predict(network, images, batch_size=10).equal(expected)
    assert predict(network, images[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(64, 3, 32, 32), torch.zeros(64).long(), "must be .* uint8"),
        (torch.zeros(64, 32, 32, 3, dtype=torch.uint8), torch.zeros(63).long(), "64 images, but 63 labels"),
        (torch.zeros(63, 32, 32, 3, dtype=torch.uint8), torch.zeros(63).long(), "fewer than one batch of 64"),
    ],
)
def test_unfit_input_is_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_classifier(SmallResNet(2, (4, 4, 4)), images, labels, ClassifierConfig(), seed=0)
