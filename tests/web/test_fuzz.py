"""Every operation of the described interface is fed with values that fit, nearly fit, or are junk: never a 5xx."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.web.helpers import OWN, archive

from pureebm.purify import job as job_module

SECONDS = 6
"""Of processor time."""

PLACES = (
    "files",
    "files/images",
    "files/images/cat",
    "files/numbers.npz",
    "uploads",
    "files/..",
    "files/\0",
    "cpu",
    "../",
)
EDGES = (
    "",
    "0",
    "1",
    "-1",
    "3",
    "0.5",
    "1e-300",
    "1e999",
    "nan",
    "-inf",
    "9" * 30,
    "true",
    "null",
    "[]",
    "%00",
    "'\"<",
)

junk = st.one_of(st.sampled_from(PLACES), st.sampled_from(EDGES), st.text(max_size=20))
numbers = st.one_of(st.integers(-2, 20).map(str), st.floats(0, 2).map(str), st.sampled_from(EDGES))


def value(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    """Mostly of the described type."""
    kinds = {one.get("type") for one in (schema, *schema.get("anyOf", ()))}
    if kinds & {"integer", "number"}:
        return numbers
    if "enum" in schema:
        return st.one_of(st.sampled_from(schema["enum"]), junk)
    return st.one_of(st.sampled_from(PLACES[:4]), junk)


def requests(
    path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any], job: str
) -> st.SearchStrategy[Any]:
    """(method, address, query, form, files) of one operation, with any of its fields missing."""
    given_at: dict[str, dict[str, st.SearchStrategy[str]]] = {"path": {}, "query": {}}
    for one in operation.get("parameters", ()):
        given_at[one["in"]][one["name"]] = value(one["schema"])
    if "job" in given_at["path"]:
        given_at["path"]["job"] = st.one_of(st.just(job), st.sampled_from([job[:-1], "20200101-000000-abcd"]), junk)
    form, files = dict[str, st.SearchStrategy[str]](), st.none()
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = schemas[body["schema"]["$ref"].rpartition("/")[2]]["properties"]
        if kind == "multipart/form-data":
            data = st.one_of(st.binary(max_size=200), st.just(archive({"a/b.png": b"x"}).getvalue()))
            files = st.dictionaries(
                st.sampled_from([*fields, "other"]), st.tuples(st.text("a./\\\0z", max_size=9), data)
            )
        else:
            form = {name: value(schema) for name, schema in fields.items()}
    address = st.fixed_dictionaries(given_at["path"]).map(
        lambda parts: path.format(**{name: quote(text, safe="") for name, text in parts.items()})
    )
    return st.tuples(
        st.just(method),
        address,
        st.fixed_dictionaries({}, optional=given_at["query"]),
        st.fixed_dictionaries({}, optional=form),
        files,
    )


def test_nothing_of_the_described_interface_crashes(client, monkeypatch, caplog):
    monkeypatch.setattr(job_module, "choose_batch_size", lambda *_: 64)
    monkeypatch.setattr(job_module, "write_report", lambda file, *_, **__: file.write(b"report"))
    made = client.post("/jobs", data={"source": "files/numbers.npz", "limit": 1}, follow_redirects=False)
    described = client.get("/openapi.json").json()
    operations = [
        requests(path, method, operation, described["components"]["schemas"], made.headers["location"][6:])
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) > 20
    answers: Counter[int] = Counter()
    end = time.process_time() + SECONDS

    @settings(max_examples=400, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(asked=st.one_of(*operations))
    def ask(asked: Any) -> None:
        if time.process_time() > end:
            return
        method, address, query, form, files = asked
        answer = client.request(method, address, params=query, data=form, files=files, follow_redirects=False)
        answers[answer.status_code] += 1
        assert answer.status_code < 500, (asked, caplog.text)

    ask()
    assert sum(answers.values()) > 50 and {200, 303, 400, 422} <= set(answers), answers


def test_schemathesis_finds_no_server_error(client, monkeypatch, caplog):
    schemathesis = pytest.importorskip("schemathesis")
    monkeypatch.setattr(job_module, "choose_batch_size", lambda *_: 64)
    monkeypatch.setattr(job_module, "write_report", lambda file, *_, **__: file.write(b"report"))

    async def running(scope: Any, receive: Any, send: Any) -> None:
        """The application that runs already: schemathesis would end it after every request."""
        if scope["type"] != "lifespan":
            return await client.app(scope, receive, send)
        for part in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{part}.complete"})

    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.app = running
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 20
    answers: Counter[int] = Counter()
    for operation in operations:

        @settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url="http://localhost", headers=OWN)
            answers[answer.status_code] += 1
            assert answer.status_code < 500, (case.as_curl_command(), caplog.text)

        ask()
    assert sum(answers.values()) > 100 and {200, 400} <= set(answers), answers
