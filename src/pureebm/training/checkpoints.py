"""Checkpoints of a training on disk: tensors as safetensors, the rest as JSON, written whole or not at all.

A checkpoint is `step-000001234.safetensors`; its JSON sits in the file's own header, so that one rename
makes both appear. The newest two are kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pureebm.errors import InputError
from pureebm.types import JSON

KEPT = 2


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, Tensor], state: JSON, *, rank: int = 0) -> Path:
    """Write a checkpoint durably (beside, fsync, rename) and remove those older than the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_stem(step, rank)}.safetensors"
    data = save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"state": json.dumps(state)}
    )
    write_atomically(path, data)
    for old in checkpoints(folder, rank=rank)[:-KEPT]:
        old.unlink()
    return path


def checkpoints(folder: Path, *, rank: int = 0) -> list[Path]:
    """The whole checkpoints of one process, oldest first."""
    return sorted(folder.glob(f"{_stem(None, rank)}.safetensors"))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], JSON]:
    """Tensors (on the CPU) and state of a checkpoint.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["state"])  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error}); delete it to go on from the one before") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file beside its place, fsync, and rename it there."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _stem(step: int | None, rank: int) -> str:
    number = "?" * 9 if step is None else f"{step:09d}"
    return f"step-{number}" + (f".rank{rank}" if rank else "")
