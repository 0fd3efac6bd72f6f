"""Classifiers on disk: safetensors with a card beside it, and the checkpoints that others published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pureebm.classifiers.base import Classifier
from pureebm.classifiers.networks import build_network
from pureebm.data import torch_files
from pureebm.data.durable import write_file
from pureebm.errors import ModelError
from pureebm.types import JSON


def save_classifier(path: Path, network: Classifier, card: JSON) -> JSON:
    """Write the weights to `path` and the card, with their sha256, beside it; return the card.

    The card must name what rebuilds the network: "network", "n_classes" and "size".
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    data = save(tensors, metadata={"format": "pt"})
    parameters = sum(parameter.numel() for parameter in network.parameters())
    card = {**card, "kind": "classifier", "parameters": parameters, "sha256": hashlib.sha256(data).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(data))
    write_file(path.with_suffix(".json"), lambda file: file.write((json.dumps(card, indent=1) + "\n").encode()))
    return card


def load_classifier(path: Path) -> tuple[Classifier, JSON]:
    """The network that `save_classifier` stored, in eval mode, and its card.

    Raises:
        ModelError: a file is missing, damaged or replaced, or is no classifier.
    """
    try:
        data, card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text("utf-8"))
        tensors = load(data)
        network = build_network(card["network"], int(card["n_classes"]), size=int(card["size"]), seed=0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise ModelError(
            f"{path}: no classifier with a card {path.with_suffix('.json').name} beside it: {error}"
        ) from error
    if card.get("sha256") != hashlib.sha256(data).hexdigest():
        raise ModelError(f"{path}: its sha256 is not that of its card; the file is damaged or replaced")
    _fill(network, tensors, str(path))
    return network.eval(), card


def load_published(path: Path, network: str, *, size: int = 32) -> Classifier:
    """A checkpoint of the CIFAR code bases: a state dict, or a dict that holds it under "net" or "state_dict".

    Keys may start with `module.`; their `linear` becomes `head`. Nothing in the file is run (`data.torch_files`).

    Args:
        network: which one it is, as in `networks.NETWORKS`; the number of classes is read from the file.
        size: side of the images it was trained on.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    content = torch_files.load(path)
    for key in ("net", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, np.ndarray) for value in content.values()):
        raise ModelError(f"{path}: holds no state dict of tensors")
    tensors = rename_published({str(key): torch.tensor(value) for key, value in content.items()})
    if "head.weight" not in tensors:
        raise ModelError(f"{path}: has no linear layer ('linear.weight'); it is no network of ours")
    built = build_network(network, len(tensors["head.weight"]), size=size, seed=0)
    _fill(built, tensors, str(path))
    return built.eval()


def load_extractor(path: Path, *, network: str | None = None, size: int = 32) -> tuple[str, Classifier]:
    """A trained classifier to begin transfer learning with, and its network's name.

    Args:
        path: one of ours (`.safetensors` with its card), or a published checkpoint.
        network: what a published checkpoint is (None: resnet18); one of ours must agree.
        size: side of the images, as for `load_published`.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    if path.suffix != ".safetensors":
        name = network or "resnet18"
        return name, load_published(path, name, size=size)
    found, card = load_classifier(path)
    if network not in (None, card["network"]):
        raise ModelError(f"{path} is a {card['network']}, not a {network}; leave the network's name out")
    return str(card["network"]), found


def rename_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published names -> ours: without `module.`, `head` for `linear`."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    return {f"head.{k.removeprefix('linear.')}" if k.startswith("linear.") else k: v for k, v in plain.items()}


def _fill(network: Classifier, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights whose every name and shape fit; old checkpoints may lack the counters `num_batches_tracked`."""
    own = network.state_dict()
    expected = {key: tuple(value.shape) for key, value in own.items() if not key.endswith("num_batches_tracked")}
    found = {key: tuple(value.shape) for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{where}: {len(wrong)} tensors do not fit the network; the first is {key!r}: "
            f"expected {expected.get(key, 'none')}, found {found.get(key, 'none')}"
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ModelError(f"{where} holds weights that are not finite")
    network.load_state_dict({**own, **{key: value for key, value in tensors.items() if key in own}})
