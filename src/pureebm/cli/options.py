"""What the commands share: their options, how these become settings, and how they speak.

Help texts stand here and not in the settings' classes, since importing those would import torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.energy.weights import LoadedModel
    from pureebm.purify.stages import LangevinStage
    from pureebm.sampling.langevin import LangevinConfig
    from pureebm.types import JSON

DEFAULT_MODEL = "residual-32"  # restated from energy.weights, which needs torch; a test compares them

Source = Annotated[Path, typer.Argument(help="Folder of images, .npz, CIFAR-10/100, or Parquet.", show_default=False)]
Model = Annotated[str, typer.Option(metavar="NAME|FILE|hf:owner/name", help="The energy model.")]
Steps = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Updates an image; auto: the model's measured mid-run.", show_default=False),
]
StepSize = Annotated[
    float | None, typer.Option(metavar="S", help="Standard deviation of one update's noise.", show_default=False)
]
Temperature = Annotated[
    float | None, typer.Option(metavar="T", help="Divides the energy; lower is greedier.", show_default=False)
]
Sampler = Annotated[
    Literal["default", "paper"], typer.Option(help="Start from the model's own settings, or from the paper's.")
]
NoiseScale = Annotated[
    float | None, typer.Option(metavar="X", help="Scale of the noise: 1 samples, 0 descends.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, help="Fixes every draw.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:N]", help="Where to compute.")]
Precision = Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the network's arithmetic.")]
BatchSize = Annotated[str, typer.Option(metavar="auto|N", help="Images computed at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images.", show_default=False)]
OnError = Annotated[
    Literal["skip", "copy", "fail"], typer.Option(help="An image that cannot be read: leave out, pass on, or stop.")
]
Shard = Annotated[str, typer.Option(metavar="I/N", help="Only part I of N; from 0 or from 1.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads for the network.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def say(text: str) -> None:
    """A line for people: on stderr, so that stdout stays clean for --json."""
    print(text, file=sys.stderr, flush=True)


def emit(result: JSON) -> None:
    """The one JSON object of a command, on stdout."""
    print(json.dumps(result), flush=True)


def parse_batch_size(text: str) -> int | None:
    """'auto' -> None, else the number. Raises `InputError`."""
    if text == "auto":
        return None
    return _whole_number("--batch-size", text, least=1, instead="'auto'")


def parse_shard(text: str) -> tuple[int, int]:
    """'I/N' -> (I, N); the job checks the range. Raises `InputError`."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise InputError(f"--shard must be I/N, such as 0/4, got {text!r}")
    return int(index), int(count)


def parse_device(text: str) -> str:
    """'auto' -> 'cuda' where there is one, else 'cpu'. Raises `InputError` for what torch does not have."""
    import torch

    n_cuda = torch.cuda.device_count()
    allowed = ["cpu"] + ["cuda"] * (n_cuda > 0) + [f"cuda:{index}" for index in range(n_cuda)]
    if text == "auto":
        return "cuda" if n_cuda else "cpu"
    if text not in allowed:
        raise InputError(f"--device {text!r} is not here; this machine has: auto, {', '.join(allowed)}")
    return text


def langevin_config(
    model: LoadedModel,
    *,
    sampler: str = "default",
    steps: str | None = None,
    step_size: float | None = None,
    temperature: float | None = None,
    noise: float | None = None,
) -> LangevinConfig:
    """The model's own sampler (or the paper's) with the given options put over it. Raises `InputError`.

    A constant step size or temperature replaces the model's schedule of it. Steps "auto" go with the sampler that
    the mid-run was measured with (the card's "auto_sampler").
    """
    from pureebm.sampling.langevin import LangevinConfig

    own = model.card.get("auto_sampler" if steps == "auto" else "sampler") or model.card.get("sampler", {})
    config = LangevinConfig(**(own if sampler == "default" else {}))
    if steps is not None:
        config = replace(config, n_steps=_steps(steps, model))
    if step_size is not None:
        config = replace(config, step_size=step_size, step_size_end=None)
    if temperature is not None:
        config = replace(config, temperature=temperature, temperature_end=None)
    return config if noise is None else replace(config, noise=noise)


def langevin_stage(model: LoadedModel, config: LangevinConfig, *, device: str, precision: str) -> LangevinStage:
    """The purifier of a loaded model, described for the run record."""
    from pureebm.purify.stages import LangevinStage

    return LangevinStage(model.energy, config, device=device, precision=precision, model=model.describe())


def use_threads(n_threads: int | None) -> None:
    """Limit the network's processor threads, where a number is given."""
    if n_threads is not None:
        import torch

        torch.set_num_threads(n_threads)


def _steps(text: str, model: LoadedModel) -> int:
    if text != "auto":
        return _whole_number("--steps", text, least=0, instead="'auto'")
    if "auto_steps" not in model.card:
        raise InputError(f"--steps auto: the card of {model.name!r} holds no measured mid-run; give a number")
    return int(model.card["auto_steps"])


def _whole_number(option: str, text: str, *, least: int, instead: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"{option} must be {instead} or a whole number of at least {least}, got {text!r}")
    return int(text)
