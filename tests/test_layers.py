"""The floors of the house: a module imports from lower floors and from its own package only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pureebm

PACKAGE = Path(pureebm.__file__).parent
FLOORS = [
    ("types", "errors"),
    ("data", "sampling"),
    ("energy", "diffusion"),
    ("purify", "classifiers"),
    ("training", "attacks", "defenses"),
    ("evaluation",),
    ("integrations",),
    ("web",),
    ("cli",),
]
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """(top-level room, line) of every import of our own package, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("pureebm."):
                yield name.split(".")[1], node.lineno


def test_imports_point_down_the_floors():
    modules = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    n_imports = 0
    for path in modules:
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert here in HEIGHT, f"{path} stands on no floor"
        for there, line in imported_rooms(path):
            n_imports += 1
            assert here == there or HEIGHT[there] < HEIGHT[here], f"{path}:{line} imports {there}"
    assert len(modules) > 20 and n_imports > 20


def test_there_is_no_utils_module():
    assert not [path for path in PACKAGE.rglob("*") if "util" in path.stem]


def test_only_the_command_line_prints():
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "cli"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        assert not prints, f"{path} prints in lines {prints}"
