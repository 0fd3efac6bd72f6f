"""The recipes against the tables of the papers and their code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import Tensor

from pureebm.classifiers.base import Classifier
from pureebm.classifiers.hlb import HLBNet
from pureebm.classifiers.networks import NETWORKS
from pureebm.classifiers.resnet import ResNet
from pureebm.errors import InputError
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier
from pureebm.training.recipes import NETWORK_OF, RECIPES, find_recipe

SCRATCH = {"optimizer": "sgd", "peak_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 128}
SCRATCH |= {"schedule": "steps", "gamma": 0.1, "keep_last": True, "pad": 4, "flip": True, "reflect": False, "cutout": 0}
SCRATCH |= {"label_smoothing": 0.0, "sum_loss": False, "train": "all", "fresh_head": False, "batch_norm": "train"}
TRANSFER = {"optimizer": "adam", "weight_decay": 5e-4, "schedule": "steps", "gamma": 0.1, "keep_last": True}
TRANSFER |= {"pad": 0, "flip": False, "cutout": 0, "fresh_head": True, "batch_norm": "frozen"}
HLB = {"optimizer": "sgd", "nesterov": True, "schedule": "triangle", "warm_up": 0.2, "first_rate": 0.2}
HLB |= {"label_smoothing": 0.2, "sum_loss": True, "flip": True, "reflect": True, "batch_size": 128, "keep_last": False}


@pytest.mark.parametrize(
    ("name", "milestones", "expected"),
    [
        ("scratch-200", [100, 150], SCRATCH | {"epochs": 200, "nesterov": False}),
        ("scratch-80", [30, 50, 70], SCRATCH | {"epochs": 80, "nesterov": False}),
        ("conservative", [14, 24, 35], SCRATCH | {"epochs": 40, "nesterov": True}),
        (
            "linear-transfer",
            [15, 25, 35],
            TRANSFER | {"epochs": 40, "peak_rate": 0.1, "batch_size": 64, "train": "head"},
        ),
        (
            "linear-transfer-sgd",
            [15, 25, 35],
            TRANSFER | {"epochs": 40, "peak_rate": 0.1, "batch_size": 64, "train": "head", "optimizer": "sgd"},
        ),
        (
            "linear-transfer-benchmark",
            [30],
            TRANSFER | {"epochs": 40, "peak_rate": 0.01, "batch_size": 64, "train": "head"},
        ),
        ("fine-tune", [15, 30, 45], TRANSFER | {"epochs": 60, "peak_rate": 1e-4, "batch_size": 128, "train": "all"}),
        (
            "fine-tune-narcissus",
            [15, 30, 45],
            TRANSFER | {"epochs": 60, "peak_rate": 1e-4, "batch_norm": "train", "pad": 4, "flip": True},
        ),
        ("hlb-small", [], HLB | {"epochs": 15, "momentum": 0.87, "bias_scaler": 64.5, "pad": 2, "cutout": 0}),
        ("hlb-medium", [], HLB | {"epochs": 15, "momentum": 0.85, "bias_scaler": 64, "pad": 2, "cutout": 0}),
        ("hlb-large", [], HLB | {"epochs": 40, "momentum": 0.85, "bias_scaler": 64, "pad": 4, "cutout": 12}),
        ("r18-hlb", [], HLB | {"epochs": 25, "momentum": 0.9, "bias_scaler": 1, "pad": 4, "cutout": 12}),
    ],
)
def test_a_recipe_has_the_published_numbers(name: str, milestones: list[int], expected: dict[str, object]) -> None:
    recipe = RECIPES[name]
    found = asdict(recipe)
    assert {key: found[key] for key in expected} == expected
    assert recipe.milestone_epochs() == milestones


@pytest.mark.parametrize(
    ("name", "rate", "decay", "momentum"),
    [("hlb-small", 11.6, 0.0157, 0.87), ("hlb-medium", 10.0, 0.0153, 0.85), ("hlb-large", 9.0, 0.0153, 0.85)],
)
def test_decoupled_rates_are_those_per_thousand_steps(name: str, rate: float, decay: float, momentum: float) -> None:
    # One update shrinks a weight by rate * weight_decay, which must be decay * batch / kilostep at the top.
    kilostep = 1024 * (1 + 1 / (1 - momentum))
    recipe = RECIPES[name]
    assert recipe.peak_rate == pytest.approx(rate / kilostep)
    assert recipe.peak_rate * recipe.weight_decay == pytest.approx(decay * 128 / kilostep)


def test_the_hyperlight_resnet_divides_its_rate_by_the_batch() -> None:
    recipe = RECIPES["r18-hlb"]
    assert (recipe.peak_rate, recipe.weight_decay) == pytest.approx((0.2 / 128, 5e-4 * 128))


@pytest.mark.parametrize(("epochs", "milestones"), [(40, [14, 24, 35]), (80, [29, 49, 70]), (200, [74, 124, 175])])
def test_the_conservative_schedule_moves_with_the_epochs(epochs: int, milestones: list[int]) -> None:
    assert [int(epochs // divisor) for divisor in (2.667, 1.6, 1.142)] == milestones
    assert find_recipe("conservative", epochs=epochs).milestone_epochs() == milestones


def test_the_fast_recipe_is_the_default() -> None:
    assert RECIPES["fast"] == ClassifierConfig() == find_recipe("fast")
    assert find_recipe("fast", epochs=3) == ClassifierConfig(epochs=3)


def test_recipes_name_known_networks_and_unknown_recipes_are_told_the_known() -> None:
    assert set(NETWORK_OF) <= set(RECIPES) and set(NETWORK_OF.values()) <= set(NETWORKS)
    with pytest.raises(InputError, match="unknown recipe 'scratch200'; did you mean 'scratch-200'.*fine-tune"):
        find_recipe("scratch200")


def textures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Stripes of three directions in noise, 16 px."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([x.sin(), y.sin(), (x + y).sin()])[labels]
    noise = torch.randn(n, 16, 16, 3, generator=generator)
    return (128 + 50 * waves[..., None] + 40 * noise).clamp(0, 255).to(torch.uint8), labels


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("scratch-200", lambda: ResNet(3, depths=(1, 1, 1, 1), width=4)),
        ("r18-hlb", lambda: ResNet(3, depths=(1, 1, 1, 1), width=4)),
        ("hlb-small", lambda: HLBNet(3, widths=(24, 32, 32), momentum=0.7)),
    ],
)
def test_a_tiny_network_learns_textures_by_the_recipe(name: str, make: Callable[[], Classifier]) -> None:
    torch.manual_seed(0)
    network, (images, labels) = make(), textures(512, seed=0)
    train_classifier(network, images, labels, find_recipe(name, epochs=5), seed=0)
    test_images, test_labels = textures(300, seed=1)
    assert (predict(network, test_images) == test_labels).double().mean() > 0.9
