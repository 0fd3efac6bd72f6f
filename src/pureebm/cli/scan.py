"""`pureebm scan`: what is broken, double, planted or oddly labeled in an image set; a gate for pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, emit, say
from pureebm.cli.progress import show_progress, stop_on_signals

if TYPE_CHECKING:
    from pureebm.evaluation.scan import Scan

N_SHOWN = 40
N_NAMES = 3

app = typer.Typer(add_completion=False)


@app.command()
def scan(
    source: options.Source,
    fail_on: Annotated[
        Literal["low", "medium", "high"], typer.Option(help="Exit with 1 if there are findings of this level or above.")
    ] = "medium",
    sarif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the findings as SARIF 2.1.0.", show_default=False)
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    limit: options.Limit = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Look for what is wrong in an image set; no substitute for purifying.

    Finds unreadable files and bombs, equal and nearly equal images, equal images with different labels, the same small
    patch in many images (of one class: a backdoor), images of unusual energy, and labels out of range or missing.

    Clean-label poison below the visible cannot be ruled out by scanning: it looks like any other image. A clean scan
    is no acquittal: purify the set (`pureebm purify`) before training on it.

    Exit code 0: nothing of the level --fail-on or above. 1: something. 2: the set could not be scanned.
    """
    if sarif is not None:
        from pureebm.evaluation.sarif import check_sarif

        check_sarif(sarif)
    try:
        found = _scan(source, model, limit, device, threads)
    except Exception as error:
        if sarif is not None:
            from pureebm.evaluation.sarif import sarif_of_error, write_sarif

            write_sarif(sarif, sarif_of_error(str(error)))
        raise
    if sarif is not None:
        from pureebm.evaluation.sarif import sarif_of, write_sarif

        write_sarif(sarif, sarif_of(found))
    failed = found.fails(fail_on)
    told = {"fail_on": fail_on, "clean": not failed, "sarif": sarif and str(sarif)}
    emit(found.to_json() | told) if json_ else _say(found)
    raise typer.Exit(1 if failed else 0)


def _scan(source: Path, model: str, limit: int | None, device: str, threads: int | None) -> Scan:
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.energy.weights import load_model
    from pureebm.evaluation.scan import scan as scan_source

    loaded = load_model(model, device=place)
    stage = options.langevin_stage(loaded, options.langevin_config(loaded), device=place, precision="float32")
    with stop_on_signals() as stop, show_progress() as progress:
        return scan_source(source, stage, limit=limit, progress=progress, stop=stop)


def _say(found: Scan) -> None:
    from pureebm.evaluation.scan import LEVELS, NOT_RULED_OUT

    for finding in found.findings[:N_SHOWN]:
        names = ", ".join(finding.items[:N_NAMES]) + (", ..." if finding.count > N_NAMES else "")
        say(f"{finding.level:>6}  {finding.rule}: {finding.message}" + (f" [{names}]" if finding.items else ""))
    if len(found.findings) > N_SHOWN:
        say(f"... and {len(found.findings) - N_SHOWN:,} more findings (--json and --sarif tell all)")
    for note in found.notes:
        say(f"note: {note}")
    counts = ", ".join(f"{found.count(level)} {level}" for level in reversed(LEVELS))
    classes = "no labels" if found.classes is None else f"{found.classes} classes"
    say(f"{found.images:,} images, {found.readable:,} readable, {classes}, {found.seconds:.1f} s; findings: {counts}")
    say(NOT_RULED_OUT)
