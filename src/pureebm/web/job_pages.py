"""Pages of jobs: start, watch, cancel, resume, delete; the result, the report and the record."""

from __future__ import annotations

import dataclasses
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Form, Path
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

from pureebm.errors import InputError
from pureebm.purify.manifest import MANIFEST_NAME, RECORD_NAME, REPORT_NAME
from pureebm.web.jobs import Order
from pureebm.web.settings import JobForm
from pureebm.web.site import Here, Site
from pureebm.web.zip_stream import zip_folder

router = APIRouter()

Job = Annotated[str, Path(max_length=40)]

REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
"""The report is one file with its style inside; it has no scripts, and none would run."""


@router.get("/jobs")
def list_page(site: Here) -> Response:
    """All jobs, the newest first."""
    return site.page("jobs.html", jobs=site.jobs.overview())


@router.post("/jobs")
def start(site: Here, form: Annotated[JobForm, Form()]) -> Response:
    """Begin to purify a set."""
    opened = site.places.open(form.source)
    order = Order(
        source=str(site.places.path(form.source)),
        model=str(site.config.model),
        sampler=dataclasses.asdict(form.config(site.studio)),
        seed=form.seed,
        limit=form.limit,
        on_error=form.on_error,
    )
    if opened.source.path.resolve() in FilePath(site.jobs.folder).parents:
        raise InputError(
            "this server's workspace lies inside that set; choose a smaller folder, or start with another --workspace"
        )
    return RedirectResponse(f"/jobs/{site.jobs.start(order)}", 303)


@router.get("/jobs/{job}")
def job_page(site: Here, job: Job) -> Response:
    """One job: how it stands, and its result."""
    order, status = site.jobs.order(job), site.jobs.status(job)
    return site.page(
        "job.html",
        job=job,
        order=order,
        status=status,
        record=site.jobs.record(job),
        target=site.jobs.target(job),
        source_key=_key(site, order),
        names=(REPORT_NAME, RECORD_NAME, MANIFEST_NAME),
    )


@router.get("/jobs/{job}/state.json")
def state(site: Here, job: Job) -> Response:
    """How far a job is; the page asks again and again."""
    return JSONResponse(site.jobs.status(job).to_json())


@router.post("/jobs/{job}/cancel")
def cancel(site: Here, job: Job) -> Response:
    """End it after the current batch."""
    site.jobs.cancel(job)
    return RedirectResponse(f"/jobs/{job}", 303)


@router.post("/jobs/{job}/resume")
def resume(site: Here, job: Job) -> Response:
    """Go on where it was."""
    site.jobs.resume(job)
    return RedirectResponse(f"/jobs/{job}", 303)


@router.post("/jobs/{job}/delete")
def delete(site: Here, job: Job) -> Response:
    """Remove it and its result."""
    site.jobs.delete(job)
    return RedirectResponse("/jobs", 303)


@router.get("/jobs/{job}/result")
def result(site: Here, job: Job) -> Response:
    """The purified set: its file, or its folder as a zip archive."""
    if site.jobs.record(job) is None:
        raise InputError("the job has no result yet")
    target = site.jobs.target(job)
    if target.is_file():
        return FileResponse(target, filename=target.name, media_type="application/octet-stream")
    ascii_name = target.name.encode("ascii", "replace").decode().replace("?", "_").replace('"', "_")
    headers = {"content-disposition": f'attachment; filename="{ascii_name}-purified.zip"'}
    return StreamingResponse(zip_folder(target), media_type="application/zip", headers=headers)


@router.get("/jobs/{job}/report")
def report(site: Here, job: Job) -> Response:
    """The report that the job wrote."""
    headers = {"content-security-policy": REPORT_POLICY}
    return FileResponse(site.jobs.report(job), media_type="text/html; charset=utf-8", headers=headers)


@router.get("/jobs/{job}/record")
def record(site: Here, job: Job) -> Response:
    """Every setting and count, as JSON."""
    path = site.jobs.side_file(job, RECORD_NAME)
    return FileResponse(path, media_type="application/json", filename=RECORD_NAME)


@router.get("/jobs/{job}/manifest")
def manifest(site: Here, job: Job) -> Response:
    """One row an image, as Parquet."""
    path = site.jobs.manifest(job)
    return FileResponse(path, media_type="application/octet-stream", filename=MANIFEST_NAME)


def _key(site: Site, order: Order) -> str | None:
    """Of the source, where this server may show it."""
    path = FilePath(order.source)
    try:
        return site.places.key(path) if path.exists() else None
    except InputError:
        return None
