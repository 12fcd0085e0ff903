"""The report's figures (curves, scatter, reliability): matplotlib as data URIs, for light pages and for dark ones.

Colours are Okabe and Ito's, which people with colour blindness can tell apart; lines differ in style as well.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from l2l.metrics import Calibration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE, SMALL = (5.3, 3.7), (4.5, 3.1)  # inches; 10 pt stay readable when a phone shows the whole at 370 pixels
DPI = 190


@dataclass(frozen=True)
class Ink:
    """Colours of one scheme."""

    text: str
    faint: str
    back: str
    lines: Mapping[str, str]


LIGHT = Ink("#24292f", "#d8dee4", "#ffffff", {
    "grey": "#6e7781", "blue": "#0072B2", "orange": "#C98A00", "green": "#009E73", "red": "#D55E00",
    "purple": "#B45C91", "sky": "#3A9AD0",
})  # fmt: skip
DARK = Ink("#e6e9ec", "#3a4149", "#16191d", {
    "grey": "#9aa4ae", "blue": "#5BA8E0", "orange": "#E69F00", "green": "#2BBF94", "red": "#F0793A",
    "purple": "#DB92B8", "sky": "#8CCBF0",
})  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A figure in both schemes, and in words."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    """The label at its right end; mathtext is allowed."""
    points: Sequence[tuple[float, float]]
    """(step, value)."""
    colour: str
    """A name in `Ink.lines`."""
    style: str = "-"
    wide: float = 2.0


End = tuple[float, float, str, str]
"""Last value, last step, label and colour of a curve."""


@dataclass(frozen=True)
class Mark:
    """A step worth a vertical line."""

    step: float
    name: str
    """What stands above the line."""


def curves(
    lines: Sequence[Line], *, title: str, alt: str, last: float, marks: Sequence[Mark] = (),
    events: Sequence[float] = (), percent: bool = False, smooth: bool = False, small: bool = False,
) -> Plot:  # fmt: skip
    """Curves over steps, each named at its right end with its last value.

    Args:
        last: the right end of the x axis, steps. percent: values are shares, shown as 0 to 100.
        events: steps at which something happened, as thin lines without a name.
        smooth: draw a running mean over the raw curve (values of single batches). small: three fit side by side.
    """

    def draw(axes: Axes, ink: Ink) -> None:
        factor = 100 if percent else 1
        ends: list[End] = []
        for line in lines:
            x, y = np.array(line.points, float).T
            y, colour = y * factor, ink.lines[line.colour]
            mean = running_mean(y, max(1, len(y) // 12) if smooth else 1)
            if smooth and len(y) >= 24:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            marker = "o" if len(y) < 12 else ""
            axes.plot(x, mean, color=colour, linestyle=line.style, linewidth=line.wide, marker=marker, markersize=3.5)
            label = f"{line.name} {mean[-1]:{'.1f' if percent else '#.3g'}}"
            ends.append((float(mean[-1]), float(x[-1]), label, colour))
        axes.set_xlim(0, last)
        if percent:
            axes.set_ylim(-2, 102)
            axes.set_yticks(range(0, 101, 20))
        low, high = axes.get_ylim()
        for place, (y_end, x_end, name, colour) in _places(ends, low, high):
            axes.annotate(
                name, (x_end, y_end), (1.06, place), xycoords="data", color=colour, fontsize=9,
                textcoords=("axes fraction", "data"), va="center", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2,
                            "relpos": (0, 0.5)},
            )  # fmt: skip
        for mark in marks:
            axes.axvline(mark.step, color=ink.text, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
            axes.annotate(
                mark.name, (mark.step, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8.5, ha="center" if mark.step > 0.08 * last else "left", color=ink.text,
            )  # fmt: skip
        for step in events:
            axes.axvline(step, color=ink.lines["orange"], linewidth=0.9, alpha=0.8, zorder=0)
        axes.set_title(title, fontsize=11, loc="left", pad=18 if marks else 8, color=ink.text, fontweight="bold")
        axes.set_xlabel("step")
        axes.grid(axis="y", color=ink.faint, linewidth=0.8)

    box = (0.12, 0.16, 0.50, 0.72) if small else (0.085, 0.14, 0.555, 0.70 if marks else 0.76)
    return _render(draw, alt=alt, size=SMALL if small else SIZE, box=box)


def scatter(x: np.ndarray, y: np.ndarray, colour: np.ndarray, *, names: Sequence[str], alt: str) -> Plot:
    """One dot per pair, cut at 0.5 in both directions.

    Args:
        x, y, colour: (N,) IoUs in [0, 1]. names: what stands at the upper left, upper right, lower left, lower right.
    """
    order = np.argsort(-np.abs(colour - 0.5), kind="stable")  # the undecided on top

    def draw(axes: Axes, ink: Ink) -> None:
        dots = axes.scatter(
            x[order], y[order], c=colour[order], cmap="viridis", vmin=0, vmax=1, s=float(np.clip(9000 / len(x), 7, 34)),
            edgecolors=ink.text, linewidths=0.35, alpha=0.85, clip_on=False, zorder=3,
        )  # fmt: skip
        for cut in (axes.axhline, axes.axvline):
            cut(0.5, color=ink.text, linewidth=1, zorder=2)
        ticks = (0, 0.25, 0.5, 0.75, 1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks, aspect="equal")
        axes.set_xlabel("IoU of the prior alone", labelpad=22)
        axes.set_ylabel("IoU of the model alone")
        axes.grid(color=ink.faint, linewidth=0.6, zorder=0)
        corners = ((0.25, 1, 10), (0.75, 1, 10), (0.25, 0, -27), (0.75, 0, -27))
        for name, (across, up, points) in zip(names, corners, strict=True):
            axes.annotate(name, (across, up), (0, points), xycoords="axes fraction", textcoords="offset points",
                          ha="center", va="center", fontsize=9.5)  # fmt: skip
        bar = axes.figure.colorbar(dots, cax=axes.inset_axes((1.05, 0, 0.035, 1)), ticks=ticks)
        bar.set_label("IoU of the run with the prior", color=ink.text)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=ink.text, length=0)

    return _render(draw, alt=alt, size=(5.3, 4.7), box=(0.115, 0.165, 0.675, 0.76))


def reliability(found: Calibration, *, title: str, colour: str, alt: str) -> Plot:
    """Expected IoU across, achieved IoU upwards; a dot per bin, as large as its count, and its way to the diagonal."""
    n, expected, achieved = np.array(found.bins, float).T

    def draw(axes: Axes, ink: Ink) -> None:
        axes.plot((0, 1), (0, 1), color=ink.lines["grey"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.vlines(expected, expected, achieved, color=ink.lines[colour], linewidth=1.2, alpha=0.45, zorder=2)
        axes.scatter(expected, achieved, s=np.maximum(520 * n / n.sum(), 10), color=ink.lines[colour], alpha=0.9,
                     linewidths=0.8, edgecolors=ink.back, clip_on=False, zorder=3)  # fmt: skip
        ticks = (0, 0.25, 0.5, 0.75, 1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=ticks, yticks=ticks, aspect="equal")
        axes.set_xlabel("expected IoU")
        axes.set_ylabel("achieved IoU")
        axes.grid(color=ink.faint, linewidth=0.6, zorder=0)
        axes.text(0.97, 0.05, f"ECE {found.ece:.3f}", ha="right", fontsize=9.5, zorder=4,
                  bbox={"facecolor": ink.back, "edgecolor": "none", "pad": 2})  # fmt: skip
        axes.set_title(title, fontsize=11, loc="left", pad=8, color=ink.text, fontweight="bold")

    return _render(draw, alt=alt, size=(3.7, 3.6), box=(0.17, 0.145, 0.76, 0.76))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values (an odd number of them), over fewer at both ends."""
    half = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _places(ends: Sequence[End], low: float, high: float) -> list[tuple[float, End]]:
    """(where its label goes, the end) from low to high, labels at least a line apart and inside the axes."""
    gap = 0.085 * (high - low)
    ordered = sorted(ends)
    places = [end[0] for end in ordered]
    for _ in range(50):
        for i in range(1, len(places)):
            if (short := gap - (places[i] - places[i - 1])) > 0:
                places[i - 1] -= short / 2
                places[i] += short / 2
        for i, place in enumerate(places):
            places[i] = min(max(place, low + gap * (i + 0.3)), high - gap * (len(places) - 1 - i + 0.3))
    return list(zip(places, ordered, strict=True))


def _render(
    draw: Callable[[Axes, Ink], None], *, alt: str, box: tuple[float, float, float, float],
    size: tuple[float, float] = SIZE,
) -> Plot:  # fmt: skip
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    def one(ink: Ink) -> str:
        style: Any = {
            "font.family": "DejaVu Sans", "font.size": 10, "text.color": ink.text, "axes.labelcolor": ink.text,
            "axes.edgecolor": ink.faint, "xtick.color": ink.text, "ytick.color": ink.text, "figure.facecolor": ink.back,
            "axes.facecolor": ink.back, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
            "xtick.major.size": 0, "ytick.major.size": 0, "xtick.labelsize": 9, "ytick.labelsize": 9,
        }  # fmt: skip
        with rc_context(style):  # no pyplot: nothing global is touched
            figure = Figure(figsize=size, dpi=DPI)
            draw(figure.add_axes(box), ink)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="webp", pil_kwargs={"lossless": True, "method": 4})
        return data_uri(buffer.getvalue())

    return Plot(one(LIGHT), one(DARK), alt)


def data_uri(image: bytes, kind: str = "webp") -> str:
    """An image as text that stands in `src`."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
