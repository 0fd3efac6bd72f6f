"""Running the command line inside the test's process."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pureebm.cli.main import run


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """Stdout, which must be exactly one JSON object on one line."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


@pytest.fixture
def pureebm(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
