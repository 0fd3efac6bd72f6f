"""What docs/container.md promises of the Containerfile, as far as its text shows it."""

from __future__ import annotations

import re
import tomllib

from tests.docs.pages import ROOT, blocks

LINES = [
    line.split(maxsplit=1)
    for line in (ROOT / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
ORDERS = [order for order, _ in LINES]


def told(order: str) -> list[str]:
    return [rest for one, rest in LINES if one == order]


def test_it_runs_as_a_user_without_rights_and_never_as_root_again() -> None:
    (user,) = told("USER")
    assert all(int(number) >= 1000 for number in user.split(":"))
    assert "RUN" not in ORDERS[ORDERS.index("USER") :] and "sudo" not in str(LINES)


def test_the_base_is_pinned_and_fits_the_package() -> None:
    (base,) = told("FROM")
    version = re.fullmatch(r"docker\.io/library/python:(\d+)\.(\d+)\.\d+-slim-\w+", base)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version and f">={version[1]}.{version[2]}" == project["requires-python"]
    (torch,) = (rest for rest in told("ARG") if rest.startswith("TORCH="))
    assert torch.split('"')[1].split()[0] in (ROOT / "Makefile").read_text()


def test_it_copies_what_the_package_is_built_of_and_nothing_else() -> None:
    assert told("COPY") == ["pyproject.toml README.md LICENSE ./", "src src"] and "ADD" not in ORDERS
    assert all((ROOT / name).exists() for name in ("pyproject.toml", "README.md", "LICENSE", "src"))


def test_what_is_copied_travels_to_the_builder_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*" and [line[1:] for line in rules if line.startswith("!")] == [
        name for copied in told("COPY") for name in copied.split()[:-1]
    ]


def test_nothing_is_fetched_when_it_runs_and_the_page_cuts_the_network() -> None:
    (env,) = told("ENV")
    assert "HF_HUB_OFFLINE=1" in env and told("ENTRYPOINT") == ['["pureebm"]']
    first = blocks("docs/container.md")[0].text
    for flag in ("--network none", "--read-only", "--cap-drop ALL", "no-new-privileges"):
        assert flag in first
