"""`pureebm attack NAME`: writes a poisoned copy of a data set, to try defenses on, and a record of what was done.

One subcommand for each entry of `attacks.registry`, its options made of the attack's `Config`, and `import` for what
other programs made (`attack_import`). The list of attacks answers without torch; an attack's own --help imports the
attack, and torch with it.
"""

from __future__ import annotations

import inspect
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from pureebm.attacks.registry import ATTACKS, AttackEntry, find_attack
from pureebm.cli import options
from pureebm.cli.options import emit, say

if TYPE_CHECKING:
    from pureebm.types import JSON


class AttackGroup(TyperGroup):
    """Makes the command of an attack when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*ATTACKS, IMPORT]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name == IMPORT:
            from pureebm.cli import attack_import

            attack_import.app.rich_markup_mode = None
            return get_group(attack_import.app)
        entry = find_attack(cmd_name)
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        one.command(cmd_name, help=_help_of(entry))(_command_of(cmd_name, entry))
        return get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for kind, title in _TITLES.items():
            rows = [(name, entry.summary) for name, entry in ATTACKS.items() if entry.kind == kind]
            with formatter.section(title):
                formatter.write_dl(rows)
        with formatter.section("Made by other programs"):
            formatter.write_dl([(IMPORT, "Describe their poisons, or put them into a data set.")])


IMPORT = "import"
N_PAIRS = 10
"""So many pairs of classes of a goal are told to people; the record has all."""

_TITLES = {
    "triggered": "Triggered: any image with the trigger is misread",
    "triggerless": "Triggerless: one chosen image is misread",
    "availability": "Availability: everything is misread",
}

app = typer.Typer(cls=AttackGroup, no_args_is_help=True)


@app.callback()
def attack() -> None:
    """Write a poisoned copy of a data set, to try defenses on."""


def _attack(
    source: Annotated[
        Path,
        typer.Argument(help="Folder of class folders, .npz, CIFAR-10/100, or Parquet with labels.", show_default=False),
    ],
    target: Annotated[Path, typer.Argument(help="Where the poisoned set goes; must not exist.", show_default=False)],
    *,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Labeled images for targets and --verify (default: a tenth of SOURCE, held out).", show_default=False
        ),
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Labeled images of other classes (narcissus needs them).", show_default=False)
    ] = None,
    surrogate: Annotated[
        str, typer.Option(metavar="NETWORK", help="What the attacker trains, as `pureebm train classifier` names it.")
    ] = "small-resnet",
    surrogate_epochs: Annotated[int | None, typer.Option(min=0, help="Of its training.", show_default=False)] = None,
    extractor: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A trained classifier, for transfer: .safetensors, or a published checkpoint; repeatable.",
            show_default=False,
        ),
    ] = None,
    extractor_network: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="What a published checkpoint is (resnet18).", show_default=False),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder to keep trained surrogates in.", show_default=False)
    ] = None,
    through: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Energy or student that the attacker knows and optimizes through (narcissus).",
            show_default=False,
        ),
    ] = None,
    through_steps: Annotated[
        int | None, typer.Option(min=1, help="Only the first updates of that energy's chain.", show_default=False)
    ] = None,
    through_in: Annotated[
        Literal["generation", "surrogate", "both"],
        typer.Option(help="Where: the trigger is made through it, the surrogate trained on what comes out, or both."),
    ] = "generation",
    through_noise: Annotated[
        Literal["fresh", "fixed"], typer.Option(help="Drawn anew at every step of the attacker, or the same at all.")
    ] = "fresh",
    through_gradient: Annotated[
        Literal["exact", "straight"], typer.Option(help="straight: runs the purifier and takes no gradient of it.")
    ] = "exact",
    seed: options.Seed = 0,
    limit: options.Limit = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Train small victims with and without the poison, and compare.")
    ] = False,
    victim: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="What --verify trains (small-resnet; for transfer the extractor)."),
    ] = None,
    victim_epochs: Annotated[
        int | None, typer.Option(min=0, help="Of the victims' training.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET, if this program made it.")] = False,
    json_: options.Json = False,
) -> None:
    """The options that all attacks share; `_command_of` adds an attack's own."""


def shared_parameters() -> dict[str, inspect.Parameter]:
    """Of the command of any attack, by name."""
    return dict(inspect.signature(_attack, eval_str=True).parameters)


def _command_of(name: str, entry: AttackEntry) -> Callable[..., None]:
    """The command of one attack: arguments, the fields of its Config, then what all attacks share.

    Where both have a name (the number of a surrogate's epochs, say), it is the attack's.
    """
    config = entry.load().Config
    own = {one.name: _parameter(config, one.name) for one in fields(config)}
    shared = {key: one for key, one in shared_parameters().items() if key not in own}

    def run(**values: Any) -> None:
        mine = {key: _tuple_of(values[key], getattr(config(), key)) for key in own}
        _run(name, config(**mine), **{key: value for key, value in values.items() if key not in own})

    order = [shared.pop("source"), shared.pop("target"), *own.values(), *shared.values()]
    plain = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in order]
    run.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in plain}
    return run


def _help_of(entry: AttackEntry) -> str:
    labels = "labels stay" if entry.clean_label else "labels change"
    module = entry.load().__doc__ or ""
    about = module.partition("\n\nSource:")[0].split("\n\n", 1)[0]
    return f"{about.removesuffix('.')} ({entry.kind}; {labels})."


def _parameter(config: Any, name: str) -> inspect.Parameter:
    """A field of a Config as an option; a tuple is given with commas."""
    hint, default = get_type_hints(config, include_extras=True)[name], getattr(config(), name)
    kind, text = hint.__origin__, hint.__metadata__[0]
    if any(get_origin(one) is tuple for one in (kind, *_members(kind))):
        kind, default = str, None if default is None else ",".join(map(str, default))
    option = typer.Option(help=text[:1].upper() + text[1:] + ".", show_default=default is not None)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()


def _tuple_of(value: Any, default: Any) -> Any:
    """The value of a tuple's option, its members of the default's type."""
    if not isinstance(default, tuple) or not isinstance(value, str):
        return value
    kind = type(default[0]) if default else str
    return tuple(kind(part) for part in value.split(",") if part)


def _run(
    name: str,
    config: Any,
    *,
    source: Path,
    target: Path,
    test: Path | None,
    public: Path | None,
    extractor: list[Path] | None,
    extractor_network: str | None,
    cache: Path | None,
    through: str | None,
    through_steps: int | None,
    through_in: str,
    through_noise: str,
    through_gradient: str,
    seed: int,
    limit: int | None,
    device: str,
    threads: int | None,
    verify: bool,
    victim: str | None,
    victim_epochs: int | None,
    overwrite: bool,
    json_: bool,
    surrogate: str = "small-resnet",
    surrogate_epochs: int | None = None,
) -> None:
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation.attack_job import AttackSettings, run_attack

    settings = AttackSettings(
        seed=seed,
        limit=limit,
        test=test,
        public=public,
        surrogate=surrogate,
        surrogate_epochs=surrogate_epochs,
        extractors=tuple(extractor or ()),
        extractor_network=extractor_network,
        cache=cache,
        through=through,
        through_steps=through_steps,
        through_in=through_in,
        through_noise=through_noise,
        through_gradient=through_gradient,
        device=place,
        verify=verify,
        victim=victim,
        victim_epochs=victim_epochs,
        overwrite=overwrite,
    )
    command = options.command()
    record = run_attack(name, source, target, config, settings, report=say, command=command)
    emit(record) if json_ else tell_poisoned(record)


def tell_poisoned(record: JSON) -> None:
    """The record of a poisoned set, in words."""
    poisons, names = record["poisons"], record["class_names"]
    labels = f", {poisons['relabeled']:,} of them with new labels" if poisons["relabeled"] else ", labels untouched"
    say(f"{poisons['count']:,} of {record['images']:,} images poisoned{labels}")
    say(f"the goal: {goal_in_words(record['goal'], names)}")
    if record["held_out"]:
        say(f"held out: {len(record['held_out']):,} images stay as they were; train no victim on them (see the record)")
    if "verified" in record:
        _tell_verified(record["verified"])
    place = record["target"]
    if record["source"]["kind"] == "csv":
        place += f", a folder with {Path(record['source']['path']).name} in it"
    say(f"{record['seconds']:.1f} s -> {place}")


def goal_in_words(goal: JSON, names: list[str] | None) -> str:
    """A goal as `attacks.storage.describe_goal` gives it; names: of the classes."""

    def called(label: int) -> str:
        return f"{label} ({names[label]})" if names and label < len(names) else str(label)

    if goal["kind"] == "availability":
        return "the accuracy on clean images collapses"
    if goal["kind"] == "targets":
        pairs = Counter(zip(goal["true_classes"], goal["intended_classes"], strict=True))
        told = [
            f"{'an image' if n == 1 else f'{n:,} images'} of class {called(true)} {'is' if n == 1 else 'are'} read as "
            f"{called(wanted)}"
            for (true, wanted), n in pairs.items()
        ]
        return "; ".join(told[:N_PAIRS]) + (f"; and {len(told) - N_PAIRS} more such pairs" * (len(told) > N_PAIRS))
    whose = "images" if goal["source_class"] is None else f"images of class {called(goal['source_class'])}"
    aim = "the class after their own" if goal["target_class"] is None else f"class {called(goal['target_class'])}"
    return f"{whose} with the trigger are read as {aim}"


def _tell_verified(verified: JSON) -> None:
    clean, poisoned = verified["clean"], verified["poisoned"]
    say(f"accuracy: {clean['accuracy']:.1%} of a victim of the clean set, {poisoned['accuracy']:.1%} of the poisoned")
    if "success" in verified:
        say(f"attack success: {verified['success']:.1%} (floor, by the clean victim: {verified['floor']:.1%})")
        say(f"attacked images still read as what they show: {poisoned['still_true']:.1%}")
