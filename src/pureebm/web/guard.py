"""Who may ask for what: every request passes here before a page is made, and every answer gets its headers here.

- Host: only names that this server has, so that a foreign name pointed at it (DNS rebinding) gets nothing.
- Token, where there is one: as a cookie, as `Authorization: Bearer TOKEN`, or once as `?token=`; compared in constant
  time.
- Origin: what changes something must come from a page of this server (or carry the token as a header).
- Size: no body is longer than its page allows.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

MAX_FORM = 64 * 2**10
"""Bytes of a form without a file."""

UPLOAD_PATH = "/uploads"

HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
        "cache-control": "no-store",
    }
)
"""Of every answer that does not say otherwise itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who may ask.

    `loopback`: the server listens on this machine's own address only. `token`: None where nobody is asked for one.
    `names`: host names besides localhost. `max_upload`: bytes of an uploaded file.
    """

    loopback: bool = True
    token: str | None = None
    names: tuple[str, ...] = ()
    max_upload: int = 2 * 2**30


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def same_text(given: str, wanted: str) -> bool:
    """Whether they agree, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def cookie_of(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hashlib.sha256(f"pureebm web cookie {token}".encode()).hexdigest()


def let_in(response: Response, token: str, scope: Scope) -> Response:
    """Give the browser its cookie."""
    response.set_cookie(
        _cookie_name(scope), cookie_of(token), httponly=True, samesite="strict", secure=scope["scheme"] == "https"
    )
    return response


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self.app = app
        self.rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._answer(scope, Headers(scope=scope))
        if answer is not None:
            return await answer(scope, receive, send_guarded)
        try:
            await self.app(scope, _limited(receive, self._limit(scope)), send_guarded)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if begun:
                raise
            await PlainTextResponse("internal error; the server's log says more\n", 500)(scope, receive, send_guarded)

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal, a redirection, or None where the request may pass."""
        if not self._knows_host(headers):
            return _refusal(421, "this server does not go by that name; start it with --allow-host NAME")
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or int(length) > self._limit(scope):
            return _refusal(413, f"too large: at most {self._limit(scope):,} bytes are taken here")
        bearer = self._has_bearer(headers)
        if not bearer and not _is_own(scope, headers):
            return _refusal(403, "refused: this request does not come from a page of this server")
        if self.rules.token is None or bearer or self._has_cookie(scope, headers):
            return None
        return self._ask_for_token(scope, self.rules.token)

    def _knows_host(self, headers: Headers) -> bool:
        given = headers.getlist("host")
        name = _host_name(given[0]) if len(given) == 1 else ""
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name in self.rules.names
        return address.is_loopback or not self.rules.loopback  # an address cannot be rebound

    def _limit(self, scope: Scope) -> int:
        return self.rules.max_upload + MAX_FORM if scope["path"] == UPLOAD_PATH else MAX_FORM

    def _has_bearer(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return self.rules.token is not None and kind.lower() == "bearer" and same_text(given, self.rules.token)

    def _has_cookie(self, scope: Scope, headers: Headers) -> bool:
        assert self.rules.token is not None
        given = cookie_parser(headers.get("cookie", "")).get(_cookie_name(scope), "")
        return same_text(given, cookie_of(self.rules.token))

    def _ask_for_token(self, scope: Scope, token: str) -> Response | None:
        if scope["path"] == "/login" or scope["path"].startswith("/static/"):
            return None
        if scope["method"] not in ("GET", "HEAD"):
            return _refusal(401, "this server asks for a token: open its page and give it")
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        if same_text(dict(query).get("token", ""), token):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            place = "/" + scope["path"].lstrip("/")
            return let_in(RedirectResponse(f"{place}?{rest}" if rest else place, 303), token, scope)
        return RedirectResponse("/login", 303)


def _is_own(scope: Scope, headers: Headers) -> bool:
    """Whether a page of this server (or, for reading, the user's own hand) sent it."""
    site = headers.get("sec-fetch-site")
    if scope["method"] in ("GET", "HEAD"):
        return site in (None, "same-origin", "none") or headers.get("sec-fetch-mode") == "navigate"
    if site is not None:
        return site == "same-origin"
    return urlsplit(headers.get("origin", "")).netloc == headers["host"]


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _cookie_name(scope: Scope) -> str:
    """Cookies do not tell ports apart, but two servers of one machine have tokens of their own."""
    return f"pureebm-{scope['server'][1]}"


def _refusal(status: int, text: str) -> Response:
    return PlainTextResponse(text + "\n", status)


def _limited(receive: Receive, limit: int) -> Receive:
    """Count what really comes, whatever the header said."""
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"too large: at most {limit:,} bytes are taken here")
        return message

    return counted
