"""Before anything else sees a request: whose it is, how large, how slow. And after: that it was answered."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from base64 import b64decode
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from l2l.serving.limits import Limits
from l2l.serving.metrics import Metrics
from l2l.serving.refusal import Refusal, failed

LOG = logging.getLogger("l2l.serving")
OPEN = ("/health", "/label-studio/health", "/", "/review", "/page.js", "/try.js", "/review.js", "/page.css")
"""What may be asked without the token: by a watchdog, and the pages themselves, which ask the user for it."""
ENDPOINTS = (
    *OPEN, "/predict", "/label", "/metrics", "/docs", "/openapi.json", "/label-studio", "/label-studio/",
    "/label-studio/setup", "/label-studio/predict", "/label-studio/webhook", "/review/queue",
)  # fmt: skip
NUMBERED = ("/review/item/", "/review/picture/")
"""Addresses that end in a number; all numbers are counted as one."""
LOCAL = ("127.0.0.1", "localhost", "::1")


class Guard:
    """Reads the body whole, within limits of size and time, then lets the application answer.

    Args:
        app: the application.
        limits: what is let through.
        metrics: where everything is counted.
        token: what clients must know; empty for no token.
        hosts: further names under which the server may be asked. Loopback and plain addresses always are; any other
            name may be that of a page that had its name moved here, to read what it should not (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, metrics: Metrics, token: str = "", hosts: Iterable[str] = ()):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.token = token.encode()
        self.hosts = {*LOCAL, *(host.lower() for host in hosts)}
        self.bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection; other than HTTP, only start and stop of the server pass."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        watched = _Watched(send, self.limits.body_seconds)
        endpoint = _endpoint(scope["path"])
        try:
            await self._answer(scope, receive, watched)
        finally:
            self.metrics.requests.add(endpoint, str(watched.status or "none"))
            self.metrics.seconds.add(time.perf_counter() - began, endpoint)
            if watched.kind or watched.status is None or watched.status >= 400:
                self.metrics.errors.add(watched.kind or ("gone" if watched.status is None else "other"))

    async def _answer(self, scope: Scope, receive: Receive, send: _Watched) -> None:
        self.bodies += 1
        try:
            body = await self._admit(scope, receive)
            if body is not None:
                await self.app(scope, _Replay(body, receive), send)
        except Refusal as refusal:
            await _refuse(refusal.response(), scope, receive, send)
        except TimeoutError:  # the client does not take its answer
            LOG.warning("a client did not take its answer")
        except Exception:
            LOG.exception("a request failed")
            if send.status is None:
                await _refuse(failed().response(), scope, receive, send)
        finally:
            self.bodies -= 1

    async def _admit(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body of a request that may pass; `None` where the client has gone. Raises `Refusal`."""
        headers = _headers(scope)
        self._check_host(headers)
        if self.token and scope["path"] not in OPEN and not self._knows_token(headers.get("authorization", "")):
            raise Refusal(401, "token", "no valid token", "send the header Authorization: Bearer TOKEN, or Basic with "
                          "the token as its password", {"www-authenticate": 'Bearer, Basic realm="l2l"'})  # fmt: skip
        if self.bodies > self.limits.bodies:
            raise Refusal(503, "busy", "too many requests at once", "try again in a moment", {"retry-after": "1"})
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self.limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        held = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    held += len(parts[-1])
                    if held > self.limits.body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "slow", f"the body did not arrive within {self.limits.body_seconds:g} s",
                          "send it faster, or a smaller picture", {"connection": "close"}) from None  # fmt: skip

    def _too_large(self) -> Refusal:
        return Refusal(413, "size", f"a body of more than {self.limits.body_bytes:,} bytes", "send a smaller picture, "
                       "as JPEG or PNG, or as multipart, which is a quarter smaller than base64",
                       {"connection": "close"})  # fmt: skip

    def _check_host(self, headers: dict[str, str]) -> None:
        """Pages of other sites must neither read nor write here. Raises `Refusal`."""
        host = _name(headers.get("host", ""))
        if host not in self.hosts and not _is_address(host):
            raise Refusal(421, "host", "this server does not go by that name", "ask it by its address, or start it with"
                          " the name as --host or in L2L_HOSTS")  # fmt: skip
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refusal(403, "origin", "requests from pages of other sites are not answered",
                          "ask from a program, or from /docs")  # fmt: skip

    def _knows_token(self, given: str) -> bool:
        scheme, _, rest = given.partition(" ")
        told = rest.strip().encode("utf-8", "replace")
        if scheme.lower() == "basic":  # what Label Studio can send
            try:
                told = b64decode(told, validate=True).partition(b":")[2]
            except ValueError:
                told = b""
        elif scheme.lower() != "bearer":
            told = b""
        return hmac.compare_digest(told, self.token)


class _Replay:
    """The body once more, for the application; then what the client does next."""

    def __init__(self, body: bytes, receive: Receive):
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


class _Watched:
    """Sends, remembers what, and does not wait forever for a client that does not read."""

    def __init__(self, send: Send, seconds: float):
        self.send, self.seconds = send, seconds
        self.status: int | None = None
        self.kind = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            self.kind = next((value.decode() for name, value in headers if name == b"x-l2l-error"), "")
            kept = [pair for pair in headers if pair[0] != b"x-l2l-error"]
            message = {**message, "headers": [*kept, (b"x-content-type-options", b"nosniff")]}
        async with asyncio.timeout(self.seconds):
            await self.send(message)


async def _refuse(response: Response, scope: Scope, receive: Receive, send: _Watched) -> None:
    try:
        await response(scope, receive, send)
    except TimeoutError:
        LOG.warning("a client did not take its answer")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _endpoint(path: str) -> str:
    """What it is counted as, from a fixed set."""
    return path if path in ENDPOINTS else next((start for start in NUMBERED if path.startswith(start)), "other")


def _name(host: str) -> str:
    """`[::1]:80`, `localhost:80` and the like without the port."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def handlers() -> dict[Any, Any]:
    """What FastAPI would answer in its own words, in ours."""
    from starlette.exceptions import HTTPException

    async def refused(_: Any, error: Any) -> Response:
        return error.response()

    async def http(_: Any, error: Any) -> Response:
        known = {
            404: ("path", "there is no such address", "see /docs"),
            405: ("method", "this address does not take that method", "see /docs"),
        }
        kind, text, hint = known.get(error.status_code, ("invalid", "the request cannot be read", "see /docs"))
        return Refusal(error.status_code, kind, text, hint, dict(error.headers or {})).response()

    async def broken(_: Any, __: Any) -> Response:
        return failed().response()

    return {Refusal: refused, HTTPException: http, Exception: broken}
