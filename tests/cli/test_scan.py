"""`pureebm scan`: exit codes, the table, JSON and SARIF; the GitHub action and the pre-commit hook that call it."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pureebm.cli import scan as scan_command


def test_a_clean_set_is_zero_and_the_caveat_is_told(pureebm, image_folder, tiny_model):
    done = pureebm("scan", image_folder, "--model", tiny_model)
    assert (done.code, done.out) == (0, "")
    assert "64 images, 64 readable, 2 classes" in done.err
    assert "cannot rule out clean-label poison" in done.err and "Purify" in done.err


def test_the_help_says_what_a_scan_cannot_do(pureebm):
    text = " ".join(pureebm("scan", "--help").out.split())
    assert "Clean-label poison below the visible cannot be ruled out by scanning" in text
    assert "purify the set (`pureebm purify`) before training" in text


@pytest.mark.parametrize(("fail_on", "code"), [("low", 1), ("medium", 1), ("high", 0)])
def test_findings_of_the_level_or_above_are_one(pureebm, image_folder, tiny_model, tmp_path, fail_on, code):
    (image_folder / "cat" / "empty.png").write_bytes(b"")
    sarif = tmp_path / "new" / "scan.sarif"
    done = pureebm("scan", image_folder, "--model", tiny_model, "--fail-on", fail_on, "--sarif", sarif, "--json")
    assert done.code == code
    assert done.json["clean"] == (code == 0) and done.json["counts"] == {"high": 0, "medium": 1, "low": 0}
    assert [finding["items"] for finding in done.json["findings"]] == [["cat/empty.png"]]
    assert len(json.loads(sarif.read_text())["runs"][0]["results"]) == 1


def test_a_set_in_which_nothing_can_be_read_is_one_of_findings(pureebm, tiny_model, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    done = pureebm("scan", tmp_path / "images", "--model", tiny_model, "--json")
    assert (done.code, done.json["readable"], done.json["counts"]["medium"]) == (1, 0, 2)


def test_what_nobody_foresaw_is_in_the_sarif_too(pureebm, image_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise ArithmeticError("odd")

    monkeypatch.setattr(scan_command, "_scan", fail)
    done = pureebm("scan", image_folder, "--sarif", tmp_path / "a.sarif", "--json")
    assert done.code == 2 and "internal error" in done.json["error"]
    assert json.loads((tmp_path / "a.sarif").read_text())["runs"][0]["invocations"][0]["executionSuccessful"] is False


def test_people_see_level_rule_and_names(pureebm, image_folder, tiny_model):
    (image_folder / "cat" / "empty.png").write_bytes(b"")
    done = pureebm("scan", image_folder, "--model", tiny_model)
    assert done.code == 1
    assert "medium  unreadable-image: the file is empty (0 bytes) [cat/empty.png]" in done.err


def test_an_error_is_two_and_its_sarif_is_written_first(pureebm, tmp_path):
    sarif = tmp_path / "scan.sarif"
    done = pureebm("scan", tmp_path / "nothing", "--sarif", sarif, "--json")
    assert done.code == 2 and "there is no source" in done.json["error"]
    (run,) = json.loads(sarif.read_text())["runs"]
    assert run["results"] == [] and run["invocations"][0]["executionSuccessful"] is False
    unwritable = pureebm("scan", tmp_path / "nothing", "--sarif", tmp_path / "scan.sarif" / "x", "--json")
    assert unwritable.code == 2 and "cannot write" in unwritable.json["error"]


@pytest.mark.parametrize("command", [("scan", "--sarif"), ("score", "--out")])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    pureebm, image_folder, tiny_model, command, tmp_path
):
    (tmp_path / "file").write_text("x")
    done = pureebm(command[0], image_folder, "--model", tiny_model, command[1], tmp_path / "file" / "x", "--json")
    assert done.code == 2 and "cannot write" in done.json["error"] and "images/s" not in done.err


def options_of_scan() -> set[str]:
    text = CliRunner().invoke(scan_command.app, ["--help"]).output
    assert get_command(scan_command.app).name == "scan"
    return set(re.findall(r"--[a-z-]+", text))


def test_the_action_and_the_hook_run_commands_that_exist(root):
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((root / "action.yml").read_text())
    assert action["runs"]["using"] == "composite" and action["name"] and action["description"]
    steps = action["runs"]["steps"]
    assert all("uses" in step or step["shell"] == "bash" for step in steps)
    scripts = "\n".join(step["run"] for step in steps if "run" in step)
    inputs = set(re.findall(r"\$\{\{ *inputs\.([\w-]+) *\}\}", (root / "action.yml").read_text()))
    assert inputs == set(action["inputs"]) and "${{" not in scripts  # inputs reach scripts as variables only
    (line,) = [line for line in scripts.splitlines() if line.strip().startswith("pureebm scan")]
    assert set(re.findall(r"--[a-z-]+", line)) <= options_of_scan()
    hooks = yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in hooks] == ["pureebm-scan"]
    for hook in hooks:
        assert shlex.split(hook["entry"]) == ["pureebm", "scan"] and hook["pass_filenames"] is False
        assert hook["language"] == "python" and hook["name"] and hook["description"]
