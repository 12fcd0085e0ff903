"""Where a Label Studio task's picture is: in the task, under a folder that was named, or on the one server that was.

A task's address is a stranger's word: no other host is asked, no redirect followed, no other folder read. The settings
are environment variables, under Label Studio's own names: `LABEL_STUDIO_URL`, `LABEL_STUDIO_API_KEY`,
`LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

from l2l.serving.limits import Limits
from l2l.serving.pictures import Picture, from_base64, picture
from l2l.serving.refusal import Refusal, bad

LOCAL = "/data/local-files/"


class StudioPictures:
    """Gets pictures; for threads, as it waits.

    Args:
        limits: what is taken.
        given: the environment.
    """

    def __init__(self, limits: Limits, given: Mapping[str, str] = os.environ):
        self.limits = limits
        self.url = given.get("LABEL_STUDIO_URL", "")
        self.key = given.get("LABEL_STUDIO_API_KEY", "")
        root = given.get("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", "")
        self.root = Path(root).resolve() if root else None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay())

    def get(self, address: str) -> Picture:
        """The picture of a task, undecoded. Raises `Refusal`."""
        if address.startswith("data:"):
            return picture(from_base64(address, "the picture"), self.limits.pixels)
        try:
            parts = urlsplit(address)
            if parts.path == LOCAL and not parts.netloc and self.root is not None:
                return picture(self._file(parse_qs(parts.query).get("d", [""])[0]), self.limits.pixels)
            odd = "\\" in address or "@" in parts.netloc  # which host is meant depends on who reads it
            if odd or not self.url or not _same(urljoin(self.url, address), self.url):
                raise bad("a picture at an address that is not asked", "start the server with LABEL_STUDIO_URL (and "
                          "LABEL_STUDIO_API_KEY), or LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT")  # fmt: skip
            return picture(self._ask(urljoin(self.url, address)), self.limits.pixels)
        except (OSError, ValueError, http.client.HTTPException):
            raise Refusal(502, "studio", "the task's picture cannot be got", "look whether Label Studio runs where "
                          "LABEL_STUDIO_URL says, and LABEL_STUDIO_API_KEY is right") from None  # fmt: skip

    def _file(self, name: str) -> bytes:
        assert self.root is not None
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root) or not path.is_file():
            raise bad("no such local file", "it must be under LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT")
        with path.open("rb") as file:
            return self._within(file.read(self.limits.body_bytes + 1))

    def _ask(self, url: str) -> bytes:
        headers = {"Authorization": self._authorization()} if self.key else {}
        with self._opener.open(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return self._within(reply.read(self.limits.body_bytes + 1))

    def _authorization(self) -> str:
        """Label Studio's older keys are shown as they are; the newer ones are changed for one of five minutes."""
        if self.key.count(".") != 2:
            return f"Token {self.key}"
        body = json.dumps({"refresh": self.key}).encode()
        asked = urllib.request.Request(urljoin(self.url, "/api/token/refresh"), body,
                                       {"Content-Type": "application/json"})  # fmt: skip
        with self._opener.open(asked, timeout=10) as reply:
            told = json.loads(reply.read(65536))
        return f"Bearer {told['access']}" if isinstance(told, dict) and "access" in told else f"Token {self.key}"

    def _within(self, content: bytes) -> bytes:
        if len(content) > self.limits.body_bytes:
            raise Refusal(413, "size", f"a picture of more than {self.limits.body_bytes:,} bytes", "use a smaller one")
        return content


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it may lead anywhere."""

    def redirect_request(self, *_: Any) -> None:
        """None: the redirect becomes an error."""
        return None


def _same(one: str, other: str) -> bool:
    """Whether two addresses are of one server."""
    a, b = urlsplit(one), urlsplit(other)
    return a.scheme in ("http", "https") and (a.scheme, a.hostname, a.port) == (b.scheme, b.hostname, b.port)
