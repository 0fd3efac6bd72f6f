"""Every block of code in the documents is what the program takes."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from tests.docs.pages import NAMES, ROOT, Block, blocks, command_lines, commands_below, flags, parse, spans

from pureebm.cli.main import COMMANDS, UsageError
from pureebm.errors import InputError
from pureebm.evaluation.scenarios import load_suite

BLOCKS = [block for page in NAMES for block in blocks(page)]
OTHERS = {"--array", "--export", "--network", "--user"}
"""Options of sbatch and docker that the text speaks of."""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_has_a_language_that_is_checked() -> None:
    assert len(BLOCKS) > 40 and len(NAMES) > 25
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "sh", "toml", "yaml"}


@pytest.mark.parametrize("block", of("sh", "bash", ""), ids=str)
def test_the_command_line_takes_what_a_block_of_shell_says(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in command_lines(block):
        parse(words)


def test_most_blocks_of_shell_hold_commands_of_ours_and_wrong_ones_are_seen() -> None:
    found = [words for block in of("sh", "bash", "") for words in command_lines(block)]
    assert len(found) > 80 and {words[0] for words in found} == set(COMMANDS)
    with pytest.raises(UsageError):
        parse(["purify", "a", "b", "--step", "3"])
    with pytest.raises(InputError, match="unknown command"):
        parse(["purfy", "a", "b"])


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_a_block_of_python_compiles_and_finds_what_it_imports(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = module_of(node)
            missing = [one.name for one in node.names if not hasattr(module, one.name)]
            for name in missing:  # a module of a package, perhaps
                importlib.import_module(f"{node.module}.{name}")


def module_of(node: ast.ImportFrom) -> ModuleType:
    """What is imported from; a test is skipped where another library is not installed."""
    assert node.module is not None
    try:
        return importlib.import_module(node.module)
    except (ImportError, RuntimeError, InputError) as error:  # RuntimeError: torchvision of another torch
        assert not node.module.startswith("pureebm") or "pip install" in str(error), error
        pytest.skip(str(error))


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_block_of_toml_is_a_suite(block: Block, tmp_path: Path) -> None:
    assert tomllib.loads(block.text)
    path = tmp_path / "mine.toml"
    path.write_text(block.text)
    assert load_suite(str(path)).scenarios


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_a_block_of_yaml_names_the_action_and_the_hook_as_they_are(block: Block) -> None:
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    hooks = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    told = yaml.safe_load(block.text)
    steps = [step for step in told if step["uses"].startswith("OWNER/")] if isinstance(told, list) else []
    named = [hook["id"] for repo in told["repos"] for hook in repo["hooks"]] if isinstance(told, dict) else []
    assert len(steps) + len(named) == 1
    assert all(set(step["with"]) <= set(inputs) for step in steps) and set(named) <= hooks


@pytest.mark.parametrize("page", NAMES)
def test_commands_and_options_in_sentences_exist(page: str) -> None:
    every = OTHERS.union(*(flags(command) for command in commands_below([])))
    for span in spans(page):
        if span.startswith("--"):
            assert re.match(r"[\w-]+", span)[0] in every, span  # type: ignore[index]
        if span.startswith("pureebm "):
            words = shlex.split(span.removeprefix("pureebm "), comments=True)
            assert words[0] in COMMANDS or words[0].startswith("-"), span
            names = [name for word in words[:1] for name in word.split("|")] + words[1:]
            known = set().union(*(flags(command) for command in commands_below(names)))
            asked = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert asked <= known, (span, asked - known)


def test_every_command_has_a_page() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == {*COMMANDS, "index"}
