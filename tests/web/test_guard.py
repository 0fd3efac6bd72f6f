"""Hosts, tokens, origins, sizes and headers."""

import dataclasses

import pytest
from fastapi.testclient import TestClient
from tests.web.helpers import OWN, archive

from pureebm.web import app as application
from pureebm.web.app import create_app
from pureebm.web.guard import HEADERS, MAX_FORM, Rules, is_loopback

TOKEN = "a-token-of-decent-length"


@pytest.fixture
def guarded(config):
    """A server on a public address, with a token; a browser that has not given it."""
    rules = Rules(loopback=False, token=TOKEN, names=("lab.example",))
    with TestClient(create_app(dataclasses.replace(config, rules=rules)), base_url="http://lab.example") as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:8000", "[::1]:8000", "127.9.9.9"])
def test_the_names_of_this_machine_are_answered(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "192.168.0.7", "0.0.0.0", "", "[::1", "localhost@evil.example:80x"],
)
def test_a_foreign_name_gets_nothing_not_even_a_page_of_style(client, host):
    for path in ("/", "/static/page.css", "/openapi.json"):
        assert client.get(path, headers={"host": host}).status_code == 421


def test_an_address_is_no_name_and_reaches_a_public_server(guarded):
    assert guarded.get("/login", headers={"host": "192.168.0.7:8000"}).status_code == 200
    assert guarded.get("/login", headers={"host": "other.example"}).status_code == 421


def test_without_the_token_there_is_only_the_way_in(guarded):
    for path in ("/", "/set?source=files/images", "/jobs", "/openapi.json", "/uploads", "/loginx"):
        answer = guarded.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
    assert guarded.post("/jobs", data={"source": "files/images"}, headers=OWN).status_code == 401
    assert guarded.get("/login").status_code == 200
    assert guarded.get("/static/page.css").status_code == 200


def test_the_token_in_the_address_becomes_a_cookie_and_leaves_the_address(guarded):
    answer = guarded.get(f"/cards?x=1&token={TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/cards?x=1")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
    assert guarded.get("/cards").status_code == 200
    other = guarded.get(f"//evil.example/?token={TOKEN}", follow_redirects=False)
    assert not other.headers.get("location", "/x").startswith("//")


@pytest.mark.parametrize("given", ["", "wrong", TOKEN + "x", TOKEN[:-1], "ä"])
def test_another_token_opens_nothing(guarded, given):
    assert guarded.get("/", params={"token": given}, follow_redirects=False).headers["location"] == "/login"
    assert guarded.post("/login", data={"token": given}, headers=OWN).status_code == 401
    assert guarded.get(
        "/jobs", headers={"authorization": f"Bearer {given}".encode()}, follow_redirects=False
    ).is_redirect
    assert guarded.get("/jobs", headers={"cookie": f"pureebm-80={TOKEN}"}, follow_redirects=False).is_redirect


def test_the_form_takes_the_token(guarded):
    assert guarded.post("/login", data={"token": TOKEN}, headers=OWN).url.path == "/"
    assert guarded.get("/jobs").status_code == 200


def test_a_program_gives_the_token_as_a_header_and_needs_no_origin(guarded):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/jobs", headers=bearer).status_code == 200
    assert guarded.post("/jobs", data={"source": "files/none"}, headers=bearer).status_code == 400


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"sec-fetch-site": "same-origin"}, 400),  # passed on: there is no such set
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "none"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": "http://localhost"}, 403),
        ({"origin": "http://localhost"}, 400),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_only_a_page_of_this_server_changes_anything(config, headers, status):
    with TestClient(create_app(config), base_url="http://localhost") as browser:
        assert browser.post("/jobs", data={"source": "files/none"}, headers=headers).status_code == status


def test_another_site_cannot_make_this_one_compute(client):
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert client.get("/set/energies?source=files/images", headers=foreign).status_code == 403
    followed = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/jobs", headers=followed).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/none", "/set?source=files/none", "/jobs/x", "/static/page.js", "/openapi.json"]
)
def test_every_answer_has_the_headers(client, path):
    headers = client.get(path).headers
    assert HEADERS.items() <= dict(headers).items()
    assert "unsafe" not in headers["content-security-policy"]


def test_a_crash_is_a_plain_500_with_the_headers_and_says_nothing_of_the_inside(client, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("a secret")

    monkeypatch.setattr(application.Site, "page", broken)
    answer = client.get("/login")
    assert answer.status_code == 500
    assert "secret" not in answer.text and "secret" in caplog.text
    assert HEADERS.items() <= dict(answer.headers).items()


def test_too_large_bodies_are_refused_by_their_claim_and_by_what_comes(client, config):
    long = b"x" * (MAX_FORM + 1)
    assert client.post("/jobs", content=long).status_code == 413

    def stream():
        yield from (b"x" * 1000 for _ in range(MAX_FORM // 1000 + 1))

    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/jobs", content=stream(), headers=form).status_code == 413
    assert client.post("/jobs", content=b"x", headers={"content-length": "-1"}).status_code == 413
    big = archive({"a.png": b"\0" * 100}).getvalue() + b"\0" * (config.rules.max_upload + MAX_FORM)
    assert client.post("/uploads", files={"file": ("a.zip", big)}).status_code == 413
    assert not list((config.workspace / "uploads").iterdir())


@pytest.mark.parametrize(
    "host, local", [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("lab", False)]
)
def test_what_counts_as_this_machine_alone(host, local):
    assert is_loopback(host) is local
