"""How much one client may ask for, and how long it may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from l2l.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Raises `InputError` for a limit that lets nothing through."""

    body_bytes: int = 32 * 2**20
    """Of a request's body; more is answered 413 before it is read."""
    pixels: int = 25_000_000
    """Of a picture, by its header: a larger one is answered 413 and never decoded."""
    sentences: int = 64
    """In one request; more is answered 413."""
    characters: int = 512
    """Of a sentence."""
    tasks: int = 64
    """Of Label Studio, in one request."""
    seconds: float = 30.0
    """From the last byte of a request to its answer; then 504."""
    body_seconds: float = 15.0
    """For the head of a request, for its body, and for a client to take its answer; then 408, or no answer at all."""
    waiting: int = 64
    """Requests accepted and not answered yet; one more is answered 503."""
    bodies: int = 128
    """Requests in memory, refused ones included; one more is answered 503 unread."""

    def __post_init__(self) -> None:
        for name in ("body_bytes", "pixels", "sentences", "characters", "tasks", "waiting", "bodies"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("seconds", "body_seconds"):
            if not 0 < getattr(self, name) < 1e6:
                raise InputError(f"{name} must be seconds above 0, not {getattr(self, name):g}")


class PixelBudget:
    """Bounds the pixels that are decoded at once, whoever they belong to. For one event loop.

    Args:
        most: pixels; a single picture may have more, but is then alone.
    """

    def __init__(self, most: int):
        self.most, self.used = most, 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait until so many more pixels fit in."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.used or self.used + pixels <= self.most)
            self.used += pixels
        try:
            yield
        finally:
            self.used -= pixels
            async with self._changed:
                self._changed.notify_all()
