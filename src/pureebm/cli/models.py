"""`pureebm models`: what is bundled, what is known about it, and whether the files are whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pureebm.cli.options import DEFAULT_MODEL, Json, emit, say

if TYPE_CHECKING:
    from pureebm.energy.weights import LoadedModel
    from pureebm.types import JSON

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_models(json_: Json = False) -> None:
    """Name, size, training data and sha256 of every bundled model."""
    rows = [_row(model) for model in _bundled()]
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
    from pureebm.energy.weights import load_model

    card = load_model(name).card
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
    from pureebm.energy.weights import MODELS, load_model

    verified = {name: load_model(name).sha256 for name in names or MODELS}
    if json_:
        return emit({"verified": verified})
    for name, sha256 in verified.items():
        say(f"{name}: ok, sha256 {sha256}")


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
