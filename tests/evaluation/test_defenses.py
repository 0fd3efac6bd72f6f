"""Defenses by name: what a name makes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pureebm.energy.weights import load_model
from pureebm.errors import InputError
from pureebm.evaluation.defenses import NotInstalledError, find_defense


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


@pytest.mark.parametrize("name", ["epic-0.1", "friends-b", "ddpm"])
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
    ],
)
def test_what_is_wrong_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_defense(name)
