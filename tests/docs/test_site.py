"""The site builds without a network and without a broken link, and shows nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, commands_below, flags

import pureebm
from pureebm.cli.main import COMMANDS

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
OFFLINE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_it_has_all_pages_and_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text("utf-8")
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text)
        assert [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)] == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"url\(\s*[\"']?(?:https?:)?//", style.read_text("utf-8")) == []


def test_no_markup_is_left_as_text(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"\|\s*-{3}|```|^\s*::: ", re.sub(r"<[^>]+>", "", text), re.MULTILINE), page


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_a_command_tells_every_option(site: Path, name: str) -> None:
    text = unescape(re.sub(r"<[^>]+>", "", (site / "commands" / f"{name}.html").read_text("utf-8")))
    for command in commands_below([name]):
        assert {flag for flag in flags(command) - {"-h", "--help", "--version"} if flag not in text} == set()


def test_the_reference_describes_all_that_the_package_exports(site: Path) -> None:
    text = (site / "python.html").read_text("utf-8")
    assert [name for name in pureebm.__all__ if f".{name}" not in text] == []
