"""A scheduler's SIGTERM: the step under way is finished and kept, then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143  # what a shell says of a process that SIGTERM ended


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to end before its last step, and has left a checkpoint of the step it reached."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Within it SIGTERM does this, in place of ending the process; in a thread other than the main one nothing changes,
    for there signals cannot be listened to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        act()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it the function that is given says whether SIGTERM came."""
    came = threading.Event()
    with on_sigterm(came.set):
        yield came.is_set


def terminate() -> None:
    """End as SIGTERM would, but with everything that is to be done at the end."""
    raise SystemExit(TERMINATED)
