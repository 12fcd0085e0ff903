"""What a client is told when it is not served: a status, what is wrong, and what to do about it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Response


class Refusal(Exception):
    """A request that is not answered as asked. No text of it may hold a path, or anything else of this machine.

    Args:
        status: the HTTP status.
        kind: one word of a fixed set, for `l2l_errors_total` in `/metrics`.
        error: what is wrong.
        hint: what to do about it.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, kind: str, error: str, hint: str, headers: dict[str, str] | None = None):
        super().__init__(error)
        self.status, self.kind, self.error, self.hint, self.headers = status, kind, error, hint, headers or {}

    def response(self) -> Response:
        """As JSON: `{"error": ..., "hint": ...}`."""
        return answer({"error": self.error, "hint": self.hint}, self.status, self.headers | {"x-l2l-error": self.kind})


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer in ASCII, so that no text a client sent can make it impossible to write."""
    return Response(json.dumps(value, allow_nan=False) + "\n", status, headers, "application/json")


def bad(error: str, hint: str) -> Refusal:
    """What was asked makes no sense: 422."""
    return Refusal(422, "invalid", error, hint)


def failed() -> Refusal:
    """A fault of ours: 500. What it was stands in the server's own log."""
    return Refusal(500, "internal", "the server failed at this request", "its log says why; other requests go on")
