"""What a user of the installed package relies on before anything is computed."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.resources import files
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from pureebm.cli import options
from pureebm.cli.main import COMMANDS
from pureebm.energy.weights import DEFAULT_MODEL, MODELS, STUDENT, load_model


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_version_is_the_one_of_pyproject(root):
    assert version("pureebm") == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    citation = (root / "CITATION.cff").read_text()
    assert f"\nversion: {version('pureebm')}\n" in citation


def test_the_package_says_that_it_is_typed():
    assert (files("pureebm") / "py.typed").is_file()


def test_every_bundled_model_loads_and_has_a_card():
    assert DEFAULT_MODEL in MODELS
    for name in MODELS:
        card = load_model(name).card
        assert {"architecture", "config", "data", "sha256"} <= card.keys()
        assert "sampler" in (card["teacher"] if name == STUDENT else card)


def test_the_default_of_the_command_line_is_the_default_model():
    assert options.DEFAULT_MODEL == DEFAULT_MODEL


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda parts: " ".join(parts) or "root")
def test_help_imports_neither_torch_nor_numpy(command):
    code = (
        "import sys\nfrom pureebm.cli.main import run\n"
        f"assert run({[*command, '--help']!r}) == 0\n"
        "print({'torch', 'numpy', 'rich', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    done = python(code)
    assert done.stdout.startswith("Usage: ")
    assert done.stderr.strip() == "set()"


def test_help_takes_less_than_three_tenths_of_a_second():
    # Processor time: the least of five, so that a busy machine does not decide.
    seconds = []
    for _ in range(5):
        before = getrusage(RUSAGE_CHILDREN)
        python("from pureebm.cli.main import run; run(['--help'])")
        after = getrusage(RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


def test_every_command_of_the_readme_exists(root):
    commands = re.findall(r"^\s*(?:\$ )?pureebm (\w+)", (root / "README.md").read_text(), re.MULTILINE)
    assert commands and set(commands) <= COMMANDS.keys()
