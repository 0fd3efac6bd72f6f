"""`pureebm bench`: measure purifiers by the victims of poisoned data; every result is a JSON card.

Two kinds of suite: `quick` and `diagnosis`, whose options stand on the command line, and files of scenarios times
defenses (`smoke`, `cpu`, `claims`, `mid-run`, `paper`, or one's own TOML). What looks at energies alone is in
`cli.bench_energy`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pureebm.cli import bench_energy, options
from pureebm.cli.options import emit, say
from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.evaluation.quick import Defense
    from pureebm.evaluation.runner import Outcome
    from pureebm.evaluation.scenarios import Suite
    from pureebm.evaluation.tables import Block
    from pureebm.types import JSON

app = typer.Typer(no_args_is_help=True)
app.command("dynamics")(bench_energy.dynamics)
app.command("shift")(bench_energy.shift)

OWN_OPTIONS = ("quick", "diagnosis")
"""Suites that are no files of scenarios."""

SuiteName = Annotated[
    str,
    typer.Option(
        "--suite", metavar="NAME|FILE.toml", help="quick, diagnosis, smoke, cpu, claims, mid-run, paper, FILE."
    ),
]
Quoted = Annotated[
    bool | None, typer.Option("--quoted/--no-quoted", help="Published figures beside ours.", show_default=False)
]


@app.command("run")
def run_suite(
    context: typer.Context,
    suite: SuiteName = "quick",
    defence: Annotated[
        str | None,
        typer.Option(
            "--defence",
            "--defense",
            help="none, jpeg-QUALITY, blur-SIGMA, pureebm[:steps=auto,...]; several by commas. Instead of the suite's.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only jobs with such a name; * and ? as in a shell.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no card after so many minutes; repeat to go on.")
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
    eps: Annotated[int, typer.Option(min=1, max=64, help="Size of the trigger, in steps of 1/255.")] = 8,
    data: options.BenchData = None,
    out: options.Cards = Path("results"),
    cache: options.BenchCache = Path(".pureebm-cache"),
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Run a suite; cards that exist are not computed again, so a killed run repeated goes on.

    smoke, cpu, claims, mid-run, paper and TOML files say themselves what is run; of the options above they take
    --defence, --only and --max-minutes. quick and diagnosis take the others; without --defence and --model, they run
    undefended victims.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    if suite not in OWN_OPTIONS:
        _refuse_given(context, QUICK_ONLY, f"--suite {suite} says itself what is run; write it in a TOML file, or")
        _log_to_stderr()
        return _run_scenarios(suite, defence, only, max_minutes, data, out, cache, place, precision, json_)
    _refuse_given(context, ("only", "max_minutes"), f"--suite {suite} takes no")
    from pureebm.attacks.narcissus import Config as NarcissusConfig
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

        cards = [run_diagnosis(one, arrays, out=out, cache=cache, command=options.command()) for one in defenses]
    else:
        config = quick.QuickConfig(n_train=n_train, n_poisons=n_poisons, joint=joint, attack=NarcissusConfig(eps=eps))
        cards = []
        for one in defenses:
            cards += quick.run_quick(
                one,
                set_,
                arrays,
                config,
                seeds=_integers(seeds),
                out=out,
                cache=cache,
                device=place,
                command=options.command(),
            )
    emit({"cards": cards}) if json_ else say(f"{len(cards)} cards in {out / suite}; see them by: pureebm bench show")


@app.command("show")
def show(
    suite: SuiteName = "quick",
    set_: Annotated[
        Literal["tune", "report"], typer.Option("--set", help="Triggers to choose by, or to report (quick).")
    ] = "report",
    format_: Annotated[
        Literal["terminal", "markdown", "latex"], typer.Option("--format", help="How the tables are written.")
    ] = "terminal",
    quoted: Quoted = None,
    out: options.Cards = Path("results"),
    json_: options.Json = False,
) -> None:
    """Print the tables of a suite: one row for each attack and defense, or one for each diagnosis.

    Published figures of the same attack stand beside ours, marked; with --json only if --quoted is given.
    """
    if suite not in OWN_OPTIONS:
        return _show_scenarios(suite, out, format_, quoted, json_)
    if format_ == "latex" or quoted:
        raise InputError(f"--suite {suite} has no LaTeX and no published figures; leave --format latex, --quoted out")
    from pureebm.evaluation.cards import read_cards, table

    cards = read_cards(out / suite)
    if not cards:
        raise InputError(f"no cards in {out / suite}; make some by: pureebm bench run --suite {suite}")
    rows = cards if suite == "diagnosis" else table(card for card in cards if card["set"] == set_)
    if json_:
        from pureebm.evaluation.tables import CONTRACT

        emit({"rows": [dict.fromkeys(CONTRACT) | {"quoted": False} | row for row in rows]})
    elif suite == "quick":
        _print_quick(rows, format_)
    else:
        _print_diagnosis(rows, format_)


@app.command("report")
def report(
    suite: SuiteName = "cpu",
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    cards: options.Cards = Path("results"),
    cache: options.BenchCache = Path(".pureebm-cache"),
    quoted: Quoted = None,
) -> None:
    """Write one HTML file that needs no network: tables, plots, energies, pictures."""
    from pureebm.evaluation.report import write_report

    if suite in OWN_OPTIONS:
        raise InputError(f"--suite {suite} has no report; see it by: pureebm bench show --suite {suite}")
    loaded, found = _cards(suite, cards)
    write_report(out, loaded, found, cache=cache, quoted=quoted is not False, asked=suite)
    say(f"{len(found)} cards -> {out}")


@app.command("speed")
def speed(
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute, and no card.")] = False,
    model: options.Model = options.DEFAULT_MODEL,
    device: options.Device = "auto",
    threads: options.Threads = None,
    out: options.Cards = Path("results"),
    json_: options.Json = False,
) -> None:
    """Measure images per second side by side: the authors' loop, the exact engine, the bundled model.

    The first three are 150 updates of the paper's network, scaled from a few. Without --quick a card is written.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation.speed import QUICK, SpeedConfig, bundled_student, measure, write_speed_card

    told = None if quick or json_ else lambda number: say(f"turn {number}")
    config, student = QUICK if quick else SpeedConfig(), bundled_student(place)
    measured = measure(config, model=model, student=student, others=not quick, device=place, on_round=told)
    path = None if quick else write_speed_card(out, measured, command=options.command())
    emit(measured | {"card": path and str(path)}) if json_ else _say_speed(measured, path)


@app.command("scale")
def scale(
    source: options.Source,
    model: options.Model = options.DEFAULT_MODEL,
    images: Annotated[str, typer.Option(metavar="N,N", help="Numbers of images.")] = "1000,10000",
    workers: Annotated[str, typer.Option(metavar="N,N", help="Of processes: the first for all numbers.")] = "1",
    device: options.Device = "auto",
    threads: options.Threads = None,
    out: options.Cards = Path("results"),
    json_: options.Json = False,
) -> None:
    """Measure whole jobs: seconds and memory against images and workers.

    Each is a `pureebm purify SOURCE` of its own, start included. Writes a card and a picture.
    """
    place = options.parse_device(device)
    import torch

    from pureebm.evaluation.scale import measure_jobs, write_scale_card

    rows = measure_jobs(
        source,
        model=model,
        images=_integers(images, "--images"),
        workers=_integers(workers, "--workers"),
        threads=threads or torch.get_num_threads(),
        device=place,
        told=say,
    )
    path = write_scale_card(out, rows, model=model, source=source, command=options.command())
    emit({"jobs": rows, "card": str(path)}) if json_ else say(f"card: {path}")


def _say_speed(measured: JSON, path: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from pureebm.evaluation.speed import TITLES

    updates = f"bundled model, {measured['default_settings']['n_steps']} updates"
    titles = TITLES | {"default": updates, "diffusers": f"{TITLES['diffusers']}, 75 steps scaled from 1"}
    rates = measured | measured["neighbors"]
    table = Table("", "images/s", "times the loop", title=f"{measured['device']}, threads: {measured['threads']}")
    for name, title in titles.items():
        if rates.get(name) is not None:
            table.add_row(title, f"{rates[name]:.3g}", f"{measured['ratios'][name]:.2f}")
    Console(stderr=True, highlight=False).print(table)
    for precision, share in measured["peak_shares"].items():
        say(
            f"{precision}: {100 * share:.0f} % of the measured peak of {measured['peak_gflops'][precision]:.0f} GFLOP/s"
        )
    steps = measured["protocol"]["scaled_from_steps"]
    say(f"the paper's chains are of {measured['protocol']['n_steps']} updates, scaled from {steps} of them")
    if path is not None:
        say(f"card: {path}")


QUICK_ONLY = (
    "model", "steps", "step_size", "temperature", "noise", "set_", "seeds", "joint", "n_train", "n_poisons", "eps",
)  # fmt: skip


def _refuse_given(context: typer.Context, names: tuple[str, ...], reason: str) -> None:
    """Raises `InputError` for options that would be ignored."""
    given = [name for name in names if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        flags = ", ".join("--" + name.strip("_").replace("_", "-") for name in given)
        raise InputError(f"{reason} leave out {flags}" if reason.endswith("or") else f"{reason} {flags}")


def _run_scenarios(
    name: str,
    defence: str | None,
    only: str | None,
    max_minutes: float | None,
    data: Path | None,
    out: Path,
    cache: Path,
    device: str,
    precision: str,
    json_: bool,
) -> None:
    from dataclasses import replace

    from pureebm.evaluation.arrays import Shelf
    from pureebm.evaluation.runner import Runner
    from pureebm.evaluation.scenarios import load_suite
    from pureebm.evaluation.store import Store
    from pureebm.evaluation.victims import Bench

    suite = load_suite(name)
    if defence is not None:
        scenarios = tuple(replace(scenario, defenses=()) for scenario in suite.scenarios)
        suite = replace(suite, defenses=tuple(_split_defenses(defence)), scenarios=scenarios)
    bench = Bench(Shelf(data, cache), Store(cache, device), device, precision)
    runner = Runner(suite, bench=bench, out=out, asked=name)
    outcome = runner.run(only=only, max_minutes=max_minutes)
    told = {"made": outcome.made, "existed": outcome.existed, "failed": outcome.failed, "left": outcome.left}
    emit({"folder": str(runner.out), **told}) if json_ else _say_outcome(outcome, name, runner.out)
    raise typer.Exit(1 if outcome.failed else 0)


def _split_defenses(text: str) -> list[str]:
    """Names by commas; "pureebm:model=F,steps=20" is one, since what follows its colon has commas of its own."""
    names: list[str] = []
    for part in text.split(","):
        if names and ":" in names[-1] and "=" in part and ":" not in part.partition("=")[0]:
            names[-1] += "," + part.strip()
        else:
            names.append(part.strip())
    return names


def _say_outcome(outcome: Outcome, name: str, folder: Path) -> None:
    say(f"{len(outcome.made)} cards made, {len(outcome.existed)} were there, in {folder}")
    reasons: dict[str, list[str]] = {}
    for job, reason in outcome.failed.items():
        reasons.setdefault(reason, []).append(job)
    for reason, jobs in reasons.items():
        more = f" and {len(jobs) - 1} others" if len(jobs) > 1 else ""
        say(f"not run: {jobs[0]}{more}: {reason}")
    if outcome.left:
        say(f"{len(outcome.left)} jobs are left; repeat the same command to go on")
    where = "" if folder.parent == Path("results") else f" --out {shlex.quote(str(folder.parent))}"
    say(f"see them by: pureebm bench show --suite {shlex.quote(name)}{where}")


def _cards(name: str, folder: Path) -> tuple[Suite, list[JSON]]:
    from pureebm.evaluation.runner import read_suite_cards
    from pureebm.evaluation.scenarios import load_suite

    suite = load_suite(name)
    cards = read_suite_cards(suite, folder)
    if not cards:
        raise InputError(f"no cards in {folder / suite.name}; make some by: pureebm bench run --suite {name}")
    return suite, cards


def _show_scenarios(name: str, out: Path, format_: str, quoted: bool | None, json_: bool) -> None:
    from pureebm.evaluation import tables

    suite, cards = _cards(name, out)
    rows = tables.make_rows(cards)
    published = tables.quoted_rows(rows) if quoted or (quoted is None and not json_) else []
    if json_:
        return emit({"rows": rows + published})
    found = tables.blocks(rows, published)
    if format_ == "terminal":
        return _print_blocks(suite.title, found)
    print(tables.markdown(found) if format_ == "markdown" else tables.latex(found), end="")


def _print_blocks(title: str, found: list[Block]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pureebm.evaluation import tables

    console = Console(width=max(160, Console().width), highlight=False)
    console.print(title, style="bold", end="\n\n")
    for name, rows in found:
        texts = [tables.cells(row) for row in rows]
        filled = [place for place in range(len(tables.COLUMNS)) if any(line[place] for line in texts)]
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place in filled:
            table.add_column(tables.COLUMNS[place], justify="left" if place < 2 else "right", no_wrap=True)
        for before, row, line in zip([None, *rows], rows, texts, strict=False):
            if before and (before["attack"] == "none" != row["attack"] or row["quoted"] and not before["quoted"]):
                table.add_section()
            table.add_row(*(line[place] for place in filled), style="dim" if row["quoted"] else None)
        console.print(table)
    every = [row for _, rows in found for row in rows]
    for note in [*tables.LEGEND[: None if any(row["quoted"] for row in every) else -1], *tables.sources(every)]:
        console.print(note, style="dim")


def _baseline(name: str) -> Defense:
    from pureebm.evaluation.quick import Defense
    from pureebm.purify.baselines import baseline

    return Defense(name.strip(), baseline(name.strip()))


def _model(name: str, device: str, precision: str, overrides: JSON) -> Defense:
    from pureebm.energy.weights import load_model
    from pureebm.evaluation.quick import Defense

    loaded = load_model(name, device=device)
    stage = options.model_stage(loaded, device=device, precision=precision, **overrides)
    told, short = stage.settings(), Path(name).stem
    label = f"{short} {told['n_steps']} x {told['step_size']:g}" if "n_steps" in told else short
    if overrides["temperature"] is not None:
        label += f" T {overrides['temperature']:g}"
    return Defense(label, stage)


def _integers(text: str, name: str = "--seeds") -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"{name} must be whole numbers with commas between them, got {text!r}")
    return [int(part) for part in parts]


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _print_quick(rows: list[JSON], format_: str) -> None:
    title = "quick, in %: accuracy (high is good), poison success (near the floor is good)"
    columns = ["eps", "data", "defence", "acc.", "poison", "sd", "worst", "floor", "n", "purify s"]
    keys = ("natural_accuracy", "poison_success", "poison_success_sd", "poison_success_max", "clean_floor")
    lines = []
    for row in sorted(rows, key=lambda row: (row["data"], row["eps"], row["attack"], row["poison_success"] or 0)):
        eps = "clean" if row["attack"] == "none" else str(row["eps"])
        numbers = [_percent(row[key]) for key in keys]
        lines.append([eps, row["data"], row["defence"], *numbers, str(row["runs"]), f"{row['defence_seconds']:.0f}"])
    _print_table(title, columns, lines, format_)


def _print_diagnosis(rows: list[JSON], format_: str) -> None:
    kinds, lines = list(rows[0]["survival"]), []
    for row in rows:
        shares = [_percent(row["survival"][kind]) for kind in kinds]
        energy = row["energy"] or {}
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.1f}"
        lines.append(
            [row["defence"], psnr, *shares, _percent(energy.get("auroc")), _percent(energy.get("paired_share"))]
        )
    title = "diagnosis: share of each perturbation that survives, %"
    _print_table(title, ["defence", "PSNR dB", *kinds, "AUROC", "paired"], lines, format_)


def _print_table(title: str, columns: list[str], lines: list[list[str]], format_: str) -> None:
    if format_ == "markdown":
        for line in (columns, ["---"] * len(columns), *lines):
            print("| " + " | ".join(line) + " |")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    Console(width=max(100, Console().width)).print(table)
