"""`pureebm serve`: the web page."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pureebm.cli import options
from pureebm.cli.options import DEFAULT_MODEL, emit, say
from pureebm.errors import InputError, Interrupted

if TYPE_CHECKING:
    import socket

SHORTEST_TOKEN = 16
SECONDS_TO_END = 3

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    root: Annotated[Path, typer.Option(help="Folder whose image sets the page may show.")] = Path("."),
    workspace: Annotated[
        Path | None,
        typer.Option(
            help="Folder for uploads, jobs and results (default: one for each root, in ~/.local/share/pureebm)."
        ),
    ] = None,
    results: Annotated[Path, typer.Option(help="Folder of benchmark cards.")] = Path("results"),
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback asks for a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="PUREEBM_TOKEN", help="What a browser must give; made up where one is needed.", show_default=False
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name of this server, as browsers say it.", show_default=False)
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, metavar="MB", help="Largest archive to take.")] = 2048,
    model: options.Model = DEFAULT_MODEL,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    json_: options.Json = False,
) -> None:
    """Serve the web page: look at a set, try settings, purify it.

    Only this machine can reach it, unless --host says more. Jobs are kept in the workspace: a server that was stopped
    or killed shows them again, to be resumed. With --json, the address is printed as one object when it is ready.
    """
    try:
        import uvicorn

        from pureebm.web.guard import Rules, is_loopback
    except ImportError as error:
        raise InputError("the web page needs FastAPI and uvicorn: pip install 'pureebm[web]'") from error
    place = options.parse_device(device)
    options.use_threads(threads)
    from pureebm.web.app import create_app
    from pureebm.web.site import SiteConfig

    local = is_loopback(host)
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise InputError(f"the token must have at least {SHORTEST_TOKEN} letters; leave it out to have one made up")
    token = token or (None if local else secrets.token_urlsafe(24))
    names = (*_own_names(host, local), *(name.lower() for name in allow_host or ()))
    config = SiteConfig(
        root=root,
        workspace=workspace or _workspace_of(root),
        results=results,
        model=model,
        device=place,
        precision=precision,
        rules=Rules(loopback=local, token=token, names=names, max_upload=max_upload * 2**20),
    )
    site = create_app(config)
    listening = _listen(host, port)
    address = _address(host, listening.getsockname()[1], token)
    emit({"url": address, "token": token, "workspace": str(config.workspace)}) if json_ else None
    say(f"{address}\nshows {root.resolve()}, works in {config.workspace}; Ctrl-C ends it")
    server = uvicorn.Server(
        uvicorn.Config(
            site,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=SECONDS_TO_END,
        )
    )
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn has ended in good order, and hands the signal on
    if site.state.stopped:
        raise Interrupted("a job was cut off; start the server again and press Resume on its page")


def _workspace_of(root: Path) -> Path:
    """Never inside the root, which may be a set itself."""
    import hashlib
    import os

    real = root.resolve()
    base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "pureebm" / f"web-{real.name or 'root'}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"


def _own_names(host: str, local: bool) -> tuple[str, ...]:
    import socket

    return () if local else (host.lower(), socket.gethostname().lower(), socket.getfqdn().lower())


def _listen(host: str, port: int) -> socket.socket:
    """A socket of our own, so that the port is known before the server runs."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # who comes before the server runs waits
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; try another --port"
        ) from error
    return listening


def _address(host: str, port: int, token: str | None) -> str:
    import socket

    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
