"""The `pureebm` command: finds the subcommand, runs it, and turns what happened into an exit code.

0 done; 1 done, but some items failed; 2 wrong usage, bad input, refused; 130 interrupted. Human text goes to
stderr; with --json, stdout carries exactly one JSON object, on errors too. Subcommands are imported when they
are called, and torch not before one needs it, so that every --help answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from pureebm.cli.options import say
from pureebm.errors import InputError, PureebmError

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "purify": "Purify an image set: the same set comes out, harmless.",
        "score": "Write the energy of every image, highest first.",
        "scan": "Look for what is wrong in an image set; no substitute for purifying.",
        "verify": "Purify random items of a finished target again and compare.",
        "train": "Train energy models, DDPMs, autoencoders, students and classifiers.",
        "attack": "Write a poisoned copy of a data set, to try defenses on.",
        "bench": "Measure attacks and defenses on small victims.",
        "models": "List, describe and verify the bundled models.",
        "doctor": "Check this machine and this installation.",
        "serve": "Serve the web page: look at a set, try settings, purify it.",
        "demo": "The whole story on bundled images, in under two minutes.",
    }
)
"""Name -> summary. The command is `app` of the module `pureebm.cli.NAME`."""

GROUPS = frozenset({"train", "attack", "bench", "models"})
"""Commands that have subcommands of their own."""

UsageError: Any = typer.BadParameter.__mro__[1]  # the base of usage errors, wherever typer keeps its copy of click


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise InputError(f"unknown command {cmd_name!r}{hint} Known: {', '.join(COMMANDS)}")
        app = importlib.import_module(f"pureebm.cli.{cmd_name}").app
        app.rich_markup_mode = None  # plain help: rich alone takes as long to import as all the rest
        if cmd_name not in GROUPS:
            return get_command(app)
        group = get_group(app)
        group.help = COMMANDS[cmd_name]
        return group

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pureebm {version('pureebm')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hand over an image training set you do not trust; get the same set back, harmless."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until a job listens itself
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code is returned, never raised."""
    try:
        code = get_command(app).main(arguments, prog_name="pureebm", standalone_mode=False)
    except PureebmError as error:
        return _fail(str(error), error.exit_code, arguments)
    except OSError as error:
        return _fail(_describe(error), InputError.exit_code, arguments)
    except UsageError as error:
        if "--json" not in arguments:
            error.show()
            return InputError.exit_code
        return _fail(error.format_message(), InputError.exit_code, arguments)
    except Exception as error:
        traceback.print_exc()
        return _fail(f"internal error, please report it: {error!r}", InputError.exit_code, arguments)
    if code == 130:  # typer's answer to a Ctrl-C that no job waited for
        return _fail("interrupted; repeat the same command to go on", 130, arguments)
    return code if isinstance(code, int) else 0


def _describe(error: OSError) -> str:
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{names or 'input or output'}: {error.strerror or error}"


def _fail(message: str, exit_code: int, arguments: list[str]) -> int:
    say(message if exit_code == 130 else f"Error: {message}")
    if "--json" in arguments:
        print(json.dumps({"error": message, "exit_code": exit_code}))
    return exit_code


if __name__ == "__main__":
    main()
