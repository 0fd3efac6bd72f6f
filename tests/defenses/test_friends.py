"""FRIENDS: where the noise can go it goes, where the network minds it does not; sizes, schedule, and both defaults."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.attacks.worlds import TinyNet, textures
from torch import Tensor, nn

from pureebm.defenses.friends import PRESETS, START, Config, Friends, friendly_noise
from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier
from pureebm.types import TrainingData

LIMIT = 16 / 255


def test_a_network_that_minds_nothing_lets_the_noise_grow_to_the_clamp() -> None:
    pixels, config = torch.full((8, 3, 4, 4), 0.5), Config(n_steps=60, mu=3.0)
    started, grown = noise(Constant(), pixels, replace(config, n_steps=0)), noise(Constant(), pixels, config)
    assert started.abs().max() <= START and started.std() == pytest.approx(START / 3**0.5, rel=0.1)
    assert (grown.abs() == torch.tensor(LIMIT)).float().mean() > 0.95
    assert torch.equal(grown.sign(), started.sign())
    # nothing but mu moves it: without it the divergence, 0, leaves the noise where it began
    assert torch.equal(noise(Constant(), pixels, replace(config, mu=0.0)), started)


def test_noise_grows_where_the_network_does_not_look_and_shrinks_where_it_matters() -> None:
    pixels, config = torch.full((4, 3, 4, 4), 0.5), Config(n_steps=60, mu=100.0, rate=0.02)
    grown, started = noise(LeftHalf(), pixels, config), noise(LeftHalf(), pixels, replace(config, n_steps=0))
    assert (grown[..., 2:].abs() >= started[..., 2:].abs()).all() and grown[..., 2:].abs().mean() > 0.9 * LIMIT
    # three equal shifts of the logits change no probability, so that it may also drift along those
    before, after = (seen - seen.mean(dim=1, keepdim=True) for seen in map(LeftHalf().seen, (started, grown)))
    assert after.abs().max() < 0.1 * before.abs().max()


def test_the_updates_are_those_of_sgd_with_nesterovs_momentum_on_divergence_less_size() -> None:
    # All steps by hand for a linear network, whose gradient is known: d KL / d logits' = p' - p, over the batch.
    torch.manual_seed(0)
    weight, pixels = torch.randn(3, 12), 0.3 + 0.4 * torch.rand(5, 3, 2, 2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    network[1].load_state_dict({"weight": weight, "bias": torch.zeros(3)})
    config = Config(n_steps=7, mu=4.0, rate=0.02, momentum=0.8)
    delta = noise(network, pixels, replace(config, n_steps=0, clamp=255.0))
    wanted, speed = logits(pixels, weight).softmax(dim=1), torch.zeros_like(delta)
    for _ in range(7):
        gap = logits(pixels + delta, weight).softmax(dim=1) - wanted
        gradient = 2 * (gap @ weight).view_as(delta) / 5 - 4.0 * 2 * delta / delta.numel()
        speed = 0.8 * speed + gradient
        delta = delta - 0.02 * (gradient + 0.8 * speed)
    found = noise(network, pixels, config)
    assert delta.abs().max() < LIMIT
    torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_change_never_leaves_the_clamp_and_the_images_never_their_range() -> None:
    data, defense = world(40), Friends(Config(begin=0, eps=0.0, mu=3000.0, clamp=12.0, batch_size=16), seed=0)
    images = images_of(defense, 0, fresh(), data)
    change = images.int() - data.images.int()
    inside = (data.images >= 12) & (data.images <= 243)
    assert images.dtype == torch.uint8 and images.shape == data.images.shape
    assert change.abs().max() == 12 and (change[inside].abs() == 12).float().mean() > 0.5


@pytest.mark.parametrize("n", [2001, 40])  # more than are treated at once
def test_bernoulli_noise_is_eps_up_or_down_and_new_in_every_epoch(n: int) -> None:
    data, defense = gray(n), Friends(Config(eps=8.0), seed=0)
    first, second = images_of(defense, 0, fresh(), data), images_of(defense, 1, fresh(), data)
    assert set((first.int() - 128).unique().tolist()) == {-8, 8}
    assert (first > 128).float().mean() == pytest.approx(0.5, abs=0.02)
    assert (first == second).float().mean() == pytest.approx(0.5, abs=0.02)


def test_gaussian_noise_has_the_deviation_eps() -> None:
    data, defense = gray(100), Friends(Config(noise="gaussian", eps=8.0), seed=0)
    change = images_of(defense, 0, fresh(), data).float() - 128
    assert change.mean() == pytest.approx(0, abs=0.1)
    assert change.std() == pytest.approx(8, rel=0.02)  # rounding adds 1/12 to 64
    assert (change.abs() > 16).float().mean() == pytest.approx(0.0455, abs=0.008)  # beyond two deviations, rounded


def test_random_noise_stops_at_the_ends_of_the_range() -> None:
    data = TrainingData(torch.tensor([0, 255], dtype=torch.uint8).repeat(48).view(1, 4, 8, 3), torch.zeros(1).long())
    found = images_of(Friends(Config(eps=8.0), seed=0), 0, fresh(), data)
    assert set(found.unique().tolist()) == {0, 8, 247, 255}


def test_friendly_noise_is_made_once_before_the_epoch_of_the_schedule_by_the_network_of_that_time() -> None:
    data, config = world(40), Config(begin=2, eps=0.0, rate=3.0)
    defense = Friends(config, seed=0)
    assert all(torch.equal(images_of(defense, epoch, fresh(), data), data.images) for epoch in (0, 1))
    made = images_of(defense, 2, fresh(1), data)
    assert torch.equal(made, images_of(Friends(replace(config, begin=0), seed=0), 0, fresh(1), data))
    assert not torch.equal(made, images_of(Friends(replace(config, begin=0), seed=0), 0, fresh(2), data))
    assert torch.equal(made, images_of(defense, 3, fresh(2), data))
    assert defense.before_epoch(4, fresh(), data).rows is None


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_data_and_network_are_left_as_they_are(batch_statistics: bool) -> None:
    data, network = world(40), fresh()
    images, state = data.images.clone(), copy.deepcopy(network.state_dict())
    Friends(Config(begin=0, batch_statistics=batch_statistics), seed=0).before_epoch(0, network, data)
    assert torch.equal(data.images, images) and not network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_statistics_of_the_batch_are_used_where_asked_for() -> None:
    # a batch norm whose running statistics are far off: by them the network minds nothing, by the batch's it does
    data = world(16)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    norm.running_var.fill_(1e12)
    config = Config(begin=0, eps=0.0, mu=0.0, rate=1000.0, batch_size=16)
    by_running = Friends(replace(config, batch_statistics=False), seed=0)
    by_batch = Friends(replace(config, batch_statistics=True), seed=0)
    start = images_of(Friends(replace(config, n_steps=0), seed=0), 0, network, data)
    assert torch.equal(images_of(by_running, 0, network, data), start)
    assert not torch.equal(images_of(by_batch, 0, network, data), start)


def test_the_defaults_are_those_of_the_two_sources() -> None:
    original, puregen = PRESETS["original"], PRESETS["puregen"]
    assert (original.begin, original.n_steps, original.mu, original.batch_statistics) == (5, 30, 1.0, False)
    assert (puregen.begin, puregen.n_steps, puregen.mu, puregen.batch_statistics) == (5, 20, 16.0, True)
    assert PRESETS["puregen-transfer"] == replace(puregen, begin=0)
    assert PRESETS["puregen-frozen"] == replace(puregen, begin=0, batch_statistics=False)
    for config in (original, puregen):
        assert (config.rate, config.momentum, config.clamp, config.eps, config.batch_size) == (100, 0.9, 16, 8, 128)


def test_a_training_with_friends_learns_and_is_a_function_of_its_seed() -> None:
    data, test = world(400), textures(200, seed=1)
    recipe, config = ClassifierConfig(epochs=6, batch_size=32), Config(begin=2, n_steps=3)
    first, again, other = (
        train_classifier(fresh(), data.images, data.labels, recipe, seed=0, defense=Friends(config, seed=seed))
        for seed in (0, 0, 1)
    )
    x = test.images[:8].permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.equal(first(x), again(x)) and not torch.equal(first(x), other(x))
    assert (predict(first, test.images) == test.labels).float().mean() > 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise": "uniform"}, "noise must be bernoulli or gaussian, got 'uniform'"),
        ({"eps": -1.0}, "eps and clamp must be 0 or more, got -1.0"),
        ({"momentum": 1.0}, "momentum in 0..1, got 100.0 and 1.0"),
        ({"batch_size": 0}, "batch_size 1 or more, got 5, 20 and 0"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**fields)  # type: ignore[arg-type]


class Constant(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1)[:, :3]


class LeftHalf(nn.Module):
    """Sees the mean of each channel on the left, and nothing of the right."""

    def seen(self, images: Tensor) -> Tensor:
        return images[..., :2].mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return 30 * self.seen(images)


def logits(pixels: Tensor, weight: Tensor) -> Tensor:
    return F.linear((2 * pixels - 1).flatten(1), weight)


def noise(network: nn.Module, pixels: Tensor, config: Config) -> Tensor:
    return friendly_noise(network, pixels, config, torch.Generator().manual_seed(0))


def images_of(defense: Friends, epoch: int, network: nn.Module, data: TrainingData) -> Tensor:
    found = defense.before_epoch(epoch, network, data).images
    assert found is not None
    return found


def world(n: int) -> TrainingData:
    made = textures(n, seed=0)
    return TrainingData(made.images, made.labels)


def gray(n: int) -> TrainingData:
    return TrainingData(torch.full((n, 8, 8, 3), 128, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64))


def fresh(seed: int = 0) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet().eval()
