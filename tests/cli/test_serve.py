"""The command around the page: what it prints, what it refuses, how it ends."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from pureebm.cli import serve as command

pytest.importorskip("uvicorn")


def start(root, workspace, *options):
    arguments = ["serve", "--root", root, "--workspace", workspace, "--port", "0", "--json", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "pureebm.cli.main", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PUREEBM_TOKEN": ""},
    )


def test_it_says_its_address_answers_there_and_ends_on_a_signal(image_folder, tmp_path, tiny_model):
    with start(image_folder, tmp_path / "w", "--model", tiny_model) as server:
        told = json.loads(server.stdout.readline())
        assert told["token"] is None and told["url"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(told["url"], timeout=60) as answer:
            assert "Use this folder" in answer.read().decode()
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert "Traceback" not in server.stderr.read()


@pytest.mark.slow
def test_another_address_makes_up_a_token_that_is_asked_for(image_folder, tmp_path, tiny_model):
    with start(image_folder, tmp_path / "w", "--model", tiny_model, "--host", "0.0.0.0") as server:
        told = json.loads(server.stdout.readline())
        assert len(told["token"]) >= 32 and told["url"].endswith(f"/?token={told['token']}")
        here = f"http://127.0.0.1:{told['url'].rpartition(':')[2].partition('/')[0]}"
        asked = urllib.request.Request(f"{here}/jobs", headers={"Authorization": f"Bearer {told['token']}"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert "<h1>Jobs</h1>" in answer.read().decode()
        with urllib.request.urlopen(f"{here}/jobs", timeout=60) as answer:
            assert answer.url == f"{here}/login"
        forged = urllib.request.Request(f"{here}/jobs", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="421"):
            urllib.request.urlopen(forged, timeout=60)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--token", "short"], "at least 16 letters"),
        (["--root", "/no/such/folder"], "there is no folder"),
        (["--host", "no.such.host.invalid"], "cannot listen on"),
        (["--workspace", "/proc/none"], "cannot make the workspace"),
    ],
)
def test_what_cannot_be_served_is_refused(pureebm, tmp_path, options, message):
    done = pureebm("serve", "--workspace", tmp_path / "w", "--root", tmp_path, "--port", "0", *options)
    assert done.code == 2 and message in done.err


def test_without_the_extra_it_says_how_to_get_it(pureebm, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = pureebm("serve")
    assert done.code == 2 and "pip install 'pureebm[web]'" in done.err


def test_the_workspace_is_outside_of_the_root_and_one_for_each(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "a").mkdir()
    one, other = command._workspace_of(tmp_path), command._workspace_of(tmp_path / "a")
    assert one != other and one == command._workspace_of(tmp_path / "a" / "..")
    assert other.is_relative_to(tmp_path / "data" / "pureebm") and other.name.startswith("web-a-")
