"""The benchmark's page: the cells there are as markdown tables, one CSV per suite, and plots."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l2l.benchmark_cell import cell_file
from l2l.benchmark_suites import Cell, Suite
from l2l.data.durable import write_whole
from l2l.errors import InputError

Results = Mapping[str, dict[str, Any]]
"""What the cells' files hold, by key."""
Pick = Callable[[dict[str, Any]], float | None]
Values = dict[tuple[str, str], dict[int, float]]
"""Row and column -> seed -> value."""

HOW = {"prior": "with the prior", "no_prior": "without a prior"}
PSEUDO = {
    "iou_proposal": "P† IoU", "iou_fused": "P̃† IoU", "accuracy_selected": "accuracy, selected",
    "gain_selected": "gain, selected", "gain_all": "gain, all",
    "coverage_samples": "samples taken", "coverage_front": "foreground taken",
    "precision_front": "precision, accepted foreground", "precision_at_own_coverage": "precision, policy cut",
    "threshold_best": "precision, best threshold",
}  # fmt: skip


def read_cells(suites: Sequence[Suite], out: Path) -> Results:
    """Every cell of the suites that is done. Raises `InputError` for a damaged file."""
    found = {}
    for key in dict.fromkeys(cell.key for suite in suites for cell in suite.cells):
        path = cell_file(out, key)
        try:
            if path.exists():
                found[key] = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"not a cell's results ({error}); remove it to have it made again", file=path) from error
    return found


def write_page(suites: Sequence[Suite], out: Path | str) -> Path:
    """Write `out`/README.md, `out`/tables/SUITE.csv and `out`/plots/*.png from the cells there are.

    Raises:
        InputError: if a cell's file is damaged or nothing can be written.
    """
    from l2l.benchmark_plots import plots

    out = Path(out)
    results = read_cells(suites, out)
    parts = [_intro(suites, results, out)]
    for suite in suites:
        drawn = [(title, f"plots/{suite.name}-{name}.png", png) for name, title, png in plots(suite, results)]
        for folder in (out / "plots", out / "tables"):
            folder.mkdir(parents=True, exist_ok=True)
        for _, place, png in drawn:
            write_whole(out / place, png)
        write_whole(out / "tables" / f"{suite.name}.csv", _csv(suite, results, out).encode())
        parts.append(_section(suite, results, [f"![{title}]({place})" for title, place, _ in drawn], out))
    path = out / "README.md"
    write_whole(path, ("\n\n".join(parts) + "\n").encode())
    return path


def miou(how: str) -> Pick:
    """mIoU of a cell `prior` or `no_prior`; the prior alone counts as with the prior."""

    def pick(result: dict[str, Any]) -> float | None:
        scores, method = result["scores"], result["config"]["train"]["method"]
        name = "prior_alone" if (how, method) == ("prior", "prior_only") else how
        return scores[name]["mIoU"] if name in scores else None

    return pick


def ece(how: str) -> Pick:
    """Expected calibration error of a cell's expected IoU."""
    return lambda result: result["calibration"].get(how, {}).get("ece")


def last_probe(name: str) -> Pick:
    """A yardstick of a cell's last probe."""
    return lambda result: result["probes"][-1].get(name) if result["probes"] else None


def gather(suite: Suite, results: Results, pick: Pick) -> Values:
    """One figure of all cells of a suite that are done and have it."""
    values: Values = {}
    for cell in suite.cells:
        if cell.key in results and (value := pick(results[cell.key])) is not None:
            values.setdefault((cell.row, cell.column), {})[cell.seed] = value
    return values


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value).

    Example:
        >>> mean_sd([1.0, 3.0])
        (2.0, 1.4142135623730951)
    """
    import numpy as np

    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def paired(suite: Suite, values: Values, row: str, column: str) -> list[float]:
    """The reference row minus `row`, seed by seed; what no seed changes (the prior alone) is met with every seed."""
    ours, theirs = values.get((suite.reference, column), {}), values.get((row, column), {})
    fixed = {cell.row for cell in suite.cells if cell.config.train.method == "prior_only"}
    if row in fixed and theirs:
        theirs = dict.fromkeys(ours, next(iter(theirs.values())))
    return [ours[seed] - theirs[seed] for seed in sorted(ours) if seed in theirs]


def table(first: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A markdown table."""
    lines = [[first, *columns], ["---", *["---:"] * len(columns)], *([name, *cells] for name, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_table(suite: Suite, values: Values) -> str:
    """Rows x columns, "mean ± sd (seeds)" in percent, a dash where nothing is there, the best of a column bold.

    Full supervision is what can be reached and not a rival: it is never the best.
    """
    ceiling = {cell.row for cell in suite.cells if cell.config.train.method == "fully_supervised"}
    means = {place: mean_sd(list(seeds.values())) for place, seeds in values.items()}
    tops = {
        column: max((mean for (row, own), (mean, _) in means.items() if own == column and row not in ceiling),
                    default=None)
        for column in suite.columns
    }  # fmt: skip

    def show(row: str, column: str) -> str:
        if (row, column) not in means:
            return "–"
        (mean, sd), n = means[row, column], len(values[row, column])
        text = f"{100 * mean:.1f} ± {100 * sd:.1f} ({n})" if n > 1 else f"{100 * mean:.1f} (1)"
        return f"**{text}**" if row not in ceiling and mean == tops[column] else text

    rows = [row for row in suite.rows if any((row, column) in means for column in suite.columns)]
    return table("", suite.columns, [(row, [show(row, column) for column in suite.columns]) for row in rows])


def paired_table(suite: Suite, values: Values) -> str:
    """Reference minus row in points of mIoU: mean, least and greatest over the seeds that both have."""

    def show(row: str, column: str) -> str:
        points = [100 * one for one in paired(suite, values, row, column)]
        return f"{mean_sd(points)[0]:+.1f} [{min(points):+.1f}, {max(points):+.1f}] ({len(points)})" if points else "–"

    rows = [(row, [show(row, column) for column in suite.columns]) for row in suite.rows if row != suite.reference]
    rows = [(row, cells) for row, cells in rows if any(cell != "–" for cell in cells)]
    return table(f"{suite.reference} minus", suite.columns, rows) if rows else ""


def pseudo_table(suite: Suite, results: Results) -> str:
    """The pseudo-labels of L2L at the end of training, means over seeds in percent; "" where nothing was measured."""
    own = {(cell.row, cell.column) for cell in suite.cells if cell.config.train.method == "l2l"}
    found = {name: gather(suite, results, last_probe(name)) for name in PSEUDO}
    rows = []
    for row in suite.rows:
        for column in suite.columns:
            seeds = {name: found[name].get((row, column), {}) for name in PSEUDO}
            if (row, column) in own and seeds["iou_fused"]:
                cells = [f"{100 * mean_sd(list(one.values()))[0]:.1f}" if one else "–" for one in seeds.values()]
                rows.append((f"{row}, {column}", [*cells, str(len(seeds["iou_fused"]))]))
    return table("", [*PSEUDO.values(), "seeds"], rows) if rows else ""


def ece_table(suite: Suite, results: Results) -> str:
    """Calibration error in points, with the prior / without it, means over seeds."""
    found = [gather(suite, results, ece(how)) for how in HOW]

    def show(row: str, column: str) -> str:
        both = [one.get((row, column)) for one in found]
        shown = [f"{100 * mean_sd(list(seeds.values()))[0]:.1f}" if seeds else "–" for seeds in both]
        return " / ".join(shown) if any(both) else "–"

    rows = [(row, [show(row, column) for column in suite.columns]) for row in suite.rows]
    rows = [(row, cells) for row, cells in rows if any(cell != "–" for cell in cells)]
    return table("", suite.columns, rows) if rows else ""


def _section(suite: Suite, results: Results, pictures: Sequence[str], out: Path) -> str:
    keys = {cell.key for cell in suite.cells}
    there = [results[key] for key in keys if key in results]
    simulated = any(one["data"]["prior_simulated"] for one in there) or suite.simulated
    parts = [f"## {suite.title}{' (simulated prior)' if simulated else ''}", suite.text]
    if not keys:
        return "\n\n".join([*parts, "There are no cells yet."])
    told = f"Columns: {suite.column}. {len(there)} of {len(keys)} trainings are there; "
    command = f"l2l benchmark --suite {suite.name} --out {shlex.quote(out.as_posix())}"
    parts.append(f"{told}`{command}` makes the rest. Each cell, its key and its command: "
                 f"[tables/{suite.name}.csv](tables/{suite.name}.csv).")  # fmt: skip
    if not there:
        return "\n\n".join(parts)
    drawn = ", simulated prior" if simulated else ""
    for how, name in HOW.items():
        values = gather(suite, results, miou(how))
        if values:
            parts += [f"### mIoU on val {name} at inference, percent{drawn if how == 'prior' else ''}",
                      score_table(suite, values)]  # fmt: skip
            if differences := paired_table(suite, values):
                parts += [f"Seed by seed, {suite.reference} minus the others, points of mIoU {name}:", differences]
    if pseudo := pseudo_table(suite, results):
        parts += [f"### Pseudo-labels of L2L at the end of training, percent{drawn}", pseudo]
    if errors := ece_table(suite, results):
        parts += ["### Calibration error of the expected IoU, points, with the prior / without", errors]
    parts += [f"{len(events)} interventions of the drift guard in {len([one for one in there if one['events']])} "
              "trainings; the cells' files have them."] if (events := _events(there)) else []  # fmt: skip
    return "\n\n".join([*parts, *pictures])


def _events(results: Sequence[dict[str, Any]]) -> list[str]:
    return [event["event"] for one in results for event in one["events"]]


def _intro(suites: Sequence[Suite], results: Results, out: Path) -> str:
    keys = {cell.key for suite in suites for cell in suite.cells}
    lines = [
        "# Benchmark",
        "Mean ± standard deviation over label seeds (how many). A dash: not run, or it does not exist. Label seeds "
        "differ more than methods do, so the paired differences tell more than the means. Bold: the best of a column, "
        "full supervision aside. Columns of different seeds are not to be compared.",
        f"{len(results)} of {len(keys)} trainings are there. This page: "
        f"`l2l benchmark --page --out {shlex.quote(out.as_posix())}`.",
    ]
    if results:
        hours = sum(one["seconds"]["train"] for one in results.values()) / 3600
        machines: dict[str, int] = {}
        for one in results.values():
            own = one["machine"]
            name = "{device} ({kind}), {cores} cores, {threads} threads, torch {torch}, {precision}".format(**own)
            machines[name] = machines.get(name, 0) + 1
        codes = sorted({one["machine"]["code"] for one in results.values()})
        lines.append(f"{hours:.1f} hours of training on " + "; ".join(f"{one}: {n}" for one, n in machines.items())
                     + f". Code: {', '.join(codes)}" + (
                         " (**several states of the code**)." if len(codes) > 1 else "."))  # fmt: skip
    return "\n\n".join(lines)


def _csv(suite: Suite, results: Results, out: Path) -> str:
    """One line per cell: what it is, what came out, and the command that makes it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "column", "seed", "key", "miou_prior", "miou_no_prior", "ece_prior", "ece_no_prior",
                     "train_seconds", "command"])  # fmt: skip
    picks = (miou("prior"), miou("no_prior"), ece("prior"), ece("no_prior"), lambda one: one["seconds"]["train"])
    for cell in suite.cells:
        one = results.get(cell.key)
        figures = ["" if one is None or (value := pick(one)) is None else f"{value:.6g}" for pick in picks]
        writer.writerow([cell.row, cell.column, cell.seed, cell.key, *figures, command_of(cell, out)])
    return text.getvalue()


def command_of(cell: Cell, out: Path) -> str:
    """What makes this cell and no other."""
    return f"l2l benchmark --suite {cell.suite} --only {cell.key} --out {shlex.quote(out.as_posix())}"


def listing(cells: Sequence[Cell], out: Path) -> str:
    """Cells, one a line, with done or missing; and how many."""
    lines, done = [], 0
    for cell in cells:
        there = cell_file(out, cell.key).exists()
        done += there
        state = "done" if there else "failed" if (out / "failed" / f"{cell.key}.txt").exists() else "missing"
        lines.append(f"{cell.key}  {state:<7}  {cell.suite}: {cell.row}, {cell.column}, seed {cell.seed}")
    return "\n".join([*lines, f"{done} of {len(cells)} cells done"])
