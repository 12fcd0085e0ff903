"""A scheduler's SIGTERM: the step under way is finished and kept, then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to end before its last step, and has left a checkpoint of the step it reached."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM does not end the process; the function that is given says whether it came.

    In a thread that is not the main one signals cannot be listened to: there it is never said.
    """
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
