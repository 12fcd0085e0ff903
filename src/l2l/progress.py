"""How far the work is: a bar with the time left on a terminal, a plain line every few seconds anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any

SHOWN = ("loss", "held_out_fused", "accept_samples", "accept_front", "seconds")
_NAMES = {"held_out_fused": "held-out IoU", "accept_samples": "accepted", "accept_front": "of foreground"}


class Progress:
    """A context manager that is called with (done, total) or (done, total, figures).

    Args:
        title: what is being done.
        stream: where it is shown; stderr if not given.
        every: seconds between two plain lines.

    Example:
        >>> import sys
        >>> with Progress("read", stream=sys.stdout) as progress:
        ...     progress.before("unpack", 1, 1)
        ...     progress(3, 3)
        unpack 1/1 100%
        read 3/3 100%
    """

    def __init__(self, title: str, *, stream: IO[str] | None = None, every: float = 5.0):
        self.title, self.stream, self.every = title, stream or sys.stderr, every
        self._bar: Any = None
        self._task: Any = None
        self._began = self._said = time.monotonic()
        self._first: int | None = None
        self._before: dict[str, Progress] = {}

    def __enter__(self) -> Progress:
        self._began = self._said = time.monotonic()
        if self.stream.isatty():
            from rich import progress as rich
            from rich.console import Console

            self._bar = rich.Progress(
                rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn(),
                rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[figures]}"), console=Console(file=self.stream),
            )  # fmt: skip
            self._bar.start()
        return self

    def __call__(self, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Show that `done` of `total` is done; `figures` are the last numbers, of which a few are shown."""
        told = show(figures or {})
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self.title, total=total, figures=told)
            self._bar.update(self._task, completed=done, total=total, figures=told)
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._began = done, now  # what came before was something else
        if now - self._said < self.every and done < total:
            return
        self._said = now
        share = done / total if total else 1.0
        parts = [f"{self.title} {done}/{total} {share:.0%}"]
        if self._first < done < total:  # what a resumed run had already done took no time of ours
            parts.append(f"{clock((now - self._began) / (done - self._first) * (total - done))} left")
        print("  ".join([*parts, told] if told else parts), file=self.stream, flush=True)

    def before(self, title: str, done: int, total: int) -> None:
        """Show how far something is that has to be there first, under a title of its own."""
        if title not in self._before:
            self._before[title] = Progress(title, stream=self.stream, every=self.every)
            self._before[title]._bar = self._bar
        self._before[title](done, total)

    def tell(self, text: str) -> None:
        """Say something in words, without disturbing the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self.title}  {text}", markup=False, highlight=False)
        else:
            print(f"{self.title}  {text}", file=self.stream, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def show(figures: Mapping[str, float]) -> str:
    """The figures worth a look, in a fixed order, as text.

    Example:
        >>> show({"seconds": 0.25, "loss": 0.51234, "policy_entropy": 0.1})
        'loss 0.512  0.25 s/step'
    """
    parts = []
    for name in SHOWN:
        if name in figures:
            value = figures[name]
            parts.append(f"{value:.2f} s/step" if name == "seconds" else f"{_NAMES.get(name, name)} {value:.3f}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    Example:
        >>> clock(75.2), clock(3600)
        ('1:15', '1:00:00')
    """
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
