"""A training as it goes, on one screen: figures with their history as sparklines, the time left, the last event."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

from l2l.progress import Progress, clock

ROWS = {
    "loss": "loss",
    "held_out_fused": "IoU of P̃†, held out",
    "accept_samples": "accepted samples",
    "accept_front": "accepted foreground",
    "reward": "reward",
    "seconds": "seconds a step",
}
WIDTH = 32
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"


@dataclass
class History:
    """What is known of a training: the mean of each figure over at most `WIDTH` stretches of steps, all of one length.

    Example:
        >>> history = History("train l2l", steps=200)
        >>> for step in range(1, 161):
        ...     history.add(step, {"loss": 1 / step})
        >>> history.stretch, history.spark("loss")[:4], len(history.spark("loss"))
        (8, '█▂▂▁', 21)
    """

    title: str
    steps: int = 0
    """Of the whole run; 0 while that is not known."""
    step: int = 0
    """The last one."""
    stretch: int = 1
    event: str = ""
    """The last one, in words."""
    last: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Of each figure, the last step that had it, and its value then."""
    _cells: dict[str, dict[int, tuple[float, int]]] = field(default_factory=dict)  # sum and count, by stretch
    _pace: deque[float] = field(default_factory=lambda: deque(maxlen=50))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step; those that no row shows, and those that are no number, are left out."""
        self.step = step
        while step // self.stretch >= WIDTH:
            self._widen()
        for name in ROWS:
            value = figures.get(name)
            if value is None or not math.isfinite(value):
                continue
            total, count = self._cells.setdefault(name, {}).get(step // self.stretch, (0.0, 0))
            self._cells[name][step // self.stretch] = (total + value, count + 1)
            self.last[name] = (step, value)
            if name == "seconds":
                self._pace.append(value)

    def take(self, line: Mapping[str, Any]) -> None:
        """Take a line of `metrics.jsonl`."""
        if "event" in line:
            self.event = f"step {line['step']}: {line['event']}"
        elif "probe" not in line:
            self.add(line["step"], {name: value for name, value in line.items() if isinstance(value, int | float)})

    def _widen(self) -> None:
        self.stretch *= 2
        for name, cells in self._cells.items():
            wider: dict[int, tuple[float, int]] = {}
            for place, (total, count) in cells.items():
                before = wider.get(place // 2, (0.0, 0))
                wider[place // 2] = (before[0] + total, before[1] + count)
            self._cells[name] = wider

    @property
    def seconds(self) -> float | None:
        """Of a step, on average over the last ones; `None` if nothing is known."""
        return sum(self._pace) / len(self._pace) if self._pace else None

    @property
    def left(self) -> float | None:
        """Seconds to the end."""
        return None if self.seconds is None or not self.steps else self.seconds * (self.steps - self.step)

    def means(self, name: str) -> list[float]:
        """The figure's mean in each stretch that has it."""
        return [total / count for total, count in self._cells.get(name, {}).values()]

    def spark(self, name: str, *, plain: bool = False) -> str:
        """The figure's history, lowest to highest; all rows share one axis of steps. `plain`: in ASCII."""
        cells, bars = self._cells.get(name, {}), PLAIN_BARS if plain else BARS
        if not cells:
            return ""
        means = self.means(name)
        low, high = min(means), max(means)
        flat = high - low <= 1e-4 * max(abs(low), abs(high))  # rounding is no history
        drawn, bar = [], " "
        for place in range(max(cells) + 1):
            if place in cells:
                total, count = cells[place]
                share = 0.5 if flat else (total / count - low) / (high - low)
                bar = bars[min(len(bars) - 1, int(share * len(bars)))]
            drawn.append(bar)
        return "".join(drawn)


def view(history: History, *, note: str = "", plain: bool = False) -> Any:
    """The screen, as something that a rich console prints.

    Args:
        note: a line below, of what else there is to say.
        plain: in ASCII.
    """
    from rich.console import Group
    from rich.text import Text

    parts = [_head(history)]
    if history.last:
        parts.append(_rows(history, plain))
    if history.event:
        parts.append(Text(history.event, "yellow"))
    if note:
        parts.append(Text(note, "dim"))
    return Group(*parts)


def _head(history: History) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    cells: list[Any] = [Text(history.title, "bold")]
    if history.steps:
        cells += [Text(f"{history.step:,}/{history.steps:,}"), Text(f"{history.step / history.steps:.0%}"),
                  ProgressBar(total=history.steps, completed=history.step, width=24)]  # fmt: skip
        if history.left is not None and history.step < history.steps:
            cells.append(Text(f"{clock(history.left)} left"))
    head = Table.grid(padding=(0, 2))
    head.add_row(*cells)
    return head


def _rows(history: History, plain: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(min_width=WIDTH, no_wrap=True)
    rows.add_column()
    for name, shown in ROWS.items():
        if name not in history.last:
            continue
        step, value = history.last[name]
        means = history.means(name)
        span = f"{min(means):.3g} to {max(means):.3g}"
        if name == "seconds":
            value = history.seconds or value
        elif step + 2 * history.stretch < history.step:
            span += f", until step {step:,}"
        label = shown.replace("P̃†", "fused") if plain else shown
        rows.add_row(label, Text(f"{value:.3f}", "bold"), Text(history.spark(name, plain=plain), "cyan"),
                     Text(span, "dim"))  # fmt: skip
    return rows


class Live(Progress):
    """A `Progress` that shows on a terminal how a training goes; anywhere else the same plain lines.

    Args:
        history: what is known already, where a run goes on.
    """

    def __init__(self, history: History, *, stream: IO[str] | None = None, every: float = 5.0):
        super().__init__(history.title, stream=stream, every=every)
        self.history, self.note = history, ""
        self._live: Any = None
        self._drawn = self._stepped = -math.inf

    def __enter__(self) -> Live:
        from rich.console import Console

        if self.stream.isatty() and not Console(file=self.stream).is_dumb_terminal:
            from rich.live import Live as Screen

            self._live = Screen(console=Console(file=self.stream), auto_refresh=False)
            return self
        super().__enter__()
        return self

    def __call__(self, done: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        if self._live is None:
            super().__call__(done, total, figures)
            return
        now, took = time.monotonic(), dict(figures or {})
        if self._stepped > 0:  # not the mean since the start, which is what is given
            took["seconds"] = (now - self._stepped) / max(1, done - self.history.step)
        self._stepped, self.note, self.history.steps = now, "", total
        self.history.add(done, took)
        self._show(done == total)

    def before(self, title: str, done: int, total: int) -> None:
        if self._live is None:
            super().before(title, done, total)
            return
        self.note = f"{title} {done:,}/{total:,}"
        self._show(done == total)

    def tell(self, text: str) -> None:
        if self._live is None:
            super().tell(text)
            return
        if self.history.event:  # makes room for the new one, and stays above
            self._live.console.print(self.history.event, markup=False, highlight=False)
        self.history.event = text
        self._show(True)

    def _show(self, now: bool) -> None:
        """Draw the screen, if it is due; it starts with the first thing there is to see."""
        if now or time.monotonic() - self._drawn > 0.2:
            self._live.start()
            plain = self._live.console.options.ascii_only
            self._live.update(view(self.history, note=self.note, plain=plain), refresh=True)
            self._drawn = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is None:
            super().__exit__(kind, error, trace)
        elif self._drawn > 0:
            self._show(True)
            self._live.stop()
