"""The attacker's means of the command: held-out images, surrogates that are trained once, extractors from files."""

from __future__ import annotations

import hashlib
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.attacks.worlds import accuracy, textures

from pureebm.attacks import badnets, bullseye_polytope, gradient_matching, label_consistent, narcissus, sig
from pureebm.attacks.base import LabeledSet, check_numbers
from pureebm.attacks.registry import ATTACKS, find_attack
from pureebm.attacks.storage import load_attack
from pureebm.classifiers.networks import build_network
from pureebm.classifiers.weights import save_classifier
from pureebm.data.base import Picture
from pureebm.data.pictures import encode
from pureebm.energy.weights import load_model
from pureebm.errors import InputError, ModelError
from pureebm.evaluation.attack_job import AttackSettings, hold_out, run_attack
from pureebm.evaluation.store import Store
from pureebm.evaluation.surrogates import Surrogates
from pureebm.training import energy as training
from pureebm.training import scalars
from pureebm.training.energy import train_energy
from pureebm.training.images import load_images
from pureebm.training.recipes import find_recipe
from pureebm.training.settings import EnergySettings

DATA = textures(120, seed=0)


def stored(path: Path, data: LabeledSet = DATA) -> Path:
    np.savez(path, images=data.images.numpy(), labels=data.labels.numpy())
    return path


def test_a_tenth_is_held_out_by_the_seed_and_the_rest_is_the_rest() -> None:
    held_out, rest = hold_out(57, seed=0)
    assert len(held_out) == 6
    assert torch.cat([held_out, rest]).sort().values.equal(torch.arange(57))
    assert held_out.equal(hold_out(57, seed=0)[0]) and not held_out.equal(hold_out(57, seed=1)[0])
    assert [len(part) for part in hold_out(2, seed=0)] == [1, 1]
    with pytest.raises(InputError, match="1 images are too few"):
        hold_out(1, seed=0)


def test_a_surrogate_is_trained_once_frozen_and_the_same_with_its_seed(tmp_path: Path) -> None:
    told: list[str] = []
    surrogates = Surrogates(
        network="small-resnet", recipe=find_recipe("fast", epochs=3), store=Store(tmp_path), report=told.append
    )
    first, again, other = (surrogates(DATA, seed=seed) for seed in (0, 0, 1))
    assert len(told) == 2  # the second one was found
    assert not first.training and not any(p.requires_grad for p in first.parameters())
    weights = [net.head.weight for net in (first, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert surrogates(DATA, seed=0, epochs=4).head.weight.ne(weights[0]).any()
    assert Surrogates(network="small-resnet", recipe=find_recipe("fast", epochs=3))(DATA, seed=0).head.weight.equal(
        weights[0]
    )  # without a store
    assert accuracy(first, DATA) > 0.5


def test_a_surrogate_goes_on_from_a_start_that_stays_as_it_was(tmp_path: Path) -> None:
    surrogates = Surrogates(network="small-resnet", recipe=find_recipe("fast", epochs=1), store=Store(tmp_path))
    start = surrogates(DATA, seed=0)
    before = start.head.weight.clone()
    further = surrogates(DATA, seed=1, start=start, peak_rate=1e-3)
    assert start.head.weight.equal(before) and not start.head.weight.requires_grad
    change = (further.head.weight - before).abs().max()
    assert 0 < change < 0.1  # a small rate from there, no fresh initialization


def test_an_extractor_from_a_file_serves_a_transfer_attack_and_its_verification(tmp_path: Path) -> None:
    network = build_network("small-resnet", 4, size=16, seed=0)
    save_classifier(tmp_path / "net.safetensors", network, {"network": "small-resnet", "n_classes": 4, "size": 16})
    config = bullseye_polytope.Config(n_steps=2, eps=16)
    settings = AttackSettings(extractors=(tmp_path / "net.safetensors",), verify=True)
    source, target = stored(tmp_path / "set.npz"), tmp_path / "out.npz"
    record = run_attack("bullseye-polytope", source, target, config, settings)
    assert record["verified"]["victim"]["recipe"] == "linear-transfer"
    assert load_attack(target).record["poisons"]["count"] == 11


def test_verification_trains_what_the_attack_is_made_for(tmp_path: Path) -> None:
    network = build_network("small-resnet", 4, size=16, seed=0)
    save_classifier(tmp_path / "net.safetensors", network, {"network": "small-resnet", "n_classes": 4, "size": 16})
    settings = AttackSettings(extractors=(tmp_path / "net.safetensors",), verify=True, victim_epochs=1)
    source, config = stored(tmp_path / "set.npz"), bullseye_polytope.Config(n_steps=2, layers="fine-tune")
    record = run_attack("bullseye-polytope", source, tmp_path / "a.npz", config, settings)
    assert record["verified"]["victim"]["recipe"] == "fine-tune"
    fast = replace(settings, victim="small-resnet")
    record = run_attack("label-consistent", source, tmp_path / "b.npz", label_consistent.Config(n_steps=1), fast)
    assert record["verified"]["victim"]["recipe"] == "fast"  # its extractor is a surrogate
    with pytest.raises(InputError, match="the victims of --verify are the first extractor; leave --victim out"):
        run_attack("bullseye-polytope", source, tmp_path / "c.npz", config, fast)
    with pytest.raises(InputError, match="only bullseye-polytope, .*label-consistent use an extractor; .* for sig"):
        run_attack("sig", source, tmp_path / "c.npz", sig.Config(), settings)
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("narcissus", {"n_steps": 0}, "n_steps must be above 0, got 0"),
        ("narcissus", {"step_size": -1.0}, "step_size must be above 0, got -1.0"),
        ("narcissus", {"batch_size": 0}, "batch_size must be above 0, got 0"),
        ("narcissus", {"warm_up_epochs": -1}, "warm_up_epochs must be at least 0, got -1"),
        ("bullseye-polytope", {"step_size": -1.0}, "step_size must be above 0"),
        ("gradient-matching", {"step_size": math.nan}, "step_size must be a finite number, got nan"),
        ("gradient-matching", {"shift": math.nan}, "shift must be a finite number, got nan"),
        ("feature-collision", {"n_steps": -2}, "n_steps must be above 0, got -2"),
        ("sig", {"frequency": math.inf}, "frequency must be a finite number, got inf"),
        ("label-consistent", {"step_size": -3.0}, "step_size must be above 0, got -3.0"),
        ("wanet", {"strength": 0.0}, "strength must be above 0, got 0.0"),
        ("badnets", {"target_class": -1}, "target_class must be at least 0, got -1"),
    ],
)
def test_numbers_that_no_attack_can_use_are_refused_before_anything_is_read(
    tmp_path: Path, name: str, numbers: dict[str, float], message: str
) -> None:
    config = find_attack(name).load().Config(**numbers)
    with pytest.raises(InputError, match=message):
        run_attack(name, tmp_path / "nowhere.npz", tmp_path / "out.npz", config, AttackSettings())


def test_the_numbers_of_all_defaults_and_of_the_documented_exceptions_pass() -> None:
    for entry in ATTACKS.values():
        check_numbers(entry.load().Config())
    check_numbers(label_consistent.Config(eps=0, n_steps=0))  # the pattern alone
    check_numbers(gradient_matching.Config(shift=-1))  # no augmentation


def test_a_source_that_cannot_hold_the_poisons_is_refused_before_the_attack_begins(tmp_path: Path) -> None:
    told: list[str] = []
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for row, image in enumerate(DATA.images[:8]):
            packed.writestr(f"c{row % 2}/{row}.png", encode(Picture(image.numpy())))
    with pytest.raises(InputError, match="labels of a source of kind 'zip' cannot be changed"):
        run_attack("badnets", tmp_path / "set.zip", tmp_path / "out.zip", badnets.Config(), AttackSettings())
    deep = (DATA.images[:, :, :, :1].numpy().astype(np.uint16) * 257).repeat(3, axis=3)
    for row, image in enumerate(deep[:8]):
        (tmp_path / "deep" / f"c{row % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "deep" / f"c{row % 2}" / f"{row}.png").write_bytes(encode(Picture(image, "I;16")))
    with pytest.raises(InputError, match=r"c0/0.png has 16 bits a color; convert the set to 8 bits first"):
        run_attack("sig", tmp_path / "deep", tmp_path / "out", sig.Config(), AttackSettings(), report=told.append)
    assert not told and not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_a_target_that_stands_in_the_training_set_is_refused(tmp_path: Path) -> None:
    source, config = stored(tmp_path / "set.npz"), gradient_matching.Config(target_index=5)
    with pytest.raises(InputError, match="the target, image 5 of the test set, is a training image too"):
        run_attack("gradient-matching", source, tmp_path / "out.npz", config, AttackSettings(test=source))
    assert not (tmp_path / "out.npz").exists()


def test_a_published_checkpoint_is_an_extractor_if_its_network_is_named(tmp_path: Path) -> None:
    network = build_network("small-resnet", 4, size=16, seed=0)
    torch.save({"net": {f"module.{key}": value for key, value in network.state_dict().items()}}, tmp_path / "net.pth")
    source, config = stored(tmp_path / "set.npz"), bullseye_polytope.Config(n_steps=2, eps=16)
    unnamed = AttackSettings(extractors=(tmp_path / "net.pth",))
    with pytest.raises(ModelError, match="net.pth.* do not fit the network"):  # a resnet18, if it is not said
        run_attack("bullseye-polytope", source, tmp_path / "out.npz", config, unnamed)
    named = replace(unnamed, extractor_network="small-resnet")
    run_attack("bullseye-polytope", source, tmp_path / "out.npz", config, named)
    save_classifier(tmp_path / "net.safetensors", network, {"network": "small-resnet", "n_classes": 4, "size": 16})
    ours = AttackSettings(extractors=(tmp_path / "net.safetensors",))
    run_attack("bullseye-polytope", source, tmp_path / "ours.npz", config, ours)
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "ours.npz").read_bytes()


def test_test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    paths = []
    for name, classes in (("a", ["x", "y"]), ("b", ["x", "z"])):
        paths.append(tmp_path / f"{name}.npz")
        labels = np.array(classes * 60)
        np.savez(paths[-1], images=DATA.images.numpy(), labels=labels)
    with pytest.raises(InputError, match="has the classes x, z, but .* has x, y"):
        run_attack("badnets", paths[0], tmp_path / "out.npz", badnets.Config(), AttackSettings(test=paths[1]))
    assert not (tmp_path / "out.npz").exists()


def test_gray_images_stay_gray_and_within_the_budget(tmp_path: Path) -> None:
    gray = DATA.images[:, :, :, 0].numpy()
    np.savez(tmp_path / "set.npz", images=gray, labels=DATA.labels.numpy())
    run_attack("badnets", tmp_path / "set.npz", tmp_path / "out.npz", badnets.Config(), AttackSettings())
    after = np.load(tmp_path / "out.npz")["images"]
    rows = load_attack(tmp_path / "out.npz").rows
    assert after.shape == gray.shape and (after[rows, -3:, -3:] == 255).all()
    assert (after[:, :-3] == gray[:, :-3]).all()


def test_narcissus_through_a_purifier_makes_another_trigger_and_says_through_what(
    tmp_path: Path, tiny_model: Path
) -> None:
    source, config = (
        stored(tmp_path / "set.npz"),
        narcissus.Config(surrogate_epochs=1, warm_up_epochs=1, n_steps=2, batch_size=8, budget=0.05),
    )
    plain = AttackSettings(public=stored(tmp_path / "public.npz", textures(64, seed=9)), cache=tmp_path / "cache")
    known = replace(plain, through=str(tiny_model), through_steps=2)
    run_attack("narcissus", source, tmp_path / "plain.npz", config, plain)
    record = run_attack("narcissus", source, tmp_path / "known.npz", config, known)
    told = {name: record["crafting"]["through"][name] for name in ("steps", "in", "noise", "gradient")}
    assert told == {"steps": 2, "in": "generation", "noise": "fresh", "gradient": "exact"}
    assert record["crafting"]["through"]["model"]["sha256"] == load_model(tiny_model).sha256
    first, second = (np.load(tmp_path / f"{name}.npz")["images"] for name in ("plain", "known"))
    assert (first != second).any()
    with pytest.raises(InputError, match="only narcissus optimizes through a purifier"):
        run_attack("badnets", source, tmp_path / "out.npz", badnets.Config(), known)
    for alone in ({"through_steps": 2}, {"through_in": "both"}, {"through_noise": "fixed"}):
        with pytest.raises(InputError, match="are of the purifier that --through names"):
            run_attack("narcissus", source, tmp_path / "out.npz", config, replace(plain, **alone))


def test_an_energy_is_trained_on_what_the_attack_wrote_as_on_any_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "draw_diagnostics", lambda *arguments, **options: 1)
    monkeypatch.setattr(training, "draw_curves", lambda *arguments: None)
    monkeypatch.setattr(scalars, "_tensorboard", lambda folder, step: None)
    for label in range(4):
        for row in DATA.rows_of(label).tolist():
            path = tmp_path / "set" / f"c{label}" / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(Picture(DATA.images[row].numpy())))
    config = narcissus.Config(surrogate_epochs=0, warm_up_epochs=0, n_steps=2, batch_size=8, budget=0.2)
    settings = AttackSettings(public=stored(tmp_path / "public.npz", textures(64, seed=9)))
    run_attack("narcissus", tmp_path / "set", tmp_path / "poisoned", config, settings)
    tiny = EnergySettings(widths=(4, 6), blocks=(1, 1), size=16, batch=4, steps=1, validation_images=4, sample_steps=2)
    card = train_energy(tmp_path / "poisoned", tmp_path / "run", tiny)
    clean, poisoned = (load_images(tmp_path / name, 16)[0] for name in ("set", "poisoned"))
    assert (clean != poisoned).any(axis=(1, 2, 3)).sum() == 22  # a fifth of those that are not held out, rounded up
    assert card["training_data"]["images"] == len(DATA)
    assert card["training_data"]["sha256"] == hashlib.sha256(poisoned.data).hexdigest()
