"""Jobs outlive the server: what is on disk is all there is to know."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.web.helpers import OWN, start, wait_for

from pureebm.errors import InputError
from pureebm.purify import job as job_module
from pureebm.purify.job import JobConfig, run
from pureebm.purify.stages import LangevinStage
from pureebm.web.app import create_app
from pureebm.web.studio import Studio


@pytest.fixture
def slow(monkeypatch):
    """Each batch waits until the event is set."""
    go, purify = threading.Event(), LangevinStage.purify_batch

    def waiting(self, images, ids, *, seed):
        if len(ids) > 1 and not str(ids[0]).isdigit():
            go.wait(20)
        return purify(self, images, ids, seed=seed)

    monkeypatch.setattr(LangevinStage, "purify_batch", waiting)
    yield go
    go.set()


@pytest.fixture(autouse=True)
def plain(request, monkeypatch):
    """No time is spent on measuring batches, and on drawing only where a test looks at it."""
    monkeypatch.setattr(job_module, "choose_batch_size", lambda *_: 64)
    if "command_makes" not in request.node.name:
        monkeypatch.setattr(job_module, "write_report", lambda file, *_, **__: file.write(b"report"))


def direct(config, target, name="images", **settings):
    """What the job itself makes of the same settings."""
    studio = Studio(config.model, precision="float32")
    run(config.root / name, target, studio.stage(studio.config(**settings)), JobConfig(seed=4))
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*.png")}


def downloaded(client, job):
    with zipfile.ZipFile(io.BytesIO(client.get(f"{job}/result").content)) as opened:
        assert opened.testzip() is None
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist() if name.endswith(".png")}


def test_a_job_makes_what_the_command_makes(client, config, tmp_path):
    job = start(client, steps=2, noise=0.5, seed=4)
    assert wait_for(client, job, "done", "failed") | {"images_per_second": None} == {
        "state": "done", "done": 64, "total": 64, "failed": 0,
        "images_per_second": None, "eta_seconds": None, "message": "",
    }  # fmt: skip
    assert downloaded(client, job) == direct(config, tmp_path / "direct", steps=2, noise=0.5)
    record = client.get(f"{job}/record").json()
    assert (record["counts"]["purified"], record["settings"]["seed"], record["steps"]) == (64, 4, 2)
    report = client.get(f"{job}/report")
    assert "sandbox" in report.headers["content-security-policy"] and "Purified: images" in report.text
    assert client.get(f"{job}/manifest").content.startswith(b"PAR1")


def test_a_file_comes_back_as_a_file(client):
    job = start(client, "files/numbers.npz", limit=5, on_error="fail")
    wait_for(client, job, "done")
    answer = client.get(f"{job}/result")
    assert 'filename="numbers.npz"' in answer.headers["content-disposition"]
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert arrays["images"].shape == (5, 32, 32, 3)


def test_a_cancelled_job_resumes_to_the_same_bytes(client, config, tmp_path, slow):
    job = start(client, seed=4)
    wait_for(client, job, "running")
    assert client.post(f"{job}/cancel").status_code == 200
    slow.set()
    assert wait_for(client, job, "stopped", "done")["state"] == "stopped"
    assert "Resume" in client.get(job).text
    assert client.post(f"{job}/resume").status_code == 200
    wait_for(client, job, "done")
    assert downloaded(client, job) == direct(config, tmp_path / "direct")


def test_jobs_run_one_after_the_other_and_a_waiting_one_can_be_cancelled(client, slow):
    first, second = start(client), start(client, "files/numbers.npz")
    wait_for(client, first, "running")
    assert client.get(f"{second}/state.json").json()["state"] == "waiting"
    client.post(f"{second}/cancel")
    assert client.get(f"{second}/state.json").json()["state"] == "stopped"
    slow.set()
    wait_for(client, first, "done")
    assert client.get(f"{second}/state.json").json()["state"] == "stopped"


def test_what_runs_or_is_done_cannot_be_resumed_and_what_runs_cannot_be_deleted(client, slow, config):
    job = start(client)
    wait_for(client, job, "running")
    assert "nothing to resume" in client.post(f"{job}/resume").text
    assert "cancel it first" in client.post(f"{job}/delete").text
    slow.set()
    wait_for(client, job, "done")
    assert "nothing to resume" in client.post(f"{job}/resume").text
    assert client.post(f"{job}/delete").url.path == "/jobs"
    assert client.get(f"{job}/state.json").status_code == 400
    assert [path.name for path in (config.workspace / "jobs").iterdir()] == ["lock"]


def test_a_server_that_ends_leaves_its_job_interrupted_for_the_next_one(config, tmp_path, slow):
    app = create_app(config)
    with TestClient(app, base_url="http://localhost", headers=OWN) as client:
        job = start(client, seed=4)
        wait_for(client, job, "running")
        threading.Timer(0.2, slow.set).start()
    assert app.state.stopped
    with TestClient(create_app(config), base_url="http://localhost", headers=OWN) as client:
        assert wait_for(client, job, "interrupted")["message"] == ""
        assert "It was interrupted" in client.get(job).text
        client.post(f"{job}/resume")
        wait_for(client, job, "done")
        assert downloaded(client, job) == direct(config, tmp_path / "direct")


KILLED = """
import sys, threading, time
from pathlib import Path
from fastapi.testclient import TestClient
from pureebm.web.app import create_app
from pureebm.web.site import SiteConfig
root, workspace, model = sys.argv[1:]
from pureebm.purify import batches
batches.CHUNK_ITEMS = 16
with TestClient(create_app(SiteConfig(root=Path(root), workspace=Path(workspace), model=model, precision="float32")),
                base_url="http://localhost", headers={"sec-fetch-site": "same-origin"}) as client:
    job = client.post("/jobs", data={"source": "files/images", "seed": 4}, follow_redirects=False).headers["location"]
    print(job, flush=True)
    journal = Path(workspace) / job[1:] / "result" / ".images.pureebm-partial" / "journal"
    while not list(journal.glob("*.parquet")):
        time.sleep(0.001)
    print("begun", flush=True)
    time.sleep(30)
"""


@pytest.mark.slow
def test_a_killed_server_loses_nothing(config, tmp_path):
    command = [sys.executable, "-c", KILLED, str(config.root), str(config.workspace), str(config.model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        job = server.stdout.readline().strip()
        assert server.stdout.readline() == "begun\n"
        os.kill(server.pid, signal.SIGKILL)
    with TestClient(create_app(config), base_url="http://localhost", headers=OWN) as client:
        status = client.get(f"{job}/state.json").json()
        assert status["state"] in ("interrupted", "done") and status["done"] >= 16 and status["total"] == 64
        assert client.get("/jobs").text.count(status["state"]) >= 1
        if status["state"] == "interrupted":
            client.post(f"{job}/resume")
        wait_for(client, job, "done")
        assert downloaded(client, job) == direct(config, tmp_path / "direct")


def test_two_servers_do_not_share_a_workspace(config, client):
    with pytest.raises(InputError, match="another server works in"):
        create_app(config)


def test_a_failed_job_says_why_and_can_be_tried_again(client, config):
    bad = config.root / "images" / "cat" / "bad.png"
    bad.write_bytes(b"no image")
    job = start(client, on_error="fail")
    status = wait_for(client, job, "failed")
    assert "cat/bad.png" in status["message"]
    assert "cat/bad.png" in client.get(job).text
    bad.unlink()
    client.post(f"{job}/delete")
    job = start(client, on_error="fail")
    assert wait_for(client, job, "done", "failed")["state"] == "done"


def test_a_source_that_changed_or_is_shown_no_more_is_not_read_on_resume(config, tmp_path, slow):
    with TestClient(create_app(config), base_url="http://localhost", headers=OWN) as client:
        job = start(client)
        wait_for(client, job, "running")
        slow.set()
        client.post(f"{job}/cancel")
        wait_for(client, job, "stopped", "done")
        client.post(f"{start(client, 'files/images/cat')}/cancel")
    (tmp_path / "elsewhere").mkdir()
    other = dataclasses.replace(config, root=tmp_path / "elsewhere")
    with TestClient(create_app(other), base_url="http://localhost", headers=OWN) as client:
        ids = client.app.state.site.jobs.ids()
        again = next(f"/jobs/{one}" for one in ids if client.get(f"/jobs/{one}/state.json").json()["state"] != "done")
        client.post(f"{again}/resume")
        assert "start it with a --root that holds it" in wait_for(client, again, "failed")["message"]
        assert client.get(again).status_code == 200


def test_an_unreadable_order_is_told_and_harms_no_other_page(client, config):
    job = start(client)
    wait_for(client, job, "done")
    order = config.workspace / job[1:] / "order.json"
    told = json.loads(order.read_text())
    order.write_text(json.dumps(told | {"sampler": {"n_steps": 1, "of_the_future": 1}}))
    assert client.get(job).status_code == 200
    order.write_text("{")
    assert "cannot be read" in client.get(job).text
    assert client.get("/").status_code == client.get("/jobs").status_code == 200


def test_the_page_of_a_running_job_is_told_how_far_it_is(client, slow, config):
    job = start(client)
    wait_for(client, job, "running")
    page = client.get(job).text
    assert 'data-state="running"' in page and "Cancel" in page and "<progress" in page
    slow.set()
    wait_for(client, job, "done")
