"""`pureebm train`: long runs in a folder of their own; repeating the same command goes on with them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pureebm.cli.options import (
    Device,
    Json,
    Precision,
    Seed,
    Source,
    Threads,
    command,
    emit,
    parse_device,
    say,
    use_threads,
)
from pureebm.cli.progress import stop_on_signals
from pureebm.errors import InputError
from pureebm.training.settings import DDPMSettings, EnergySettings, StudentSettings, VQSettings

if TYPE_CHECKING:
    from pureebm.training.runtime import Runtime
    from pureebm.training.workers import Workers
    from pureebm.types import JSON

app = typer.Typer(help="Train energy models, DDPMs, autoencoders, students and classifiers.", no_args_is_help=True)


Out = Annotated[Path, typer.Option(help="The run's folder; one that exists is continued.", show_default=False)]
Holdout = Annotated[
    Path | None,
    typer.Option(help="Images for validation (default: the last 256 of SOURCE, left out).", show_default=False),
]
Accelerate = Annotated[
    bool, typer.Option("--accelerate", help="One of several processes (`accelerate launch`; needs the extra).")
]
CheckpointMinutes = Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Drop the run that OUT holds, and begin again.")]


@app.callback()
def train() -> None:
    """Long runs in a folder of their own; repeating the same command goes on with them."""


def _energy(
    source: Source,
    out: Out,
    holdout: Holdout = None,
    device: Device = "auto",
    threads: Threads = None,
    accelerate: Accelerate = False,
    checkpoint_minutes: CheckpointMinutes = 3.0,
    overwrite: Overwrite = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Train an energy on images, and choose the weights that purify held-out images best.

    OUT/model.safetensors and its card stand there from the first validation on; pictures are in OUT/diagnostics.
    """
    use_threads(threads)
    from pureebm.training.energy import train_energy

    settings |= {name: _numbers(settings[name]) for name in _LISTS}
    chosen = EnergySettings(**settings)
    with _running(_workers(device, accelerate), out, checkpoint_minutes, overwrite, json_) as (runtime, done):
        done(train_energy(source, out, chosen, holdout=holdout, runtime=runtime))


_LISTS = ("widths", "blocks")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"expected whole numbers with commas between, such as 48,96, got {text!r}") from None


def _runtime(workers: Workers, stop: Callable[[], bool], checkpoint_minutes: float, overwrite: bool) -> Runtime:
    from pureebm.training.runtime import Runtime

    return Runtime(
        workers=workers,
        report=say if workers.rank == 0 else lambda line: None,
        stop=stop,
        checkpoint_minutes=checkpoint_minutes,
        overwrite=overwrite,
        command=command(),
    )


@contextmanager
def _running(
    workers: Workers, out: Path, checkpoint_minutes: float, overwrite: bool, json_: bool
) -> Iterator[tuple[Runtime, Callable[[JSON], None]]]:
    """The runtime of a training that signals can stop, and what tells its card with --json."""
    told: list[JSON] = []
    with stop_on_signals() as stop:
        yield _runtime(workers, stop.is_set, checkpoint_minutes, overwrite), told.append
    if json_ and workers.rank == 0:
        emit({"model": str(out / "model.safetensors"), "card": told[0]})


def _workers(device: str, accelerate: bool) -> Workers:
    from pureebm.training.workers import AccelerateWorkers, Workers

    return AccelerateWorkers(device) if accelerate else Workers(parse_device(device))


def _student(
    source: Source,
    out: Out,
    holdout: Holdout = None,
    device: Device = "auto",
    threads: Threads = None,
    checkpoint_minutes: CheckpointMinutes = 3.0,
    overwrite: Overwrite = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Train a one-pass student of an energy: a network that purifies as its chain does, many times faster.

    First the teacher purifies images, which are kept in OUT/pairs; then the student learns from these pairs.
    OUT/model.safetensors and its card stand there from the first validation on: `pureebm purify --model` takes it.
    """
    use_threads(threads)
    from pureebm.training.student import train_student

    settings |= {name: _numbers(settings[name]) for name in _LISTS}
    chosen = StudentSettings(**settings)
    with _running(_workers(device, False), out, checkpoint_minutes, overwrite, json_) as (runtime, done):
        done(train_student(source, out, chosen, holdout=holdout, runtime=runtime))


def _ddpm(
    source: Source,
    out: Out,
    holdout: Holdout = None,
    device: Device = "auto",
    threads: Threads = None,
    accelerate: Accelerate = False,
    checkpoint_minutes: CheckpointMinutes = 3.0,
    overwrite: Overwrite = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Train a DDPM for purification, on the first noise levels of a linear schedule of 1,000 (needs the extra).

    OUT/model.safetensors and its card stand there from the first validation on: `pureebm purify --ddpm OUT` takes it.
    """
    use_threads(threads)
    from pureebm.training.ddpm import train_ddpm

    settings["widths"] = settings["widths"] and _numbers(settings["widths"])
    chosen = DDPMSettings(**settings)
    with _running(_workers(device, accelerate), out, checkpoint_minutes, overwrite, json_) as (runtime, done):
        done(train_ddpm(source, out, chosen, holdout=holdout, runtime=runtime))


def _vq(
    source: Source,
    out: Out,
    holdout: Holdout = None,
    device: Device = "auto",
    threads: Threads = None,
    checkpoint_minutes: CheckpointMinutes = 3.0,
    overwrite: Overwrite = False,
    json_: Json = False,
    **settings: Any,
) -> None:
    """Train a vector-quantized autoencoder that purifies in one pass: a baseline.

    OUT/model.safetensors and its card stand there from the first validation on: `pureebm purify --model OUT` takes it.
    """
    use_threads(threads)
    from pureebm.training.vq import train_vq

    chosen = VQSettings(**settings)
    with _running(_workers(device, False), out, checkpoint_minutes, overwrite, json_) as (runtime, done):
        done(train_vq(source, out, chosen, holdout=holdout, runtime=runtime))


def _with_settings(command: Any, settings: Any) -> Any:
    """`command` with an option for every field of a settings class in place of its `**settings`."""
    hints = get_type_hints(settings, include_extras=True)
    parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
    for field in fields(settings):
        kind, default = hints[field.name].__origin__, field.default
        if field.name in _LISTS and default is None:
            kind = str | None
        elif field.name in _LISTS:
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


LabeledSource = Annotated[
    Path,
    typer.Argument(help="Folder of class folders, .npz, CIFAR-10/100, or Parquet with labels.", show_default=False),
]


NETWORKS = (
    "small-resnet",
    "resnet18",
    "resnet34",
    "mobilenet-v2",
    "densenet121",
    "hlb-tiny",
    "hlb-small",
    "hlb-medium",
    "hlb-large",
)
RECIPES = (
    "fast",
    "scratch-200",
    "scratch-80",
    "conservative",
    "hlb-tiny",
    "hlb-small",
    "hlb-medium",
    "hlb-large",
    "r18-hlb",
    "linear-transfer",
    "linear-transfer-sgd",
    "linear-transfer-benchmark",
    "fine-tune",
    "fine-tune-narcissus",
)
# both restated from classifiers.networks and training.recipes, which need torch; a test compares them


@app.command("classifier")
def _classifier(
    source: LabeledSource,
    out: Out,
    network: Annotated[
        str | None, typer.Option(help=f"{', '.join(NETWORKS)}, or timm:NAME (default: the recipe's).")
    ] = None,
    recipe: Annotated[str, typer.Option(help=f"{', '.join(RECIPES)}.")] = "fast",
    epochs: Annotated[int | None, typer.Option(min=0, help="Instead of the recipe's.", show_default=False)] = None,
    test: Annotated[
        Path | None, typer.Option(help="Labeled images that the accuracy is measured on.", show_default=False)
    ] = None,
    extractor: Annotated[
        Path | None,
        typer.Option(
            help="Trained classifier to begin with: .safetensors, or a published checkpoint.", show_default=False
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Cut and average images down to this side.", show_default=False)
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    accelerate: Accelerate = False,
    checkpoint_minutes: CheckpointMinutes = 3.0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train a classifier on labeled images: the victim of attacks, or what purified data are for.

    OUT/model.safetensors and its card model.json stand there at the end.
    """
    use_threads(threads)
    from pureebm.training.victims import VictimSettings, train_victim

    settings = VictimSettings(
        network=network, recipe=recipe, epochs=epochs, extractor=extractor, size=size, seed=seed, precision=precision
    )
    workers = _workers(device, accelerate)
    with stop_on_signals() as stop:
        runtime = _runtime(workers, stop.is_set, checkpoint_minutes, overwrite)
        card = train_victim(source, out, settings, test=test, runtime=runtime)
    if json_ and workers.rank == 0:
        emit({"model": str(out / "model.safetensors"), "test_accuracy": card["test_accuracy"], "card": card})


app.command("energy")(_with_settings(_energy, EnergySettings))
app.command("ddpm")(_with_settings(_ddpm, DDPMSettings))
app.command("vq")(_with_settings(_vq, VQSettings))
app.command("student")(_with_settings(_student, StudentSettings))
