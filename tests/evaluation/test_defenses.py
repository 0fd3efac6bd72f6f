"""Defenses by name: what a name makes, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tests.attacks.worlds import TinyNet, textures
from torch import Tensor

from pureebm.energy.weights import DEFAULT_MODEL, load_model, save_model
from pureebm.errors import InputError
from pureebm.evaluation import defenses
from pureebm.evaluation.defenses import NotInstalledError, find_defense
from pureebm.purify.chains import chain_text
from pureebm.purify.vq import VQAutoencoder, VQStage, load_vq
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
    stays = find_defense(f"pureebm:model={tiny_model},adapt_fades=0").settings()
    assert plain["adapt_fades"] is True and stays["adapt_fades"] is False
    other = find_defense(f"pureebm:model={tiny_model},sampler=residual-32").settings()
    assert load_model("residual-32").card["sampler"].items() <= other.items()
    paper = find_defense(f"pureebm:model={tiny_model},sampler=paper").settings()
    assert (paper["n_steps"], paper["step_size"], paper["temperature"]) == (150, 1.25e-2, 1e-4)


def test_the_bundled_model_is_the_default() -> None:
    assert find_defense("pureebm").settings()["model"]["name"] == DEFAULT_MODEL


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


@pytest.mark.parametrize("name", ["ddpm", "naive", "reps", "filt", "chain:energy > ddpm(75)"])
def test_a_ddpm_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defenses, "bundled_path", lambda: Path("nowhere"))
    with pytest.raises(NotInstalledError, match=f"^defense not installed: {re.escape(name)}.*add ddpm=FILE"):
        find_defense(name)


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small DDPM of random weights."""
    pytest.importorskip("diffusers")
    from pureebm.diffusion.weights import build_unet, save_ddpm, unet_config

    folder = tmp_path_factory.mktemp("ddpm")
    network = build_unet(unet_config(widths=(4, 8), layers=1, patch=2, size=32, attention=False))
    save_ddpm(folder / "model.safetensors", network, {"levels": 250})
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ddpm:", "ddpm(75)"),
        ("ddpm-125:ddim=10,", "ddpm(125, ddim=10)"),
        ("naive:", "energy(3) > ddpm(75)"),
        ("naive-60:energy=150,ddim=4,", "energy(150) > ddpm(60, ddim=4)"),
        ("reps:", " > ".join(["energy(1) > ddpm(50)"] * 5)),
        ("reps-20:times=2,energy=10,", "energy(10) > ddpm(20) > energy(10) > ddpm(20)"),
        ("filt:", "filter(50%) > ddpm(125)"),
        ("filt-100:share=20,", "filter(20%) > ddpm(100)"),
        ("chain:2 * (energy(auto) > ddpm(5, ddim=2)); ", "energy(5) > ddpm(5, ddim=2) > energy(5) > ddpm(5, ddim=2)"),
    ],
)
def test_combinations_of_the_paper_are_chains(name: str, text: str, tiny_model: Path, ddpm: Path) -> None:
    found = find_defense(f"{name}ddpm={ddpm}" + ("" if name.startswith("ddpm") else f",model={tiny_model},seed=3"))
    assert found.seed == (0 if name.startswith("ddpm") else 3)
    assert chain_text(found.settings()) == text
    json.dumps(found.settings())


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a very small autoencoder of random weights."""
    folder = tmp_path_factory.mktemp("vq")
    save_model(folder / "model.safetensors", VQAutoencoder(8, 1, 16, 4), {})
    return folder


def test_an_autoencoder_is_a_defense_alone_and_in_a_chain(vq: Path, tiny_model: Path) -> None:
    alone = find_defense(f"vq:model={vq},precision=float32")
    assert isinstance(alone.stage, VQStage) and alone.seed == 0
    assert alone.settings() == VQStage(load_vq(vq), precision="float32").settings() | {"seed": 0}
    chained = find_defense(f"chain:energy > vq; vq={vq},model={tiny_model}")
    assert chain_text(chained.settings()) == "energy(3) > vq"


@pytest.mark.parametrize("name", ["vq", "chain:jpeg(75) > vq"])
def test_an_autoencoder_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defenses, "bundled_vq", lambda: Path("nowhere"))
    with pytest.raises(NotInstalledError, match=f"^defense not installed: {re.escape(name)}: no autoencoder comes"):
        find_defense(name)


def test_a_chain_without_a_ddpm_needs_none(tiny_model: Path) -> None:
    assert chain_text(find_defense("chain:jpeg(75) > blur(0.7)").settings()) == "jpeg(75) > blur(0.7)"
    assert find_defense(f"chain:filter(25%) > energy; model={tiny_model}").settings()["share"] == 0.25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("naive-x", "unknown defense 'naive-x'; known: naive-LEVEL, such as naive-75"),
        ("naive:speed=3", "has no option 'speed'; known: model, ddpm, vq, seed, precision"),
        ("chain:energy > dppm", "position 10: unknown stage 'dppm'"),
        ("chain:jpeg(75); steps", "must be key=value"),
        ("jpg-25", "unknown defense 'jpg-25'; did you mean 'jpeg'. Known: none, jpeg"),
        ("jpeg-25:steps=3", "jpeg-25 takes no options"),
        ("vq-3", "'vq-3': vq takes no number"),
        ("vq:seed=3", "vq takes no number, and model and precision as options only"),
        ("vq:model=nowhere", "unknown model 'nowhere': no such file, and the bundled ones are vq-32"),
        ("jpeg-200", "quality must be 1 to 100"),
        ("pureebm:steps", "must be key=value"),
        ("pureebm:steps=many", "steps must be a number, got 'many'"),
        ("pureebm:speed=3", "has no option 'speed'; known: model, steps, sampler, seed, precision, step_size"),
        ("pureebm:sampler=fast", "unknown model 'fast'"),
        ("pureebm:sampler=student", "the card of 'student' holds no sampler"),
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
