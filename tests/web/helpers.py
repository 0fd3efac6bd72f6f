"""What several tests of the page do."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping

from fastapi.testclient import TestClient

OWN = {"sec-fetch-site": "same-origin"}
"""What a browser says when a page of the same server asks."""


def wait_for(client: TestClient, job: str, *states: str, seconds: float = 30) -> dict:
    """The status of a job as soon as it is in one of these states."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = client.get(f"{job}/state.json").json()
        if status["state"] in states:
            return status
        time.sleep(0.02)
    raise AssertionError(f"{job} is {status}, not {states}")


def start(client: TestClient, source: str = "files/images", **fields: object) -> str:
    """Start a job; its address."""
    answer = client.post("/jobs", data={"source": source, **fields}, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def archive(members: Mapping[str, bytes]) -> io.BytesIO:
    """A zip archive in memory."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name, data)
    file.seek(0)
    return file
