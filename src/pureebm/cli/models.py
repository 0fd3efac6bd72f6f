"""`pureebm models`: what is bundled, what is known about it, and whether the files are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, Json, emit, say
from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.diffusion.weights import LoadedDDPM, StoredDDPM
    from pureebm.energy.weights import LoadedModel
    from pureebm.types import JSON

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_models(json_: Json = False) -> None:
    """Name, size, training data and sha256 of every bundled model."""
    rows = [_row(model) for model in _bundled()] + _bundled_others()
    if json_:
        return emit({"default": DEFAULT_MODEL, "models": rows})
    for row in rows:
        mark = " (default)" if row["name"] == DEFAULT_MODEL else ""
        say(f"{row['name']}{mark}: {row['summary']}")
        say(f"  {row['parameters']:,} parameters, {row['bytes'] / 1e6:.2f} MB, trained on {row['data']}")
        say(f"  sha256 {row['sha256']}")


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE|hf:owner/name", help="The model.")] = DEFAULT_MODEL,
    json_: Json = False,
) -> None:
    """The card of a model: how it was made, measured and meant to be used."""
    card = _load(name).card
    if json_:
        return emit(card)
    for key, value in card.items():
        say(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Default: all bundled.")] = None,
    json_: Json = False,
) -> None:
    """Hash and load models again; exit code 2 where one is not what its card says."""
    from pureebm.energy.weights import MODELS

    every = [*MODELS, *(row["name"] for row in _bundled_others())]
    verified = {name: _load(name).sha256 for name in names or every}
    if json_:
        return emit({"verified": verified})
    for name, sha256 in verified.items():
        say(f"{name}: ok, sha256 {sha256}")


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE|hf:owner/name", help="The model.", show_default=False)],
    path: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)],
    what: Annotated[
        Literal["auto", "score", "sampler"],
        typer.Option(help="An energy with its gradient, or the whole chain; auto: the first, or the student."),
    ] = "auto",
    steps: options.Steps = None,
    step_size: options.StepSize = None,
    temperature: options.Temperature = None,
    sampler: options.Sampler = "default",
    noise: options.NoiseScale = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Images of this size alone; default: any.", show_default=False)
    ] = None,
    json_: Json = False,
) -> None:
    """Write a model as ONNX, for programs without PyTorch: its score, the whole sampler, or a student.

    Images are (N, 3, H, W) float32 in [-1, 1]; noise is an input. Sizes are free but for models of colored noise.
    """
    from pureebm.energy.student import Student
    from pureebm.energy.weights import load_model
    from pureebm.integrations.onnx import export_model

    loaded = load_model(name)
    chosen = {"sampler": sampler, "steps": steps, "step_size": step_size, "temperature": temperature, "noise": noise}
    config = None if isinstance(loaded.network, Student) else options.langevin_config(loaded, **chosen)  # type: ignore[arg-type]
    about = export_model(loaded, path, config=config, what=what, size=_size(size))
    written = about | {"path": str(path), "bytes": path.stat().st_size}
    return emit(written) if json_ else say(f"{about['what']} of {name}: {written['bytes'] / 1e6:.1f} MB -> {path}")


def _size(text: str | None) -> tuple[int, int] | None:
    """'HxW' -> (H, W). Raises `InputError`."""
    if text is None:
        return None
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise InputError(f"--size must be HxW, such as 32x32, got {text!r}")
    return int(height), int(width)


def _load(name: str) -> LoadedModel | LoadedDDPM | StoredDDPM:
    """An energy, a student, a DDPM, or an autoencoder; of a DDPM without diffusers, no network."""
    from importlib.util import find_spec

    from pureebm.diffusion.weights import is_ddpm, load_ddpm, read_ddpm
    from pureebm.energy.weights import load_model
    from pureebm.purify.vq import is_vq, load_vq

    if is_vq(name):
        return load_vq(name)
    if is_ddpm(name):
        return load_ddpm(name) if find_spec("diffusers") else read_ddpm(name)
    return load_model(name)


def _bundled_others() -> list[JSON]:
    """What the cards of the bundled DDPM and autoencoder say, where there are any; a DDPM's network needs diffusers."""
    from pureebm.diffusion.weights import bundled_path
    from pureebm.purify.vq import bundled_vq

    rows = []
    for path in (bundled_path(), bundled_vq()):
        if path.is_file():
            card = json.loads(path.with_suffix(".json").read_text())
            told = {"name": path.stem, "summary": card["description"], "bytes": path.stat().st_size}
            rows.append(told | {key: card[key] for key in ("parameters", "data", "sha256")})
    return rows


def _bundled() -> list[LoadedModel]:
    from pureebm.energy.weights import MODELS, load_model

    return [load_model(name) for name in MODELS]


def _row(model: LoadedModel) -> JSON:
    from pureebm.energy.weights import MODELS, bundled_path

    return {
        "name": model.name,
        "summary": MODELS[model.name],
        "parameters": model.card["parameters"],
        "bytes": bundled_path(model.name).stat().st_size,
        "data": model.card.get("data", "unknown data"),
        "sha256": model.sha256,
    }
