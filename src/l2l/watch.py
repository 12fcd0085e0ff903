"""Watch a run that another process trains, from what that process writes into the run's folder."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from l2l.errors import InputError
from l2l.live import History, view
from l2l.progress import clock

METRICS, CONFIG, CHECKPOINT = "metrics.jsonl", "config.json", "checkpoint.safetensors"  # as training.loop names them
QUIET = 60.0
"""Seconds without a new line after which the screen says so."""


class Tail:
    """The lines of a JSONL file that somebody writes meanwhile.

    A line counts once its end is there. When the file was replaced or has become shorter, as when a run goes on from
    its checkpoint, reading begins again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0.0
        """When the file last changed, seconds since the epoch."""
        self._read, self._inode = 0, -1

    def new(self) -> tuple[bool, list[dict[str, Any]]]:
        """(whether reading began again, the lines since the last call); lines without a step are left out."""
        try:
            with self.path.open("rb") as file:
                about = os.fstat(file.fileno())
                again = about.st_ino != self._inode or about.st_size < self._read
                self._inode, self.written = about.st_ino, about.st_mtime
                self._read = 0 if again else self._read
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            again, self._read, self._inode = self._inode >= 0, 0, -1
            return again, []
        self._read += len(whole) + len(end)
        return again, list(_objects(whole))


def _objects(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # a process that was killed wrote half of it
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            yield value


class Watched:
    """A run's folder, looked at again and again.

    Args:
        folder: of a run, there or not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = History(str(folder))
        self.method = ""
        self._tail = Tail(folder / METRICS)
        self._seen: tuple[int, float] | None = None  # the last step, and when it was written

    def look(self) -> None:
        """Take in what is new. Raises `InputError` if the configuration cannot be read."""
        if not self.method and (self.folder / CONFIG).exists():
            self._begin()
        again, lines = self._tail.new()
        if again:
            self._seen, self.history = None, History(self.history.title, self.history.steps)
        for line in lines:
            self.history.take(line)
        if self.history.step:
            self._time()

    def _begin(self) -> None:
        try:
            train = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))["train"]
            self.method, self.history.steps = str(train["method"]), int(train["steps"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("this is no configuration of a run", file=self.folder / CONFIG) from error
        self.history.title = f"{self.folder}  {self.method}"

    def _time(self) -> None:
        """How long a step took: between two looks, or at the first one since the checkpoint was written."""
        step, written = self.history.step, self._tail.written
        if self._seen is None:
            saved = self._saved()
            self._seen = saved if saved and saved[0] < step and saved[1] < written else (step, written)
        if step > self._seen[0]:
            self.history.add(step, {"seconds": (written - self._seen[1]) / (step - self._seen[0])})
            self._seen = (step, written)

    def _saved(self) -> tuple[int, float] | None:
        """The checkpoint's step, and when it was written."""
        from safetensors import SafetensorError, safe_open

        file = self.folder / CHECKPOINT
        try:
            written = file.stat().st_mtime
            with safe_open(file, framework="numpy") as tensors:
                return int(json.loads(tensors.metadata()["l2l"])["step"]), written
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def finished(self) -> bool:
        """Whether the last step was taken and is in the checkpoint."""
        if self.method == "prior_only":
            return True
        if not self.method or self.history.step < self.history.steps:
            return False
        saved = self._saved()
        return saved is not None and saved[0] >= self.history.steps

    def note(self) -> str:
        """What else there is to say."""
        if self.method == "prior_only":
            return "prior_only does not train"
        if self.finished:
            return f"finished; next: l2l evaluate {self.folder}"
        if not self.method:
            return "not begun yet"
        if not self.history.step:
            return "no figures yet: the first come with step 10"
        quiet = time.time() - self._tail.written
        usual = 30 * (self.history.seconds or 0.0)
        return f"no new figures for {clock(quiet)}: stopped, perhaps" if quiet > max(QUIET, usual) else ""


def watch(folder: Path | str, *, stream: IO[str] | None = None, every: float = 1.0) -> None:
    """Show how a run goes until it is finished, or Ctrl-C; if this is no terminal, once.

    Args:
        folder: of the run; on a terminal it need not be there yet.
        stream: where it is shown; stdout if not given.
        every: seconds between two looks.

    Raises:
        InputError: if there is no such folder and this is no terminal, or its configuration cannot be read.
    """
    from rich.console import Console
    from rich.live import Live as Screen

    stream, watched = stream or sys.stdout, Watched(Path(folder))
    terminal = stream.isatty()
    console = Console(file=stream, width=None if terminal else 100)
    if not terminal:
        if not watched.folder.exists():
            raise InputError("no run here", file=folder)
        watched.look()
        console.print(_screen(watched, console), soft_wrap=False)
        return
    with Screen(console=console, auto_refresh=False) as screen:
        try:
            while True:
                watched.look()
                screen.update(_screen(watched, console), refresh=True)
                if watched.finished:
                    return
                time.sleep(every)
        except KeyboardInterrupt:
            return


def _screen(watched: Watched, console: Any) -> Any:
    return view(watched.history, note=watched.note(), plain=console.options.ascii_only)
