"""`pureebm score`: the energy of every image, highest (least natural) first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, emit, say
from pureebm.cli.progress import show_progress

N_SHOWN = 10

app = typer.Typer()


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
    with show_progress() as progress:
        table = score_source(source, stage, out=out, limit=limit, progress=progress)
    energies = table["energy"].to_pylist()
    top = table.slice(0, N_SHOWN).to_pylist()
    if json_:
        spread = {"mean": sum(energies) / len(energies), "min": min(energies), "max": max(energies)}
        return emit({"count": len(energies), "out": str(out), "top": top, "energies": spread})
    for row in top:
        say(f"{row['energy']:12.4f}  {row['id']}")
    say(f"{len(energies):,} energies, highest first -> {out}")
