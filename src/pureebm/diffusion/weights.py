"""DDPMs on disk: a `UNet2DModel` of the diffusers library, saved by us or by diffusers.

Ours is a safetensors file with a JSON card beside it, of "architecture" "ddpm"; theirs a folder with `config.json` and
`diffusion_pytorch_model.safetensors`, in a pipeline under `unet/`. Nothing is unpickled, no code comes from a file.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pureebm.data.durable import write_file
from pureebm.diffusion.process import BETA_END, BETA_START, N_LEVELS
from pureebm.errors import InputError, ModelError
from pureebm.types import JSON

ARCHITECTURE = "ddpm"
DEFAULT_DDPM = "ddpm-32"
"""The bundled weights: `diffusion/models/NAME.safetensors`, where this version has them."""

THEIR_WEIGHTS, THEIR_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
_WANTED = (
    "model.safetensors",
    "model.json",
    *(f"{folder}{name}" for folder in ("", "unet/") for name in (THEIR_WEIGHTS, THEIR_CONFIG)),
    *(f"{folder}scheduler_config.json" for folder in ("", "scheduler/")),
)
"""What is fetched of a repository."""

_SCHEDULE: JSON = {
    "num_train_timesteps": N_LEVELS,
    "beta_schedule": "linear",
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "trained_betas": None,
    "prediction_type": "epsilon",
}
"""The only schedule and kind of network that purification knows; other values in a scheduler's config are refused."""

_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True)
class LoadedDDPM:
    """A DDPM ready to use. `network`: a `diffusers.UNet2DModel` in eval mode, without parameter gradients."""

    name: str
    network: nn.Module
    card: JSON
    sha256: str

    @property
    def levels(self) -> int:
        """How many of the schedule's levels it has learned."""
        return int(self.card.get("levels", N_LEVELS))

    def describe(self) -> JSON:
        """What a run record says of the weights."""
        told = ("architecture", "data", "levels", "intended_use", "limits")
        return {"name": self.name, "sha256": self.sha256} | {key: self.card[key] for key in told if key in self.card}


def unet_config(*, widths: tuple[int, ...], layers: int, patch: int, size: int, attention: bool) -> JSON:
    """The arguments of a `UNet2DModel` for RGB images of `size` px.

    Args:
        widths: Channels at each resolution.
        layers: Residual blocks at each of them.
        patch: Squares of patch x patch pixels are one pixel of 3 * patch^2 channels to the network.
        attention: At the last resolution but one and in the middle, as in the paper.
    """
    last = len(widths) - 1
    down = ["AttnDownBlock2D" if attention and at == last - 1 else "DownBlock2D" for at in range(last + 1)]
    return {
        "sample_size": size // patch,
        "in_channels": 3 * patch**2,
        "out_channels": 3 * patch**2,
        "layers_per_block": layers,
        "block_out_channels": list(widths),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "norm_num_groups": math.gcd(32, *widths),
        "add_attention": attention,
    }


def build_unet(config: JSON, where: str = "the settings") -> nn.Module:
    """An untrained network.

    Raises:
        InputError: diffusers is not installed.
        ModelError: the config is not that of a network that estimates the noise of RGB images.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise InputError("DDPMs need diffusers: pip install 'pureebm[diffusion]'") from error
    values = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = sorted(values.keys() - inspect.signature(UNet2DModel.__init__).parameters.keys())
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel" or unknown:
        raise ModelError(f"{where} is not the config of a UNet2DModel (its {', '.join(unknown) or 'class'} is another)")
    make: Any = UNet2DModel
    try:
        network: nn.Module = make(**values)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelError(f"{where} is not a config that a UNet2DModel can be built of: {error}") from error
    if values.get("class_embed_type") or values.get("num_class_embeds"):
        raise ModelError(f"{where}: the network needs a class for every image; only unconditional ones purify")
    patch_size(network)
    return network


def patch_size(network: nn.Module) -> int:
    """The side p of the squares of pixels that are one pixel of 3 p^2 channels to the network."""
    config: Any = network.config
    patch = math.isqrt(config.in_channels // 3)
    if not config.in_channels == config.out_channels == 3 * patch**2 or not patch:
        channels = f"{config.in_channels} -> {config.out_channels}"
        raise ModelError(f"the network maps {channels} channels; RGB images need 3 -> 3, or 12 -> 12 in squares of 2x2")
    return patch


def multiple(network: nn.Module) -> int:
    """What the sides of an image must be a multiple of."""
    config: Any = network.config
    return int(patch_size(network) * 2 ** (len(config.block_out_channels) - 1))


def predict_noise(network: nn.Module, images: Tensor, levels: Tensor | int) -> Tensor:
    """(N, 3, H, W), sides as `multiple` says, and one level or (N,) of them -> the estimate of their noise."""
    patch = patch_size(network)
    sample: Tensor = network(F.pixel_unshuffle(images, patch), levels, return_dict=False)[0]
    return F.pixel_shuffle(sample, patch)


def bundled_path(name: str = DEFAULT_DDPM) -> Path:
    """The weights file of a bundled DDPM; its card has the suffix .json."""
    return Path(str(resources.files("pureebm") / "diffusion" / "models" / f"{name}.safetensors"))


def is_ddpm(name: str | Path) -> bool:
    """Whether a name is the bundled one, or that of a file or folder on disk of ours or of diffusers, by its card or
    config alone."""
    if str(name) == DEFAULT_DDPM and not Path(name).exists():
        return bundled_path().is_file()
    try:
        _, config, card = _find(Path(name))
    except (InputError, OSError):
        return False
    return card.get("architecture") == ARCHITECTURE or config.get("_class_name") == "UNet2DModel"


@dataclass(frozen=True, slots=True)
class StoredDDPM:
    """What was read of a DDPM's files. card: {} for a folder of diffusers."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: JSON
    card: JSON
    sha256: str


def read_ddpm(name: str | Path) -> StoredDDPM:
    """Weights and card of a bundled name, a file, a folder, or `hf:owner/name`; builds no network, needs no diffusers.

    Raises:
        ModelError: missing file, no safetensors, wrong hash, a schedule that is not the linear one of 1,000 steps
            from 1e-4 to 0.02, or a hub out of reach.
    """
    text = str(name)
    path = Path(text)
    if text.startswith("hf:"):
        path = _from_hub(text.removeprefix("hf:"))
    elif text == DEFAULT_DDPM and not path.exists():
        path = bundled_path(text)
        if not path.is_file():
            raise ModelError(
                "no DDPM comes with this version; train one (pureebm train ddpm SOURCE --out RUN) and name it: RUN"
            )
    weights, config, card = _find(path)
    data = weights.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if card.get("sha256", sha256) != sha256:
        raise ModelError(
            f"{weights}: sha256 is {sha256}, its card says {card['sha256']}; the file is damaged or replaced"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ModelError(f"{weights} is not a safetensors file: {error}") from error
    return StoredDDPM(weights, tensors, config, card, sha256)


def load_ddpm(name: str | Path, device: torch.device | str = "cpu") -> LoadedDDPM:
    """Load a bundled name, a file, a folder, or `hf:owner/name`.

    Raises:
        ModelError: as `read_ddpm`, or wrong names or shapes.
        InputError: diffusers is not installed.
    """
    stored = read_ddpm(name)
    network = build_unet(stored.config, str(stored.path))
    _fill(network, stored.tensors, stored.path)
    network.eval().requires_grad_(False).to(device)
    card = stored.card
    if not card:
        card = {"architecture": ARCHITECTURE, "config": stored.config, "parameters": _count(stored.tensors)}
    return LoadedDDPM(str(name), network, card, stored.sha256)


def save_ddpm(path: Path, network: nn.Module, card: JSON) -> JSON:
    """Write weights to `path` and the card, completed by what rebuilds and checks them, beside it; return the card."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    data = save(tensors, metadata={"format": "pt"})
    asked: Any = network.config
    config = {key: value for key, value in asked.items() if not key.startswith("_") and value is not None}
    card = {
        **card,
        "architecture": ARCHITECTURE,
        "config": json.loads(json.dumps(config)),
        "parameters": _count(tensors),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(data))
    write_file(path.with_suffix(".json"), lambda file: file.write((json.dumps(card, indent=1) + "\n").encode()))
    return card


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in tensors.values())


def _find(path: Path) -> tuple[Path, JSON, JSON]:
    """The weights file, the network's config, and our card ({} for a folder of diffusers)."""
    if path.is_dir():
        places = [path / "model.safetensors", path / THEIR_WEIGHTS, path / "unet" / THEIR_WEIGHTS]
        found = [place for place in places if place.is_file()]
        if not found:
            pickled = any(path.rglob("diffusion_pytorch_model.bin"))
            why = (
                "only pickled weights, which are not loaded" if pickled else f"no model.safetensors or {THEIR_WEIGHTS}"
            )
            raise ModelError(f"{path} holds {why}")
        path = found[0]
    elif not path.is_file():
        raise ModelError(f"no such DDPM: {path}; name a file, a folder, or hf:owner/name")
    card = _read_json(path.with_suffix(".json"))
    if card.get("architecture") == ARCHITECTURE:
        return path, card.get("config", {}), card
    config = _read_json(path.with_name(THEIR_CONFIG))
    if not config:
        raise ModelError(
            f"{path} is no DDPM: it has neither a card {path.stem}.json of one nor a {THEIR_CONFIG} beside it"
        )
    for name in ("scheduler_config.json", "../scheduler/scheduler_config.json", "scheduler/scheduler_config.json"):
        _check_schedule(path.parent / name)
    return path, config, {}


def _check_schedule(path: Path) -> None:
    """Refuse a model that was trained on another schedule: it would take off noise that is not there."""
    found = _read_json(path)
    for key, wanted in _SCHEDULE.items():
        if found.get(key, wanted) != wanted:
            raise ModelError(f"{path.name}: {key} is {found[key]!r}, purification needs {wanted!r}")


def _read_json(path: Path) -> JSON:
    """What a file holds; {} where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights; every name and shape must fit. Attention layers of before 2023 have other names."""
    named = {
        re.sub(
            r"(\.attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{_OLD_NAMES[m[2]]}.", key
        ): value
        for key, value in tensors.items()
    }
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in named.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ModelError(
            f"{path}: {len(wrong)} tensors do not fit its config; the first is {wrong[0]!r}: "
            f"expected {expected.get(wrong[0], 'none')}, found {found.get(wrong[0], 'none')}"
        )
    if not all(value.isfinite().all() for value in named.values()):
        raise ModelError(f"{path} holds weights that are not finite")
    network.load_state_dict({key: value.float() for key, value in named.items()})


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise ModelError("hf: models need huggingface_hub: pip install 'pureebm[hub]'") from error
    try:
        return Path(snapshot_download(repository, allow_patterns=list(_WANTED)))
    except HFValidationError as error:
        raise ModelError(f"hf:{repository} is no repository name: expected hf:owner/name") from error
    except (OSError, HfHubHTTPError) as error:  # offline, missing repository, no permission
        raise ModelError(
            f"cannot fetch {repository!r} from the Hugging Face Hub ({type(error).__name__}). Without a network: "
            "download it elsewhere and give its folder"
        ) from error
