"""Classifiers on disk."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from pureebm.classifiers.networks import build_network
from pureebm.classifiers.weights import load_classifier, load_extractor, load_published, save_classifier
from pureebm.errors import InputError, ModelError

CARD = {"network": "small-resnet", "n_classes": 3, "size": 32}


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    network, images = build_network("small-resnet", 3, seed=5).eval(), torch.rand(2, 3, 32, 32)
    card = save_classifier(tmp_path / "model.safetensors", network, CARD)
    loaded, found = load_classifier(tmp_path / "model.safetensors")
    assert found == card and card["parameters"] == sum(p.numel() for p in network.parameters())
    assert loaded(images).equal(network(images)) and not loaded.training


def test_replaced_weights_and_missing_cards_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(path, build_network("small-resnet", 3, seed=5), CARD)
    path.with_suffix(".json").write_text(json.dumps({**CARD, "sha256": "0" * 64}))
    with pytest.raises(ModelError, match="sha256 is not that of its card"):
        load_classifier(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match="no classifier with a card model.json beside it"):
        load_classifier(path)


@pytest.mark.parametrize("wrap", [lambda state: {"net": state, "acc": 94.5, "epoch": 299}, lambda state: state])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_published_checkpoints_load_under_their_own_names(tmp_path: Path, wrap, prefix: str) -> None:
    network, images = build_network("mobilenet-v2", 7, seed=1).eval(), torch.rand(1, 3, 32, 32)
    state = OrderedDict((prefix + k.replace("head.", "linear."), v) for k, v in network.state_dict().items())
    assert prefix + "linear.bias" in state
    torch.save(wrap(state), tmp_path / "ckpt.t7")
    assert load_published(tmp_path / "ckpt.t7", "mobilenet-v2")(images).equal(network(images))
    with pytest.raises(ModelError, match="tensors do not fit the network; the first is 'bn1.bias'"):
        load_published(tmp_path / "ckpt.t7", "resnet18")


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"net": [1, 2]}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_published(tmp_path / "a.pth", "resnet18")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match="has no linear layer"):
        load_published(tmp_path / "b.pth", "resnet18")
    with pytest.raises(InputError, match="missing.pth"):
        load_published(tmp_path / "missing.pth", "resnet18")


def test_an_extractor_may_be_ours_or_a_published_one(tmp_path: Path) -> None:
    network = build_network("small-resnet", 3, seed=5)
    save_classifier(tmp_path / "ours.safetensors", network, CARD)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    for name, given in (("ours.safetensors", None), ("theirs.pth", "small-resnet")):
        found, loaded = load_extractor(tmp_path / name, network=given)
        assert found == "small-resnet" and loaded.head.weight.equal(network.head.weight)
    with pytest.raises(ModelError, match="is a small-resnet, not a resnet18"):
        load_extractor(tmp_path / "ours.safetensors", network="resnet18")
