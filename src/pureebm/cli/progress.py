"""How a long job is shown and stopped: a bar on a terminal, plain lines elsewhere; Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from pureebm.cli.options import say

if TYPE_CHECKING:
    from pureebm.types import Progress, ProgressReport

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one ends the process as if nobody listened."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        stop.set()
        os.write(2, b"stopping after the current batch; once more to kill\n")  # print is not safe in a handler

    before = {each: signal.signal(each, on_signal) for each in signals}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A callback that shows reports on stderr: a bar on a terminal, else a line every ten seconds and at the end."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _lines()


def describe(report: ProgressReport) -> str:
    """Done, total, rate, ETA, resumed and failed as one line."""
    parts = [f"{report.done:,}/{report.total:,}", f"{report.images_per_second:,.1f} images/s"]
    parts.append(f"ETA {'?' if report.eta_seconds is None else duration(report.eta_seconds)}")
    return ", ".join([*parts, f"resumed {report.resumed:,}", f"failed {report.failed:,}"])


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _lines() -> Progress:
    last = time.monotonic()

    def show(report: ProgressReport) -> None:
        nonlocal last
        if report.done == report.total or time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(describe(report))

    return show


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def show(report: ProgressReport) -> None:
            bar.update(task, total=report.total, completed=report.done, description=describe(report))

        yield show
