"""`pureebm score`: the energy of every image, highest (least natural) first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, emit, say
from pureebm.cli.progress import show_progress, stop_on_signals

if TYPE_CHECKING:
    from pureebm.purify.score import Scores
    from pureebm.types import JSON

N_SHOWN = 10

app = typer.Typer(add_completion=False)


@app.command()
def score(
    source: options.Source,
    out: Annotated[Path, typer.Option(help="Parquet file of all ids and energies.")] = Path("scores.parquet"),
    model: options.Model = DEFAULT_MODEL,
    limit: options.Limit = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Write the energy of every image, highest first.

    The energy is the network's own output for the image at its size; an unnatural image stands high.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.energy.weights import load_model
    from pureebm.purify.score import score as score_source

    loaded = load_model(model, device=place)
    stage = options.langevin_stage(loaded, options.langevin_config(loaded), device=place, precision="float32")
    with stop_on_signals() as stop, show_progress() as progress:
        scores = score_source(source, stage, out=out, limit=limit, progress=progress, stop=stop)
    emit(_summary(scores, out)) if json_ else _say_scores(scores, out)
    raise typer.Exit(scores.exit_code)


def _summary(scores: Scores, out: Path) -> JSON:
    energies = scores.table["energy"].to_pylist()
    return {
        "count": len(energies),
        "out": str(out),
        "top": scores.table.slice(0, N_SHOWN).to_pylist(),
        "energies": {"max": energies[0], "median": energies[len(energies) // 2], "min": energies[-1]}
        if energies
        else None,
        "failures": scores.failures,
    }


def _say_scores(scores: Scores, out: Path) -> None:
    for row in scores.table.slice(0, N_SHOWN).to_pylist():
        say(f"{row['energy']:12.4f}  {row['id']}")
    for name, message in scores.failures.items():
        say(f"no energy: {name}: {message}")
    say(f"{len(scores.table):,} energies, highest first -> {out}")
