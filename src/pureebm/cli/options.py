"""What the commands share: their options, how these become settings, and how they speak.

Help texts stand here and not in the settings' classes, since importing those would import torch.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.diffusion.process import DDPMConfig
    from pureebm.energy.weights import LoadedModel
    from pureebm.purify.crew import Crew
    from pureebm.purify.stages import LangevinStage
    from pureebm.sampling.langevin import LangevinConfig
    from pureebm.types import JSON, Stage

DEFAULT_MODEL = "residual-32"  # restated from energy.weights, which needs torch; a test compares them

Source = Annotated[
    Path,
    typer.Argument(
        help="Folder of images, .npz, CIFAR, Parquet, save_to_disk, WebDataset, zip, tar, .csv; or a URL of one.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option(metavar="NAME|FILE|hf:owner/name", help="The energy model or student.")]
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
Chain = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Several purifiers in a row: 'energy > ddpm(75)', '3 * (energy > jpeg(75))', 'filter(50%) > energy'.",
        show_default=False,
    ),
]
DDPM = Annotated[
    str | None,
    typer.Option(
        "--ddpm",
        metavar="FILE|FOLDER|hf:owner/name",
        help="The DDPM of a chain; needs the extra 'diffusion'.",
        show_default=False,
    ),
]
VQ = Annotated[
    str | None,
    typer.Option("--vq", metavar="FILE|FOLDER|hf:owner/name", help="The autoencoder of a chain.", show_default=False),
]
Level = Annotated[
    float | None,
    typer.Option(metavar="X", help="Of a student: noise as a multiple of its teacher's.", show_default=False),
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
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share the work; with several GPUs, one each.", show_default=False),
]
Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Workers on this machine, or on a Ray cluster (RAY_ADDRESS, or a local one)."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads for the network.", show_default=False)]
Cards = Annotated[Path, typer.Option(help="Folder of the cards.")]
BenchCache = Annotated[Path, typer.Option(help="Folder for purified images, poisons and surrogates; may be deleted.")]
BenchData = Annotated[
    Path | None, typer.Option(help="Data folder; else $PUREEBM_DATA or ../shared/data.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def say(text: str) -> None:
    """A line for people: on stderr, so that stdout stays clean for --json."""
    print(text, file=sys.stderr, flush=True)


def emit(result: JSON) -> None:
    """The one JSON object of a command, on stdout. A number that is not finite is null there: JSON has no other."""
    print(json.dumps(_finite(result), allow_nan=False), flush=True)


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


def model_stage(
    model: LoadedModel, *, level: float | None = None, device: str, precision: str, **sampler: Any
) -> Stage:
    """The purifier that a loaded model is, an energy's chain or a student; `sampler`: as of `langevin_config`.

    Raises:
        InputError: an option that is not for this kind of model.
    """
    from pureebm.energy.student import Student
    from pureebm.purify import student

    if not isinstance(model.network, Student):
        config = langevin_config(model, **sampler)
        return student.model_stage(model, config, level=level, device=device, precision=precision)
    _refuse(model.name, "a one-pass student: it takes --level, but", sampler)
    return student.model_stage(model, level=level, device=device, precision=precision)


def purifier(
    model: str,
    *,
    chain: str | None = None,
    ddpm: str | None = None,
    vq: str | None = None,
    level: float | None = None,
    device: str,
    precision: str,
    **sampler: Any,
) -> Stage:
    """What `pureebm purify` does to images: a chain, or a single model by its name, which may be a DDPM on disk.

    Args:
        model: the energy or student, alone or in the chain; or a DDPM or an autoencoder, alone.
        level, sampler: as of `model_stage`; they hold for each energy of a chain.

    Raises:
        InputError: a chain that cannot be read, options that do not go together, or a model that cannot be loaded.
    """
    from pureebm.diffusion.weights import DEFAULT_DDPM, is_ddpm, load_ddpm
    from pureebm.energy.weights import load_model
    from pureebm.purify.chains import build_chain, ddpm_stage, parse_chain
    from pureebm.purify.vq import DEFAULT_VQ, VQStage, is_vq, load_vq

    steps: str | None = sampler.pop("steps", None)
    ours: JSON = {"level": level, "device": device, "precision": precision, **sampler}
    if chain is None:
        if ddpm is not None:
            raise InputError("--ddpm names the DDPM of a chain: say where, such as --chain 'energy > ddpm(75)'")
        if vq is not None:
            raise InputError("--vq names the autoencoder of a chain: say where, such as --chain 'energy > vq'")
        if is_vq(model):
            _refuse(model, "an autoencoder: it takes", {"steps": steps, "level": level, **sampler})
            return VQStage(load_vq(model, device), device=device, precision=precision)
        if is_ddpm(model):
            return _ddpm_alone(model, steps, {"level": level, **sampler}, device=device, precision=precision)
        return model_stage(load_model(model, device=device), steps=steps, **ours)
    if steps is not None:
        raise InputError("--steps does not go with --chain: write them in the chain, such as energy(150)")
    recipe = parse_chain(chain)
    energy = load_model(model, device=device) if recipe.uses("energy") else None
    diffusion = load_ddpm(ddpm or DEFAULT_DDPM, device) if recipe.uses("ddpm") else None
    if ddpm is not None and diffusion is None:
        raise InputError(f"--ddpm {ddpm}: the chain {chain!r} has no ddpm")
    if vq is not None and not recipe.uses("vq"):
        raise InputError(f"--vq {vq}: the chain {chain!r} has no vq")

    def make_energy(number: str | None) -> Stage:
        assert energy is not None
        return model_stage(energy, steps=number, **ours)

    def make_ddpm(config: DDPMConfig) -> Stage:
        assert diffusion is not None
        return ddpm_stage(diffusion, config, device=device, precision=precision)

    def make_vq() -> Stage:
        return VQStage(load_vq(vq or DEFAULT_VQ, device), device=device, precision=precision)

    return build_chain(recipe, energy=make_energy, ddpm=make_ddpm, vq=make_vq)


def _ddpm_alone(name: str, steps: str | None, others: JSON, *, device: str, precision: str) -> Stage:
    """A DDPM that was named in place of an energy: its only option is the level of noise."""
    from pureebm.diffusion.process import DDPMConfig
    from pureebm.diffusion.weights import load_ddpm
    from pureebm.purify.chains import ddpm_stage

    _refuse(name, "a DDPM: it takes --steps, its level of noise, but", others)
    number = None if steps is None else _whole_number("--steps", steps, least=1, instead="the level of noise")
    config = DDPMConfig() if number is None else DDPMConfig(level=number)
    return ddpm_stage(load_ddpm(name, device), config, device=device, precision=precision)


def _refuse(name: str, what: str, options: JSON) -> None:
    """Raise `InputError` if one of the options is given that this kind of model does not have."""
    given = [f"--{key.replace('_', '-')}" for key, value in options.items() if value not in (None, "default")]
    if given:
        raise InputError(f"{name!r} is {what} no {', '.join(given)}")


def langevin_stage(model: LoadedModel, config: LangevinConfig, *, device: str, precision: str) -> LangevinStage:
    """The purifier of a loaded model, described for the run record."""
    from pureebm.purify.stages import LangevinStage

    return LangevinStage(model.energy, config, device=device, precision=precision, model=model.describe())


def crew(engine: str, workers: int | None, threads: int | None) -> Crew | None:
    """Who computes: None for this process alone. Raises `InputError` where an extra is missing."""
    if engine == "ray":
        from pureebm.integrations.ray import RayCrew

        return RayCrew(workers, threads=threads)
    from pureebm.purify.processes import Processes

    return Processes(workers, threads=threads) if workers and workers > 1 else None


def use_threads(n_threads: int | None) -> None:
    """Limit the network's processor threads, where a number is given."""
    if n_threads is not None:
        import torch

        torch.set_num_threads(n_threads)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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


def command() -> str:
    """The command as it was given, for cards and records."""
    return shlex.join(["pureebm", *sys.argv[1:]])
