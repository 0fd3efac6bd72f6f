"""Defenses by name: what a name makes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.attacks.worlds import TinyNet, textures
from torch import Tensor

from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.evaluation.defenses import NotInstalledError, find_defense
from pureebm.training.classifier import ClassifierConfig, predict, train_classifier
from pureebm.types import JSON, TrainingDefense


def test_none_has_no_stage_and_baselines_have_their_number() -> None:
    assert find_defense("none").settings() == {"stage": "none"}
    assert find_defense("jpeg-25").settings() == {"stage": "jpeg", "quality": 25, "seed": 0}
    assert find_defense("blur-0.7").settings() == {"stage": "blur", "sigma": 0.7, "seed": 0}


def test_pureebm_takes_the_sampler_of_its_model_and_options_over_it(tiny_model: Path) -> None:
    plain = find_defense(f"pureebm:model={tiny_model}").settings()
    assert (plain["n_steps"], plain["step_size"], plain["temperature"]) == (3, 0.02, 1e-2)
    assert plain["model"]["sha256"] == load_model(tiny_model).sha256
    auto = find_defense(f"pureebm:model={tiny_model},steps=auto").settings()
    assert auto["n_steps"] == 5  # the card's measured mid-run
    text = f"pureebm:model={tiny_model},steps=20,temperature=0.5,seed=4,precision=float32"
    changed = find_defense(text).settings()
    assert (changed["n_steps"], changed["temperature"], changed["seed"], changed["precision"]) == (
        20,
        0.5,
        4,
        "float32",
    )
    paper = find_defense(f"pureebm:model={tiny_model},sampler=paper").settings()
    assert (paper["n_steps"], paper["step_size"], paper["temperature"]) == (150, 1.25e-2, 1e-4)


def test_the_bundled_model_is_the_default() -> None:
    assert find_defense("pureebm").settings()["model"]["name"] == "local-32"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("epic-0.1", {"method": "epic", "share": 0.1, "every": 10, "drop_after": 10, "bias": False}),
        ("epic-0.3:preset=short,every=2,bias=true", {"share": 0.3, "every": 2, "drop_after": 2, "bias": True}),
        ("epic-0.2:preset=original", {"share": 0.2, "every": 10, "drop_after": 1}),
        ("friends-bernoulli", {"method": "friends", "noise": "bernoulli", "mu": 16.0, "n_steps": 20, "begin": 5}),
        ("friends-b:eps=4", {"noise": "bernoulli", "eps": 4.0, "mu": 16.0}),
        ("friends-gaussian:preset=original", {"noise": "gaussian", "mu": 1.0, "n_steps": 30}),
        ("friends-g:preset=puregen-transfer", {"noise": "gaussian", "mu": 16.0, "begin": 0}),
        ("spectral", {"method": "spectral", "after": 4, "expected": 0.05}),
        ("knn:after=2,ratio=0.5", {"method": "knn", "after": 2, "ratio": 0.5}),
    ],
)
def test_a_defense_that_acts_in_training_has_its_preset_and_options_over_it(name: str, settings: JSON) -> None:
    found = find_defense(name).settings()
    assert found["stage"] == "none"
    assert {key: found["training"][key] for key in settings} == settings
    json.dumps(found)


@pytest.mark.parametrize(
    "name",
    [
        "epic-0.1:preset=short,drop_after=1",
        "epic-0.3:every=1,drop_after=1",
        "friends-bernoulli:begin=1,n_steps=2",
        "friends-gaussian:begin=1,n_steps=2",
        "spectral:after=1,expected=0.2",
        "knn:after=1,ratio=0.2",
    ],
)
def test_a_victim_trains_with_each_of_them_learns_and_sees_something_else_than_without(name: str) -> None:
    data, test = textures(400, seed=0), textures(200, seed=1)
    make = find_defense(name).training
    assert make is not None
    recipe = ClassifierConfig(epochs=5, batch_size=32)

    def victim(defense: TrainingDefense | None) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = TinyNet()
        train_classifier(network, data.images, data.labels, recipe, seed=0, defense=defense)
        assert (predict(network, test.images) == test.labels).float().mean() > 0.5  # chance is 0.25
        return network.head.weight.detach()

    first = victim(make(3))
    assert torch.equal(first, victim(make(3)))
    assert not torch.equal(first, victim(None))


@pytest.mark.parametrize("name", ["ddpm"])
def test_a_defense_that_comes_later_says_so(name: str) -> None:
    with pytest.raises(NotInstalledError, match=f"defense not installed: {name}"):
        find_defense(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpg-25", "unknown defense 'jpg-25'; did you mean 'jpeg'. Known: none, jpeg"),
        ("jpeg-25:steps=3", "jpeg-25 takes no options"),
        ("jpeg-200", "quality must be 1 to 100"),
        ("pureebm:steps", "must be key=value"),
        ("pureebm:steps=many", "steps must be a number, got 'many'"),
        ("pureebm:speed=3", "has no option 'speed'; known: model, steps, sampler, seed, precision, step_size"),
        ("pureebm:sampler=fast", "sampler must be default or paper"),
        ("pureebm:model=nowhere", "unknown model 'nowhere'"),
        ("epic", "unknown defense 'epic'; known: epic-SHARE"),
        ("epic-1.5", "share must lie between 0 and 1, got 1.5"),
        ("epic-0.1:share=0.2", "has no option 'share'; known: preset, every, drop_after, stop_after, threshold, bias"),
        ("epic-0.1:preset=fast", "preset must be one of puregen, original, original-40, short, got 'fast'"),
        ("epic-0.1:bias=yes", "bias must be true or false, got 'yes'"),
        ("friends-uniform", "unknown defense 'friends-uniform'; known: friends-bernoulli"),
        ("friends-b:mu=big", "mu must be a number, got 'big'"),
        ("spectral:k=3", "has no option 'k'; known: preset, after, expected"),
        ("spectral-4", "spectral takes no number: 'spectral-4'"),
    ],
)
def test_what_is_wrong_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_defense(name)
