"""`pureebm bench dynamics` and `shift`: what is measured of energies, and of their training sets, without victims."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import emit, say
from pureebm.errors import InputError


def dynamics(
    model: options.Model = options.DEFAULT_MODEL,
    sampler: options.Sampler = "default",
    steps: options.Steps = None,
    step_size: options.StepSize = None,
    temperature: options.Temperature = None,
    noise: options.NoiseScale = None,
    updates: Annotated[int, typer.Option(min=1, help="How far the chains are followed.")] = 2000,
    images: Annotated[int, typer.Option(min=4, help="How many CIFAR-10 test images.")] = 32,
    data: options.BenchData = None,
    out: options.Cards = Path("results"),
    cache: options.BenchCache = Path(".pureebm-cache"),
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Follow chains far beyond the sampler's steps: from images, from poisoned ones, and from noise.

    Writes a card and a picture: distances with the mid-run, energies, and whether the chains end at the same energies.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.energy.student import Student
    from pureebm.energy.weights import load_model
    from pureebm.evaluation.arrays import find_data
    from pureebm.evaluation.dynamics import run_dynamics
    from pureebm.evaluation.quick import QuickData

    loaded = load_model(model, device=place)
    if isinstance(loaded.network, Student):
        raise InputError(f"{loaded.name!r} is a one-pass student: it has no chain to follow")
    config = options.langevin_config(
        loaded, sampler=sampler, steps=steps, step_size=step_size, temperature=temperature, noise=noise
    )
    card = run_dynamics(
        loaded,
        config,
        QuickData(find_data(data), cache),
        n_steps=updates,
        n_images=images,
        out=out,
        device=place,
        command=options.command(),
        report=lambda step: say(f"{step:,} of {updates:,} updates"),
    )
    if json_:
        return emit({"card": card})
    crossing = "never" if card["crossing"] is None else f"after {card['crossing']} updates"
    say(f"a poisoned image is nearer to its clean original than to where it began: {crossing}")
    last, apart = card["steps"][-1], card["auroc"]["noise"][-1]
    say(f"energies after {last:,} updates, from noise against from images: AUROC {apart:.3f} (0.5: the same)")
    say(f"picture: {card['picture']}")


SETS = ("cifar10", "near", "mixed", "far", "textures", "poisoned-8", "poisoned-16")
# restated from evaluation.shift, which needs torch; a test compares them


def shift(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SET]...", help=f"{', '.join(SETS)}.")] = None,
    sets: Annotated[Path, typer.Option(help="Folder that the sets are written to.")] = Path("runs/shift"),
    data: options.BenchData = None,
    out: options.Cards = Path("results"),
    cache: options.BenchCache = Path(".pureebm-cache"),
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Write training sets for energies, ever farther from CIFAR-10 or poisoned, with the Frechet distance of each.

    The features are those of a small classifier that is trained here (minutes, once). Cards are in OUT/shift.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation.arrays import Shelf
    from pureebm.evaluation.shift import MAKERS, Ruler, check_names, run_shift
    from pureebm.evaluation.store import Store
    from pureebm.evaluation.victims import Bench

    wanted = check_names(names or list(MAKERS))
    ruler, cards = Ruler(Bench(Shelf(data, cache), Store(cache, place), place)), []
    for name in wanted:
        places = ["--sets", str(sets), "--out", str(out), *(["--data", str(data)] if data else [])]
        command = shlex.join(["pureebm", "bench", "shift", name, *places])
        cards.append(run_shift(name, ruler, folder=sets, out=out, command=command))
        say(f"{name}: Frechet distance {cards[-1]['frechet_distance']:.3f}, {cards[-1]['file']}")
    if json_:
        emit({"cards": cards})
