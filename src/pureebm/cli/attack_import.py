"""`pureebm attack import FORMAT PATH [SOURCE [TARGET]]`: poisons that other programs made, told of or put into a set.

One subcommand for each of `attacks.importers.FORMATS`, its options made of the reader's arguments, and `sets` for files
of whole sets. Asking for any of them, or for the list, imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pureebm.cli import options
from pureebm.cli.attack import goal_in_words, shared_parameters, tell_poisoned
from pureebm.cli.options import emit, say
from pureebm.errors import InputError

if TYPE_CHECKING:
    from pureebm.types import JSON

SETS = "sets"
SETS_SUMMARY = "a whole set of images: CIFAR10_TRAIN_Split.pth of Bullseye Polytope, <data key>.pt of PureGen"
SHARED = frozenset(
    "extractor extractor_network seed device threads verify victim victim_epochs overwrite json_".split()
)
"""What imports have in common with attacks."""

IMAGE_SETS = ("base", "test")
"""Arguments of readers that are sets of images: they come from SOURCE and --test."""

N_SETUPS = 20
"""So many setups are listed for people; --json has all."""


class ImportGroup(TyperGroup):
    """Makes the command of a format when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from pureebm.attacks.importers import FORMATS

        return [*FORMATS, SETS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        if cmd_name == SETS:
            one.command(SETS, help=f"Describe or extract {SETS_SUMMARY}.")(_sets)
        else:
            from pureebm.attacks.importers import FORMATS, reader_of

            run = _command_of(cmd_name, reader_of(cmd_name))  # refuses a name that is not there
            one.command(cmd_name, help=f"Import {FORMATS[cmd_name]}.")(run)
        return get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        from pureebm.attacks.importers import FORMATS, options_of

        rows = []
        for name, summary in FORMATS.items():
            own = [f"--{key.replace('_', '-')}" for key in options_of(name) if key not in (*IMAGE_SETS, "seed")]
            rows.append((name, f"{summary} ({', '.join(own)})"))
        with formatter.section("Formats, each with its own options"):
            formatter.write_dl([*rows, (SETS, f"{SETS_SUMMARY} (--set)")])


app = typer.Typer(cls=ImportGroup, no_args_is_help=True)


@app.callback()
def import_() -> None:
    """Poisons that other programs made: say what files hold, or put them into a data set. Nothing in them is run."""


def _import(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="What the other program wrote.", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE", help="The clean set that the poisons count in; measures the change.", show_default=False
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Argument(metavar="TARGET", help="Where the poisoned set goes; must not exist.", show_default=False),
    ] = None,
    *,
    test: Annotated[
        Path | None,
        typer.Option(help="Labeled test images, for --verify, --goal-image and some formats.", show_default=False),
    ] = None,
    goal_image: Annotated[
        int | None,
        typer.Option(
            min=0, help="Which image of --test is to be misread, where the files do not say.", show_default=False
        ),
    ] = None,
) -> None:
    """The arguments that all formats share; `_command_of` adds a format's own and those of `SHARED`."""


def _command_of(name: str, reader: Callable[..., Any]) -> Callable[..., None]:
    """The command of one format: its arguments, the reader's options, then what all formats share."""
    from pureebm.attacks.importers import options_of

    own = {key: _parameter(reader, key, text) for key, text in options_of(name).items() if key not in IMAGE_SETS}
    takes_seed = own.pop("seed", None) is not None
    path, source, into, *rest = inspect.signature(_import, eval_str=True).parameters.values()
    shared = [one for key, one in shared_parameters().items() if key in SHARED]

    def run(**values: Any) -> None:
        mine = {key: values.pop(key) for key in own} | ({"seed": values["seed"]} if takes_seed else {})
        _run(name, {key: value for key, value in mine.items() if value is not None}, **values)

    order = [path, source, into, *own.values(), *rest, *shared]
    plain = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in order]
    run.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in plain}
    return run


def _parameter(reader: Callable[..., Any], name: str, text: str) -> inspect.Parameter:
    """An argument of a reader as an option."""
    default = inspect.signature(reader).parameters[name].default
    option = typer.Option(help=text, show_default=default is not None)
    kind = get_type_hints(reader)[name]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _run(
    format: str,
    own: dict[str, Any],
    *,
    path: Path,
    source: Path | None,
    into: Path | None,
    test: Path | None,
    goal_image: int | None,
    extractor: list[Path] | None,
    extractor_network: str | None,
    seed: int,
    device: str,
    threads: int | None,
    verify: bool,
    victim: str | None,
    victim_epochs: int | None,
    overwrite: bool,
    json_: bool,
) -> None:
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation.import_job import ImportSettings, describe_import, run_import

    settings = ImportSettings(
        seed=seed,
        test=test,
        goal_image=goal_image,
        extractors=tuple(extractor or ()),
        extractor_network=extractor_network,
        device=place,
        verify=verify,
        victim=victim,
        victim_epochs=victim_epochs,
        overwrite=overwrite,
    )
    if source is None or into is None:
        if verify or overwrite:
            raise InputError("without SOURCE and TARGET nothing is written; leave --verify and --overwrite out")
        told = describe_import(format, path, own, settings, source=source)
        emit(told) if json_ else _tell(told)
        return
    command = options.command()
    record = run_import(format, path, source, into, own, settings, report=say, command=command)
    emit(record) if json_ else tell_poisoned(record)


def _sets(
    path: Annotated[Path, typer.Argument(help="The file.", show_default=False)],
    target: Annotated[
        Path | None, typer.Argument(help="Where one of its sets goes, as .npz.", show_default=False)
    ] = None,
    *,
    set_: Annotated[
        str | None, typer.Option("--set", metavar="NAME", help="Which one, if there are several.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
    json_: options.Json = False,
) -> None:
    from pureebm.evaluation.import_job import run_import_set

    told = run_import_set(path, target, name=set_, overwrite=overwrite)
    if json_:
        emit(told)
        return
    for name, one in told["sets"].items():
        say(f"{name}: {one['images']:,} images of {_extent(one['size'])}, {_labels(one['labels'], None)}")
    if target is not None:
        say(f"-> {target}")


def _tell(told: JSON) -> None:
    setups, names = told["setups"], told["class_names"]
    if len(setups) > 1:
        say(f"{told['path']}: {len(setups)} setups")
    for setup in setups[:N_SETUPS]:
        plural = "" if setup["poisons"] == 1 else "s"
        say(f"{setup['poisons']:,} poison{plural} of {_extent(setup['size'])}, {_labels(setup['labels'], names)}")
        say(f"  they replace images of: {setup['split']}")
        unknown = f"not told by the files; {setup.get('no_goal', 'they hold none')}"
        say(f"  the goal: {goal_in_words(setup['goal'], names) if setup['goal'] else unknown}")
        say(f"  {_change(setup)}")
        for one in setup["files"]:
            say(f"  {one.get('file') or one.get('folder')}  sha256 {one['sha256']}")
    if len(setups) > N_SETUPS:
        say(f".. and {len(setups) - N_SETUPS} more; --json lists all")


def _labels(counts: dict[str, int], names: list[str] | None) -> str:
    def called(label: str) -> str:
        known = names is not None and int(label) < len(names)
        return f"{label} ({names[int(label)]})" if names is not None and known else label

    parts = [f"{count:,} of class {called(label)}" for label, count in counts.items()]
    return ", ".join(parts[:10]) + (f" and {len(parts) - 10} more classes" if len(parts) > 10 else "") or "none labeled"


def _change(setup: JSON) -> str:
    budget = "no budget is told" if setup["eps"] is None else f"budget {setup['eps']:g}/255"
    if setup["max_change"] is None:
        return f"{budget}; give SOURCE to measure the change"
    return f"{budget}; the largest change is {setup['max_change']}/255"


def _extent(size: list[int]) -> str:
    return f"{size[1]} x {size[0]}"
