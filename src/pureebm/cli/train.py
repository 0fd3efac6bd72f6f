"""`pureebm train`: long runs in a folder of their own; repeating the same command goes on with them."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pureebm.cli.options import Device, Json, Source, Threads, emit, parse_device, say, use_threads
from pureebm.cli.progress import stop_on_signals
from pureebm.errors import InputError
from pureebm.training.settings import EnergySettings

if TYPE_CHECKING:
    from pureebm.training.workers import Workers

app = typer.Typer(help="Train energy models.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Long runs in a folder of their own; repeating the same command goes on with them."""


def _energy(
    source: Source,
    out: Annotated[Path, typer.Option(help="The run's folder; one that exists is continued.", show_default=False)],
    holdout: Annotated[
        Path | None,
        typer.Option(help="Images for validation (default: the last 256 of SOURCE, left out).", show_default=False),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="One of several processes (`accelerate launch`; needs the extra).")
    ] = False,
    checkpoint_minutes: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")] = 3.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the run that OUT holds, and begin again.")
    ] = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Train an energy on images, and choose the weights that purify held-out images best.

    OUT/model.safetensors and its card stand there from the first validation on; pictures are in OUT/diagnostics.
    """
    use_threads(threads)
    from pureebm.training.energy import Runtime, train_energy

    settings |= {name: _numbers(settings[name]) for name in _LISTS}
    chosen = EnergySettings(**settings)
    workers = _workers(device, accelerate)
    with stop_on_signals() as stop:
        runtime = Runtime(
            workers=workers,
            report=say if workers.rank == 0 else lambda line: None,
            stop=stop.is_set,
            checkpoint_minutes=checkpoint_minutes,
            overwrite=overwrite,
            command=shlex.join(["pureebm", *sys.argv[1:]]),
        )
        card = train_energy(source, out, chosen, holdout=holdout, runtime=runtime)
    if json_ and workers.rank == 0:
        emit({"model": str(out / "model.safetensors"), "card": card})


_LISTS = ("widths", "blocks")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"expected whole numbers with commas between, such as 48,96, got {text!r}") from None


def _workers(device: str, accelerate: bool) -> Workers:
    from pureebm.training.workers import AccelerateWorkers, Workers

    return AccelerateWorkers(device) if accelerate else Workers(parse_device(device))


def _with_settings(command: Any) -> Any:
    """`command` with an option for every field of `EnergySettings` in place of its `**settings`."""
    hints = get_type_hints(EnergySettings, include_extras=True)
    parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    for field in fields(EnergySettings):
        kind, default = hints[field.name].__origin__, field.default
        if field.name in _LISTS:
            kind, default = str, ",".join(map(str, default))  # type: ignore[arg-type]
        option = typer.Option(help=hints[field.name].__metadata__[0], show_default=default is not None)
        parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default)
        parameters.append(parameter.replace(annotation=Annotated[kind, option]))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        command(**values)

    plain = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in plain}
    del run.__wrapped__
    return run


app.command("energy")(_with_settings(_energy))
