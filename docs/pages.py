"""What the site has and docs/ has not: README, SECURITY and CONTRIBUTING as pages, and the options of every command.

`mkdocs build` calls the functions `on_*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from typer.main import get_command

import pureebm
from pureebm.cli.main import COMMANDS, app

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md"}
"""File of the checkout -> page of the site."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside of docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=inside((ROOT / name).read_text("utf-8"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Mend links that lead out of docs/, and put what the code itself says below the pages on it."""
    name = page.file.src_uri
    if name == "python.md":
        markdown += reference()
    elif name.startswith("commands/") and Path(name).stem in COMMANDS:
        markdown += "\n" + "\n".join(options(Path(name).stem))
    for outside, inner in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{outside}", f"]({'../' * name.count('/')}{inner}", markdown)
    return markdown


def inside(text: str) -> str:
    """A text of the checkout's root with links as a page of the site has them."""
    text = text.replace("](docs/", "](")
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text


def options(name: str) -> Iterator[str]:
    """Markdown of a command's help, and of those below it."""
    root = get_command(app)
    context: Any = root.make_context("pureebm", [name], resilient_parsing=True)
    yield from _described(root.get_command(context, name), f"pureebm {name}", context)  # type: ignore[attr-defined]


def _described(command: Any, path: str, above: Any) -> Iterator[str]:
    context = type(above)(command, info_name=path.rpartition(" ")[2], parent=above)
    yield f"## `{path}`\n"
    yield f"{_plain(command.help or '')}\n"
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _described(command.get_command(context, name), f"{path} {name}", context)
        return
    records = [one.get_help_record(context) for one in command.get_params(context) if one.name != "help"]
    yield "| argument or option | |\n| --- | --- |"
    yield from (f"| {_code(names)} | {_plain(text).replace('|', '&#124;')} |" for names, text in filter(None, records))
    yield ""


def reference() -> str:
    """Directives for mkdocstrings: all that `pureebm` exports."""
    homes = pureebm._HOME
    return "".join(f"\n::: pureebm.{homes[name]}.{name}\n" for name in pureebm.__all__)


def _code(text: str) -> str:
    """As code in a cell of a table, where a bar would end it."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>"


def _plain(text: str) -> str:
    """Help as it is, where Markdown would read marks in it."""
    return re.sub(r"([<*_])", r"\\\1", text).replace("  [", " [")
