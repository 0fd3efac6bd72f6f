"""`pureebm verify`: purify some items of a finished target again, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import emit, say

if TYPE_CHECKING:
    from pureebm.purify.verify import Verification

app = typer.Typer(add_completion=False)


@app.command()
def verify(
    target: Annotated[Path, typer.Argument(help="What `pureebm purify` wrote.", show_default=False)],
    n: Annotated[int, typer.Option("--n", min=1, help="Items to purify again.")] = 20,
    source: Annotated[
        Path | None, typer.Option(help="Where the source is now (default: where it was).", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FILE|hf:owner/name", help="The weights, if moved.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the choice of items (default: others each time).", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda[:N]", help="Default: the recorded one.", show_default=False)
    ] = None,
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Purify random items of a finished target again and compare.

    Exit code 0: all as recorded. 1: something differs: bytes of the target, of the source, or of what purifying gives
    now, settings, or the model. 2: nothing could be verified (no finished target, no source).
    """
    place = options.parse_device(device) if device else None
    options.use_threads(threads)
    from pureebm.purify.verify import verify as verify_target

    done = verify_target(target, n=n, source=source, model=model, choice=seed, device=place)
    emit(done.to_json()) if json_ else _say(done)
    raise typer.Exit(done.exit_code)


def _say(done: Verification) -> None:
    for line in done.differs:
        say(line)
    for item in done.items:
        for line in item.differs:
            say(f"{item.id}: {line}")
    for note in done.notes:
        say(f"note: {note}")
    same = sum(not item.differs for item in done.items)
    say(f"{same:,} of {len(done.items):,} items are as recorded (chosen by --seed {done.chosen_by})")
