"""`pureebm bench`: measure purifiers by the victims of poisoned data; every result is a JSON card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pureebm.cli import options
from pureebm.cli.options import emit, say
from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.evaluation.quick import Defense
    from pureebm.types import JSON

app = typer.Typer(no_args_is_help=True)

Suite = Annotated[Literal["quick", "diagnosis"], typer.Option(help="What is measured.")]
Out = Annotated[Path, typer.Option(help="Folder of the cards.")]


@app.command("run")
def run_suite(
    suite: Suite = "quick",
    defence: Annotated[
        str | None,
        typer.Option(
            "--defence", "--defense", help="none, jpeg-QUALITY or blur-SIGMA; several by commas.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE|hf:owner/name", help="An energy model as the defense.", show_default=False),
    ] = None,
    steps: options.Steps = None,
    step_size: options.StepSize = None,
    temperature: options.Temperature = None,
    noise: options.NoiseScale = None,
    set_: Annotated[
        Literal["tune", "report"], typer.Option("--set", help="Triggers to choose by, or to report.")
    ] = "report",
    seeds: Annotated[str, typer.Option(metavar="0,1,2", help="Of the victims.")] = "0",
    joint: Annotated[bool, typer.Option("--joint", help="All triggers of the set in one victim: faster.")] = False,
    n_train: Annotated[int, typer.Option(min=640, help="Training images of a victim.")] = 20_000,
    n_poisons: Annotated[int, typer.Option(min=1, help="Of them, how many carry a trigger.")] = 200,
    scale: Annotated[int, typer.Option(min=1, max=4, help="Times the trigger: 2 makes 16/255 of 8/255.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="Data folder; else $PUREEBM_DATA or ../shared/data.", show_default=False)
    ] = None,
    out: Out = Path("results"),
    cache: Annotated[Path, typer.Option(help="Folder for purified images; may be deleted.")] = Path(".pureebm-cache"),
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Run a suite; cards that exist are not computed again.

    Without --defence and --model, the undefended victims are run.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation import quick
    from pureebm.evaluation.arrays import find_data

    defenses = [_baseline(name) for name in (defence.split(",") if defence else [] if model else ["none"])]
    if model:
        overrides = {"steps": steps, "step_size": step_size, "temperature": temperature, "noise": noise}
        defenses.append(_model(model, place, precision, overrides))
    _log_to_stderr()
    arrays = quick.QuickData(find_data(data), cache)
    if suite == "diagnosis":
        from pureebm.evaluation.diagnosis import run_diagnosis

        cards = [run_diagnosis(one, arrays, out=out, cache=cache, command=_command()) for one in defenses]
    else:
        config = quick.QuickConfig(n_train=n_train, n_poisons=n_poisons, joint=joint, scale=scale)
        cards = []
        for one in defenses:
            cards += quick.run_quick(
                one, set_, arrays, config, seeds=_seeds(seeds), out=out, cache=cache, device=place, command=_command()
            )
    emit({"cards": cards}) if json_ else say(f"{len(cards)} cards in {out / suite}; see them by: pureebm bench show")


@app.command("show")
def show(
    suite: Suite = "quick",
    set_: Annotated[
        Literal["tune", "report"], typer.Option("--set", help="Triggers to choose by, or to report.")
    ] = "report",
    out: Out = Path("results"),
    json_: options.Json = False,
) -> None:
    """Print the table of a suite: one row for each attack and defense, or one for each diagnosis."""
    from pureebm.evaluation.cards import read_cards, table

    cards = read_cards(out / suite)
    if not cards:
        raise InputError(f"no cards in {out / suite}; make some by: pureebm bench run --suite {suite}")
    rows = cards if suite == "diagnosis" else table(card for card in cards if card["set"] == set_)
    if json_:
        emit({"rows": rows})
    elif suite == "quick":
        _print_quick(rows)
    else:
        _print_diagnosis(rows)


def _baseline(name: str) -> Defense:
    from pureebm.evaluation.quick import Defense
    from pureebm.purify.baselines import baseline

    return Defense(name.strip(), baseline(name.strip()))


def _model(name: str, device: str, precision: str, overrides: JSON) -> Defense:
    from pureebm.energy.weights import load_model
    from pureebm.evaluation.quick import Defense

    loaded = load_model(name, device=device)
    config = options.langevin_config(loaded, **overrides)
    short = Path(name).stem
    label = f"{short} {config.n_steps} x {config.step_size:g}"
    return Defense(label, options.langevin_stage(loaded, config, device=device, precision=precision))


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers with commas between them, got {text!r}")
    return [int(part) for part in parts]


def _command() -> str:
    return " ".join(["pureebm", *sys.argv[1:]])


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _print_quick(rows: list[JSON]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "quick, in %: accuracy (high is good), poison success (near the floor is good)"
    table = Table("eps", "data", "defence", "acc.", "poison", "sd", "worst", "floor", "n", "purify s", title=title)
    keys = ("natural_accuracy", "poison_success", "poison_success_sd", "poison_success_max", "clean_floor")
    for row in sorted(rows, key=lambda row: (row["data"], row["eps"], row["attack"], row["poison_success"] or 0)):
        eps = "clean" if row["attack"] == "none" else str(row["eps"])
        numbers = [_percent(row[key]) for key in keys]
        table.add_row(eps, row["data"], row["defence"], *numbers, str(row["runs"]), f"{row['defence_seconds']:.0f}")
    Console(width=max(100, Console().width)).print(table)


def _print_diagnosis(rows: list[JSON]) -> None:
    from rich.console import Console
    from rich.table import Table

    kinds = list(rows[0]["survival"])
    table = Table(
        "defence", "PSNR dB", *kinds, "AUROC", "paired", title="diagnosis: share of each perturbation that survives, %"
    )
    for row in rows:
        shares = [_percent(row["survival"][kind]) for kind in kinds]
        energy = row["energy"] or {}
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f}"
        table.add_row(
            row["defence"], psnr, *shares, _percent(energy.get("auroc")), _percent(energy.get("paired_share"))
        )
    Console().print(table)
