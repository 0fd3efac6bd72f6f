"""The web page as one ASGI application: pages, errors, the way in, and the guard around all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated

from anyio import to_thread
from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from pureebm.errors import PureebmError
from pureebm.web import card_pages, job_pages, set_pages
from pureebm.web.guard import Guard, let_in, same_text
from pureebm.web.site import HERE, Here, Site, SiteConfig

STOPPED = "stopped"
"""Name in `app.state` of what `Jobs.close` said."""


def create_app(config: SiteConfig) -> FastAPI:
    """The application. Jobs end with its lifespan, to be resumed by the next.

    Raises:
        InputError: As `Site`.
    """
    site = Site(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.stopped = await to_thread.run_sync(site.jobs.close)

    app = FastAPI(title="pureebm", version=version("pureebm"), docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.site, app.state.stopped = site, False
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for router in (set_pages.router, job_pages.router, card_pages.router):
        app.include_router(router)
    app.get("/login", include_in_schema=False)(login_page)
    app.post("/login", include_in_schema=False)(login)
    app.add_exception_handler(PureebmError, _tell)
    app.add_exception_handler(OSError, _tell)
    app.add_exception_handler(HTTPException, _tell)
    app.add_exception_handler(RequestValidationError, _tell)
    app.add_middleware(Guard, rules=config.rules)
    return app


def login_page(site: Here) -> Response:
    """Where the token is asked for."""
    return site.page("login.html", wrong=False)


def login(site: Here, request: Request, token: Annotated[str, Form(max_length=1000)] = "") -> Response:
    """Give the browser its cookie, for the right token."""
    wanted = site.config.rules.token
    if wanted is None:
        return RedirectResponse("/", 303)
    if not same_text(token, wanted):
        return site.page("login.html", 401, wrong=True)
    return let_in(RedirectResponse("/", 303), wanted, request.scope)


async def _tell(request: Request, error: Exception) -> Response:
    """An error as a page, or as a part of one."""
    site: Site = request.app.state.site
    status, message = _say(error)
    name = "error_part.html" if request.headers.get("x-part") else "error.html"
    return site.page(name, status, message=message)


def _say(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    if isinstance(error, RequestValidationError):
        return 422, "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
    if isinstance(error, OSError):
        return 400, f"{error.filename or 'a file'}: {error.strerror or error}"
    return 400, str(error)
