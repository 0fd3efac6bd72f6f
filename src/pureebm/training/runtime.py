"""What does not change the result of a long training: where it runs, who is told, how often it is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pureebm.training.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """report: told of progress, in lines. stop: asked between steps. command: what the card says makes it again."""

    workers: Workers
    report: Callable[[str], None] = lambda line: None
    stop: Callable[[], bool] = lambda: False
    checkpoint_minutes: float = 3.0
    overwrite: bool = False
    command: str = "from Python"
