"""Model folders of the Hugging Face shape: `model.safetensors`, `config.json`, and the card for people as `README.md`.

`energy.weights.load_model` reads such a folder, here or on the Hub.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pureebm.data.durable import sync_folder, write_file
from pureebm.energy.networks import LocalEnergy, SNGANEnergy
from pureebm.energy.student import Student
from pureebm.energy.weights import CARD_NAME, WEIGHTS_NAME, save_model
from pureebm.errors import InputError
from pureebm.purify.stages import LangevinStage
from pureebm.purify.student import StudentStage
from pureebm.types import JSON, Stage


def save_folder(folder: Path, stage: Stage, card: JSON) -> Path:
    """Write a purifier's network, its card and its sampler; see `Purifier.save_pretrained`."""
    network = stage.energy if isinstance(stage, LangevinStage) else getattr(stage, "network", None)
    if not isinstance(network, LocalEnergy | SNGANEnergy | Student):
        raise InputError(
            f"only the networks of this package can be saved as a model folder, not a {type(stage).__name__}"
            f" of a {type(network).__name__}"
        )
    if isinstance(stage, StudentStage) and stage.precision != "float32":
        raise InputError('this student was rounded to bfloat16; load it with precision="float32" to save it')
    card = {name: value for name, value in card.items() if name not in _REBUILT}
    if isinstance(stage, LangevinStage):
        card["sampler"] = dataclasses.asdict(stage.config)
    card["model_type"] = "pureebm"
    complete = save_model(folder / WEIGHTS_NAME, network, card)
    (folder / WEIGHTS_NAME).with_suffix(".json").replace(folder / CARD_NAME)
    write_file(folder / "README.md", lambda file: file.write(readme(complete, folder.name).encode()))
    sync_folder(folder)
    return folder


_REBUILT = ("architecture", "config", "parameters", "sha256")


def readme(card: JSON, name: str) -> str:
    """The card for people, with the header that the Hub reads."""
    told = [(title, card[key]) for key, title in _TOLD if key in card]
    lines = [f"| {title} | {value if isinstance(value, str) else json.dumps(value)} |" for title, value in told]
    return _README.format(name=name, table="\n".join(lines))


_TOLD = (
    ("description", "what it is"),
    ("architecture", "architecture"),
    ("parameters", "parameters"),
    ("data", "training data"),
    ("intended_use", "intended use"),
    ("limits", "limits"),
    ("sampler", "sampler"),
    ("sha256", "sha256 of the weights"),
)

_README = """---
library_name: pureebm
tags:
- data-poisoning
- energy-based-model
- image-purification
---

# {name}

Purifies image training sets that may be poisoned: every image walks a little way down the energy of natural images.

```
pip install pureebm
pureebm purify SOURCE TARGET --model FOLDER   # or --model hf:OWNER/NAME
```

| | |
|---|---|
{table}

All settings and measurements are in `config.json`.
"""


def push_folder(folder: Path, repo_id: str, *, private: bool, token: str | None) -> str:
    """Upload a folder; return the address of the repository."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise InputError("uploading needs huggingface_hub: pip install 'pureebm[hub]'") from error
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a purifier with pureebm")
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository name: expected owner/name") from error
    except (OSError, HfHubHTTPError) as error:
        raise InputError(f"the Hugging Face Hub did not take {repo_id!r}: {error}") from error
    return str(address)
