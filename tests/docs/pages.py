"""The documents as a reader meets them: their blocks of code, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.main import get_command

from pureebm.cli.main import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


@dataclass(frozen=True)
class Block:
    """language: what stands behind the opening fence; line: where the fence stands."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text[: one.start()].count("\n") + 1, one[1], one[2]) for one in found]


def spans(page: str) -> list[str]:
    """All code within sentences and tables."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose)]


def command_lines(block: Block) -> Iterator[list[str]]:
    """What is given to `pureebm` in a block of shell, on its own or through another program."""
    for line in block.text.replace("\\\n", " ").splitlines():
        yield from _commands(shlex.split(re.sub(r"\$(\w+|\{[^}]*\})", "1", line), comments=True))


def _commands(words: list[str]) -> Iterator[list[str]]:
    for at, word in enumerate(words):
        if re.fullmatch(r"(\S*/)?pureebm(-web)?", word) and (
            at == 0 or words[at + 1 : at + 2] in [[c] for c in COMMANDS]
        ):
            yield words[at + 1 :]
            return
        if word.startswith("pureebm "):  # bash -c '...'
            yield shlex.split(word)[1:]


def parse(words: list[str]) -> None:
    """Let the real command line read these words, and run nothing. Raises what it would refuse them with."""
    command: Any = get_command(app)
    context = command.make_context("pureebm", list(words))
    while hasattr(command, "list_commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


def commands_below(words: list[str]) -> list[Any]:
    """The commands that these words name; of a group all below it, where they do not say which one."""
    command: Any = get_command(app)
    context = command.make_context("pureebm", ["models"], resilient_parsing=True)
    for word in words:
        if not hasattr(command, "list_commands") or word not in command.list_commands(context):
            break
        command = command.get_command(context, word)
        context = type(context)(command, info_name=word, parent=context)
    return list(_leaves(command, context))


def _leaves(command: Any, context: Any) -> Iterator[Any]:
    if not hasattr(command, "list_commands"):
        yield command
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        yield from _leaves(below, type(context)(below, info_name=name, parent=context))


def flags(command: Any) -> set[str]:
    """All that a command takes with a dash."""
    return {"--help", "--version"} | {
        flag for one in command.params for flag in (*one.opts, *one.secondary_opts) if flag.startswith("-")
    }
