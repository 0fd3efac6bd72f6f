"""Weights on disk: what is written is what is read, and everything else is refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.weights import MODELS, STUDENT, bundled_path, load_model, save_model
from pureebm.errors import ModelError


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    net = LocalEnergy((4, 6), (1, 1))
    torch.nn.init.normal_(net.head.weight)
    path = tmp_path / "m.safetensors"
    card = save_model(path, net, {"note": "x", "sampler": {"n_steps": 3}})
    loaded = load_model(path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.energy(images), net(images))
    assert loaded.card == card and loaded.sha256 == card["sha256"] and card["note"] == "x"
    assert not any(parameter.requires_grad for parameter in loaded.energy.parameters())


def test_the_authors_file_loads_without_a_card(tmp_path: Path) -> None:
    net = SNGANEnergy(16)
    path = tmp_path / "model.safetensors"
    save_file(net.state_dict(), path)
    (tmp_path / "config.json").write_text('{"nf": 16}')
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load_model(path).energy(images), net(images))


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, LocalEnergy((4,), (1,)), {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="sha256 is .* its card says"):
        load_model(path)


def test_wrong_shapes_names_and_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    card = {"architecture": "local", "config": {"widths": [4], "blocks": [1]}}
    path.with_suffix(".json").write_text(json.dumps(card))
    state = LocalEnergy((6,), (1,)).state_dict()
    save_file(state, path)
    with pytest.raises(ModelError, match=r"'head.weight'.*expected \(12, 4, 3, 3\), found \(12, 6, 3, 3\)"):
        load_model(path)
    state = LocalEnergy((4,), (1,)).state_dict()
    state["head.weight"][0] = float("nan")
    save_file(state, path)
    with pytest.raises(ModelError, match="not finite"):
        load_model(path)
    del state["head.weight"]
    save_file(state, path)
    with pytest.raises(ModelError, match="found none"):
        load_model(path)


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"unknown model 'nope'.*{next(iter(MODELS))}"):
        load_model("nope")
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_model(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="has no card"):
        load_model(path)
    path.with_suffix(".json").write_text('{"architecture": "os.system"}')
    with pytest.raises(ModelError, match="unknown architecture 'os.system'"):
        load_model(path)


def test_every_bundled_model_is_there_small_and_intact() -> None:
    assert MODELS
    for name in MODELS:
        assert bundled_path(name).stat().st_size <= 5_000_000
        card = load_model(name).card
        assert card["sampler"] if name != STUDENT else card["teacher"]["sampler"]


CONFIGS = [
    float("nan"),
    None,
    [],
    {"widths": {"": {}}},
    {"widths": [2], "blocks": [10**30]},
    {"widths": [2] * 9000, "blocks": [1] * 9000},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_card_whose_config_is_damaged_is_refused_in_words(tmp_path: Path, config: object) -> None:
    path = tmp_path / "model.safetensors"
    card = save_model(path, LocalEnergy((2,), (1,)), {})
    path.with_suffix(".json").write_text(json.dumps(card | {"config": config}))
    with pytest.raises(ModelError, match="its card's config"):
        load_model(path)


def test_a_card_that_asks_for_much_more_than_the_weights_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    card = save_model(path, LocalEnergy((2,), (1,)), {})
    config = {"widths": [4096, 4096, 4096], "blocks": [8, 8, 8]}  # 30 GB and more
    path.with_suffix(".json").write_text(json.dumps(card | {"config": card["config"] | config}))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2); "
    code = f"{limit}from pureebm.energy.weights import load_model; load_model({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "ModelError" in done.stderr and "tensors do not fit 'local'" in done.stderr
