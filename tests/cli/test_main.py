"""Exit codes, and what goes to stdout and stderr when something is wrong."""

import pytest

from pureebm.cli import main
from pureebm.cli.main import COMMANDS


def test_help_lists_every_command(pureebm):
    done = pureebm("--help")
    assert done.code == 0
    for name, summary in COMMANDS.items():
        assert name in done.out and summary in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_opens_with_its_summary(pureebm, name):
    done = pureebm(name, "--help")
    assert done.code == 0
    assert COMMANDS[name] in done.out


def test_an_unknown_command_is_named_with_the_nearest_known_one(pureebm):
    done = pureebm("purfy")
    assert (done.code, done.out) == (2, "")
    assert "unknown command 'purfy'; did you mean 'purify'?" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["purify"],
        ["purify", "a", "b", "--no-such"],
        ["purify", "a", "b", "--seed", "x"],
        ["models", "lst"],
    ],
)
def test_wrong_usage_is_two_and_one_json_object(pureebm, arguments):
    plain = pureebm(*arguments)
    assert (plain.code, plain.out) == (2, "")
    assert plain.err
    structured = pureebm(*arguments, "--json")
    assert structured.code == 2
    assert structured.json.keys() == {"error", "exit_code"}
    assert structured.json["exit_code"] == 2


@pytest.mark.parametrize(
    "raised, code",
    [
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file or directory", "x.npz"), 2),
        (RuntimeError("?"), 2),
    ],
)
def test_whatever_a_command_raises_ends_in_a_message_and_a_code(pureebm, monkeypatch, raised, code):
    def broken(text):
        raise raised

    monkeypatch.setattr(main.importlib.import_module("pureebm.cli.options"), "parse_device", broken)
    done = pureebm("score", "x", "--json")
    assert done.code == done.json["exit_code"] == code
    assert done.json["error"] in done.err


def test_the_version_is_printed_on_stdout(pureebm):
    assert pureebm("--version").out.startswith("pureebm 0.")
