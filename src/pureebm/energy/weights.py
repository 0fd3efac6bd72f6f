"""Energies and students on disk: safetensors for the weights, a JSON card beside it for everything else.

A card says what the weights are ("architecture" and "config" rebuild the network), how they were made and
measured, which sampler they want ("sampler"), and the "sha256" of the weights file. Nothing is unpickled
and no code comes from a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pureebm.data.durable import write_file
from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.student import Student
from pureebm.errors import ModelError
from pureebm.types import JSON

DEFAULT_MODEL = "residual-32"

ARCHITECTURES: Mapping[str, type[SNGANEnergy] | type[LocalEnergy] | type[Student]] = MappingProxyType(
    {"sngan": SNGANEnergy, "local": LocalEnergy, "student": Student}
)

MODELS: Mapping[str, str] = MappingProxyType(
    {
        "residual-32": "light denoiser for CPUs and its residual energy, trained on Tiny-ImageNet; the default",
        "student": "one pass in place of the default's chain: faster, without energies",
        "local-32": "light energy for CPUs whose gradient is followed, trained on Tiny-ImageNet halved to 32 px",
    }
)
"""Bundled weights: name -> one line about them. The file is `energy/models/NAME.safetensors`."""

LARGEST_SIZE = 4096
"""Of widths, blocks and image sizes that a card may ask for: a damaged one must not fill the memory."""

WEIGHTS_NAME, CARD_NAME = "model.safetensors", "config.json"
"""What a model folder of the Hugging Face shape holds."""

STUDENT = "student"
"""The bundled student of the default model."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """An energy or a student, ready to use: in eval mode, without parameter gradients."""

    name: str
    network: nn.Module
    card: JSON
    sha256: str

    @property
    def energy(self) -> nn.Module:
        """The network, if it is an energy. Raises `ModelError` for a student, which has none."""
        if isinstance(self.network, Student):
            raise ModelError(f"{self.name!r} is a one-pass student and has no energy; give an energy model")
        return self.network

    def describe(self) -> JSON:
        """What a run record says of the weights."""
        told = ("architecture", "data", "intended_use", "limits")
        return {"name": self.name, "sha256": self.sha256} | {key: self.card[key] for key in told if key in self.card}


def bundled_path(name: str) -> Path:
    """The weights file of a bundled model; its card has the suffix .json."""
    return Path(str(resources.files("pureebm") / "energy" / "models" / f"{name}.safetensors"))


def load_model(name: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a bundled name, a `.safetensors` file, a folder with a `model.safetensors`, or `hf:owner/name`.

    The card stands beside the file, under its name or as `config.json`. A file without a card is taken as the authors'
    released network if its tensors have those names.

    Raises:
        ModelError: unknown name, missing file, wrong hash, names or shapes, or a hub out of reach.
    """
    return load_of(ARCHITECTURES, {bundled: bundled_path(bundled) for bundled in MODELS}, name, device)


def load_of(
    architectures: Mapping[str, type[nn.Module]],
    bundled: Mapping[str, Path],
    name: str | Path,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """As `load_model`, of other architectures and bundled files: name -> its class or file."""
    text = str(name)
    path = bundled.get(text, Path(text))
    if text.startswith("hf:"):
        path = _from_hub(text.removeprefix("hf:"))
    elif path.is_dir():
        path /= WEIGHTS_NAME
        if not path.is_file():
            raise ModelError(f"the folder {text} is no model: it holds no {WEIGHTS_NAME}")
    elif not path.is_file():
        raise ModelError(f"unknown model {text!r}: no such file, and the bundled ones are {', '.join(bundled)}")
    return _load(path, text, device, architectures)


class Network(Protocol):
    """A network that says how it is made again."""

    architecture: ClassVar[str]
    config: dict[str, Any]

    def state_dict(self) -> dict[str, Any]: ...


def save_model(path: Path, network: Network, card: JSON) -> JSON:
    """Write weights to `path` and the card, completed by what rebuilds and checks them, beside it; return the card."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    data = save(tensors, metadata={"format": "pt"})
    card = {
        **card,
        "architecture": network.architecture,
        "config": network.config,
        "parameters": sum(value.numel() for value in tensors.values()),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(data))
    write_file(path.with_suffix(".json"), lambda file: file.write((json.dumps(card, indent=1) + "\n").encode()))
    return card


def card_beside(name: str | Path) -> JSON:
    """The card of a weights file, or of the one in a folder; {} where there is none. Reads no weights.

    Raises:
        ModelError: it is damaged.
    """
    path = Path(name) / WEIGHTS_NAME if Path(name).is_dir() else Path(name)
    for card_path in (path.with_suffix(".json"), path.with_name(CARD_NAME)):
        if not card_path.is_file():
            continue
        try:
            card = json.loads(card_path.read_text())
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{card_path} is not a JSON card: {error}") from error
        if not isinstance(card, dict):
            raise ModelError(f"{card_path} is not a JSON card: it holds no object")
        if "architecture" in card:
            return card
    return {}


def _load(
    path: Path, name: str, device: torch.device | str, architectures: Mapping[str, type[nn.Module]]
) -> LoadedModel:
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from error
    card = _read_card(path, tensors)
    if card.get("sha256", sha256) != sha256:
        raise ModelError(f"{path}: sha256 is {sha256}, its card says {card['sha256']}; the file is damaged or replaced")
    network = build(card, tensors, path, architectures)
    network.eval().requires_grad_(False).to(device)
    return LoadedModel(name, network, card, sha256)


def _is_modest(config: object) -> bool:
    """Whether the sizes in a piece of JSON could be those of a network."""
    try:
        sizes = list(_numbers(config))
    except RecursionError:
        return False
    return max(sizes, default=0) <= LARGEST_SIZE and sum(sizes) <= 4 * LARGEST_SIZE


def _numbers(value: object) -> Iterator[float]:
    """The sizes of all numbers in a piece of JSON."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)
    elif isinstance(value, int | float):
        yield abs(value)


def build(
    card: JSON,
    tensors: Mapping[str, Tensor],
    path: Path,
    architectures: Mapping[str, type[nn.Module]] = ARCHITECTURES,
) -> nn.Module:
    """The network that a card describes, filled with `tensors`; every name and shape must fit."""
    architecture = str(card.get("architecture"))
    if architecture not in architectures:
        raise ModelError(f"{path}: unknown architecture {architecture!r}; known: {', '.join(architectures)}")
    config = card.get("config", {})
    if not _is_modest(config):
        raise ModelError(f"{path}: its card's config holds too many numbers, or any above {LARGEST_SIZE:,}: damaged")
    try:
        with torch.device("meta"):  # what a damaged card asks for takes no memory
            outline = architectures[architecture](**config)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ModelError(f"{path}: its card's config does not fit {architecture!r}: {error}") from error
    expected = {key: tuple(value.shape) for key, value in outline.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        key = wrong[0]
        raise ModelError(
            f"{path}: {len(wrong)} tensors do not fit {architecture!r}; the first is {key!r}: "
            f"expected {expected.get(key, 'none')}, found {found.get(key, 'none')}"
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ModelError(f"{path} holds weights that are not finite")
    network = architectures[architecture](**config)
    network.load_state_dict({key: value.float() for key, value in tensors.items()})
    return network


def _read_card(path: Path, tensors: Mapping[str, Tensor]) -> JSON:
    card = card_beside(path)
    if card:
        return card
    if "block1.c1.weight" in tensors:  # the authors' release, which has no card of ours
        return {"architecture": "sngan", "config": {"width": tensors["block1.c1.weight"].shape[0]}, "sampler": {}}
    raise ModelError(f"{path} has no card {path.with_suffix('.json').name} beside it, and is not the authors' network")


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ModelError("hf: models need huggingface_hub: pip install 'pureebm[hub]'") from error
    try:
        path = Path(hf_hub_download(repository, WEIGHTS_NAME))
    except HFValidationError as error:
        raise ModelError(f"hf:{repository} is no repository name: expected hf:owner/name") from error
    except (OSError, HfHubHTTPError) as error:  # offline, missing file, missing repository, no permission
        raise ModelError(
            f"cannot fetch model.safetensors of {repository!r} from the Hugging Face Hub ({type(error).__name__}). "
            "Without a network: download it elsewhere and give the file itself as --model FILE"
        ) from error
    for card in ("model.json", CARD_NAME):
        try:
            hf_hub_download(repository, card)
        except OSError:
            continue
    return path
