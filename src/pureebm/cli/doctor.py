"""`pureebm doctor`: is this machine fit, and does every fast path give what the slow one gives?"""

from __future__ import annotations

from typing import Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import emit, say

app = typer.Typer(add_completion=False)


@app.command()
def doctor(
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Check the compiled engine too; takes a minute or more.")
    ] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Check this machine and this installation.

    Exit code 0: all is well; what is only absent is optional. 1: a check failed, and results could be wrong here.
    """
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.evaluation.doctor import examine

    found = examine(device=place, compiled=compiled)
    if json_:
        emit(found.to_json())
        raise typer.Exit(found.exit_code)
    for name, value in found.environment.items():
        shown = ", ".join(f"{key} {one or 'missing'}" for key, one in value.items()) if name == "versions" else value
        say(f"{name.replace('_', ' ')}: {shown}")
    for check in found.checks:
        say(f"{check.status:>6}  {check.name}: {check.detail}")
    failed = sum(check.status == "failed" for check in found.checks)
    say(f"{failed} checks failed: do not trust results of this machine" if failed else "all is well")
    raise typer.Exit(found.exit_code)
