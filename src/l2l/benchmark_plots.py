"""The benchmark's plots: mIoU over rate, pseudo-labels over steps, one-factor dots, reliability. PNG, small.

Colours are Okabe and Ito's; methods without the prior in training are dashed, L2L is drawn wide.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from l2l.benchmark_page import HOW, Results, Values, gather, mean_sd, miou, paired
from l2l.benchmark_suites import Suite, number_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#6e7781", "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6D31", "#24292f", "#A0522D",
           "#6A3D9A")  # fmt: skip
PSEUDO = {"iou_proposal": ("P† prior", "#6e7781", "--"), "iou_fused": ("P̃† fused", "#009E73", "-"),
          "iou_model": ("Q model alone", "#0072B2", "-")}  # fmt: skip
COLOURS_OF_HOW = {"prior": "#009E73", "no_prior": "#0072B2"}
FREE = ", no prior in training"


def plots(suite: Suite, results: Results) -> Iterator[tuple[str, str, bytes]]:
    """(short name, title, PNG) of what a suite has to show."""
    drawn = " (simulated prior)" if suite.simulated else ""
    values = {how: gather(suite, results, miou(how)) for how in HOW}
    numbers = [column for column in suite.columns if number_of(column) is not None]
    if any(values.values()) and suite.taken_apart:
        yield "miou", f"{suite.reference} minus the others, points of mIoU{drawn}", _worth(suite, values)
    elif any(values.values()) and len(numbers) > 1:
        yield "miou", f"mIoU over {suite.column}{drawn}", _curves(suite, values, numbers)
    elif any(values.values()):
        yield "miou", f"mIoU, {suite.columns[0]}{drawn}", _dots(suite, values)
    reference = [cell for cell in suite.cells if cell.row == suite.reference and cell.key in results]
    columns = [column for column in suite.columns if any(cell.column == column for cell in reference)]
    probes = {
        column: [results[cell.key]["probes"] for cell in reference if cell.column == column] for column in columns
    }
    if any(one for own in probes.values() for one in own):
        yield "pseudo-labels", f"IoU of {suite.reference}'s pseudo-labels over steps{drawn}", _evolution(probes)
    tables = {
        how: [results[cell.key]["calibration"][how]["bins"] for cell in reference
              if how in results[cell.key]["calibration"]]
        for how in HOW
    }  # fmt: skip
    if any(tables.values()):
        yield "reliability", f"Expected against achieved IoU of {suite.reference}{drawn}", _reliability(tables)


def _curves(suite: Suite, values: Mapping[str, Values], columns: list[str]) -> bytes:
    """One line per row over the columns that are numbers, with and without the prior."""
    methods = list(dict.fromkeys(row.removesuffix(FREE) for row in suite.rows))
    x_of = {column: number_of(column) or 0.0 for column in columns}

    def draw(axes: Axes, how: str) -> None:
        for row in suite.rows:
            points = [(x_of[column], *mean_sd(list(values[how][row, column].values())))
                      for column in columns if (row, column) in values[how]]  # fmt: skip
            if not points:
                continue
            x, mean, sd = np.array(points).T
            method = row.removesuffix(FREE)
            axes.errorbar(
                x, 100 * mean, 100 * sd, label=row, color=COLOURS[methods.index(method) % len(COLOURS)], capsize=2,
                linestyle="--" if row.endswith(FREE) else "-", linewidth=2.4 if method == suite.reference else 1.2,
                marker="o", markersize=3, elinewidth=0.8,
            )  # fmt: skip
        if suite.log:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(list(x_of.values()), list(x_of))
        axes.set(xlabel=suite.column, title=HOW[how])
        if axes.has_data():
            axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    return _panels(list(HOW), draw, ylabel="mIoU on val, %", width=6, height=4.6)


def _dots(suite: Suite, values: Mapping[str, Values]) -> bytes:
    """One line per row of a suite that changes one thing at a time; a vertical line through the reference."""
    column = suite.columns[0]
    rows = [row for row in suite.rows if any((row, column) in own for own in values.values())][::-1]

    def draw(axes: Axes, how: str) -> None:
        for at, row in enumerate(rows):
            seeds = list(values[how].get((row, column), {}).values())
            if not seeds:
                continue
            mean, sd = mean_sd(seeds)
            axes.plot(100 * np.array(seeds), [at] * len(seeds), ".", color="#6e7781", markersize=4, alpha=0.6)
            axes.errorbar(100 * mean, at, xerr=100 * sd, fmt="o", color=COLOURS_OF_HOW[how], capsize=2, markersize=5)
            if row == suite.reference:
                axes.axvline(100 * mean, color="#24292f", linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set(xlabel="mIoU on val, %", title=HOW[how])

    return _panels(list(HOW), draw, width=5.2, height=1.4 + 0.24 * len(rows))


def _worth(suite: Suite, values: Mapping[str, Values]) -> bytes:
    """What each row lacks of the reference, seed by seed (dots) and in the mean (rings), a colour for each column."""
    points = {
        (how, row, column): found for how in HOW for row in suite.rows if row != suite.reference
        for column in suite.columns if (found := [100 * one for one in paired(suite, values[how], row, column)])
    }  # fmt: skip
    rows = [row for row in suite.rows if any(row == other for _, other, _ in points)][::-1]
    colours = dict(zip(suite.columns, COLOURS[1:], strict=False))

    def draw(axes: Axes, how: str) -> None:
        axes.axvline(0, color="#24292f", linewidth=0.8)
        for place, (column, colour) in enumerate(colours.items()):
            up = 0.22 * ((len(colours) - 1) / 2 - place)
            label: str | None = column
            for at, row in enumerate(rows):
                if found := points.get((how, row, column)):
                    axes.plot(found, [at + up] * len(found), ".", color=colour, markersize=4, alpha=0.6)
                    mean = mean_sd(found)[0]
                    axes.plot(mean, at + up, "o", color=colour, fillstyle="none", markersize=7, label=label)
                    label = None
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.set(xlabel="points of mIoU", title=HOW[how], ylim=(-0.6, len(rows) - 0.4))
        if how == next(iter(HOW)) and points:
            axes.legend(fontsize=7, frameon=False, loc="lower right", title=suite.column, title_fontsize=7)

    return _panels(list(HOW), draw, width=5.6, height=1.4 + 0.32 * len(rows), share=True)


def _evolution(probes: Mapping[str, list[list[dict[str, Any]]]]) -> bytes:
    """Means over seeds at the steps that all of them have measured, one panel per column."""

    def draw(axes: Axes, column: str) -> None:
        for name, (label, colour, style) in PSEUDO.items():
            tracks = [{one["step"]: one[name] for one in own if name in one} for own in probes[column]]
            steps = sorted(set.intersection(*map(set, tracks))) if tracks else []
            if steps:
                mean = np.mean([[track[step] for step in steps] for track in tracks], axis=0)
                axes.plot(steps, 100 * mean, style, color=colour, label=f"{label} {100 * mean[-1]:.1f}")
        axes.set(xlabel="step", title=f"{column} ({len(probes[column])} seeds)")
        if axes.has_data():
            axes.legend(fontsize=7, frameon=False)

    return _panels(list(probes), draw, ylabel="IoU, %", width=2.9, height=3.2, share=True)


def _reliability(tables: Mapping[str, list[list[list[float]]]]) -> bytes:
    """Bins of all columns and seeds, pooled by rank: the first bins of all cells make the first point."""

    def draw(axes: Axes, how: str) -> None:
        axes.plot([0, 1], [0, 1], color="#24292f", linewidth=0.8, linestyle=":")
        for cells in tables[how]:
            _, expected, achieved = np.array(cells).T
            axes.plot(expected, achieved, color=COLOURS_OF_HOW[how], linewidth=0.6, alpha=0.35)
        whole = [np.array(cells) for cells in tables[how] if len(cells) == max(map(len, tables[how]))]
        if whole:
            _, expected, achieved = np.mean(whole, axis=0).T
            axes.plot(expected, achieved, "o-", color=COLOURS_OF_HOW[how], markersize=4)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="expected IoU", title=HOW[how])

    return _panels(list(HOW), draw, ylabel="achieved IoU", width=3.4, height=3.6)


def _panels(
    names: list[str], draw: Callable[[Axes, str], None], *, width: float, height: float, ylabel: str = "",
    share: bool = False,
) -> bytes:  # fmt: skip
    """One panel per name side by side; sizes in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 10, "axes.axisbelow": True, "axes.edgecolor": "#d8dee4", "text.color": "#24292f",
    }  # fmt: skip
    with rc_context(style):  # no pyplot: nothing global is touched
        figure: Figure = Figure(figsize=(width * len(names), height), dpi=100, layout="constrained")
        every = figure.subplots(1, len(names), squeeze=False, sharey=True if share else "none")[0]
        for axes, name in zip(every, names, strict=True):
            draw(axes, name)
            axes.grid(color="#d8dee4", linewidth=0.6)
        every[0].set_ylabel(ylabel)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return _fewer_colours(buffer.getvalue())


def _fewer_colours(png: bytes) -> bytes:
    """The same picture with a palette: a third of the bytes. By octree: a median cut melts rare colours into one."""
    from PIL import Image

    buffer, picture = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(128, method=Image.Quantize.FASTOCTREE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
