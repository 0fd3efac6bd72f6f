"""What all pages share: settings, places, the studio, the jobs, and how a template becomes an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pureebm.energy.weights import DEFAULT_MODEL
from pureebm.errors import InputError
from pureebm.web.guard import Rules
from pureebm.web.jobs import Jobs
from pureebm.web.places import Places
from pureebm.web.studio import Studio
from pureebm.web.unpack import Limits

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """What a server shows, where it works, and who may ask it."""

    root: Path = Path(".")
    workspace: Path = Path("pureebm-workspace")
    results: Path = Path("results")
    model: str = DEFAULT_MODEL
    device: str = "cpu"
    precision: str = "auto"
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)


class Site:
    """Everything behind the pages. Raises `InputError` if the folder is missing or the workspace is in use."""

    def __init__(self, config: SiteConfig) -> None:
        if not config.root.is_dir():
            raise InputError(f"there is no folder {config.root}; name one with --root")
        self.config = config
        uploads = config.workspace / "uploads"
        try:
            uploads.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the workspace {config.workspace}: {error.strerror}; choose another with --workspace"
            ) from error
        self.places = Places(config.root, uploads, config.limits)
        self.studio = Studio(config.model, device=config.device, precision=config.precision)
        self.jobs = Jobs((config.workspace / "jobs").resolve(), self.studio.stage, self.places.key)

    def page(self, template: str, code: int = 200, **context: Any) -> HTMLResponse:
        """An answer of a template."""
        text = _templates().get_template(template).render(**context)
        return HTMLResponse(text, code)


def _site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


Here = Annotated[Site, Depends(_site)]


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["breakable"] = breakable
    environment.globals["query"] = query
    return environment


def query(**values: Any) -> str:
    """The part of an address behind its "?"; what is None is left out."""
    return urlencode({name: value for name, value in values.items() if value is not None})


def breakable(name: str) -> Markup:
    """A name that may go on in a new line behind each slash."""
    return Markup("/<wbr>").join(escape(part) for part in name.split("/"))


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
