"""What `metrics.jsonl` has to tell, as figures: the quality of the pseudo-labels over time, and the training curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2l.config import Config
from l2l.report_plots import Line, Mark, Plot, curves

Rows = list[dict[str, float]]

GUARD, SCORE = "drift guard: ", "prior's score: "

YARDSTICKS = {
    "iou_proposal": "IoU of P†, the prior's proposal",
    "iou_fused": "IoU of P̃†, the fused proposal",
    "iou_model": "IoU of Q, the model alone",
    "iou_guided": "IoU of the guided answer M",
    "rho": "mean ρ, expected IoU of the prior",
    "accuracy_all": "accuracy of all cells",
    "accuracy_selected": "accuracy of the selected region",
    "gain_all": "IoU that P̃† has over Q, all samples",
    "gain_selected": "IoU that P̃† has over Q, what is selected",
    "coverage": "coverage, all cells",
    "coverage_front": "coverage, foreground",
    "coverage_samples": "coverage, samples",
    "precision_front_all": "precision of all foreground",
    "precision_front": "precision of accepted foreground",
    "precision_at_own_coverage": "precision of the policy, ranked and cut at its coverage",
    "threshold_best": "precision of the best fixed threshold at that coverage",
}
TRAINING = (
    ("Loss on labels and pseudo-labels", (
        ("loss_x", "labels", "blue", "-"), ("loss_x_guided", "guided", "sky", "--"),
        ("loss_u", "pseudo", "red", "-"), ("loss_u_guided", "pseudo guided", "orange", "--"))),
    ("Loss of SESM on held-out labels", (
        ("loss_fused", r"fused", "green", "-"), ("loss_rho", r"$\rho$", "purple", "-"),
        ("loss_kappa", r"$\kappa$", "orange", "--"))),
    ("Reward", (
        ("reward", "held-out", "blue", "-"), ("reward_spread", "spread", "sky", "--"),
        ("reward_agreement", "agreement", "purple", "-"), ("utility", "utility", "orange", "-"))),
    ("Policy: divergence from its start, nats per decision", (("policy_divergence", "divergence", "purple", "-"),)),
    ("Voices in the fused proposal", (
        ("weight_prior", "prior", "grey", "-"), ("weight_model", "model Q", "blue", "--"),
        ("weight_guided", "guided answer M", "red", "-."))),
    ("Reliability and acceptance", (
        ("rho", r"$\rho$", "purple", "-"),
        ("accept_samples", "samples", "blue", "--"), ("accept_front", "foreground", "sky", "-"))),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened during training."""

    step: int
    text: str
    """As the log has it, `drift guard: ...`."""


def read_metrics(path: Path) -> tuple[Rows, Rows, list[Event]]:
    """(logs, probes, events) of a `metrics.jsonl`, each with its `step`; a line that was cut off is left out."""
    logs: Rows = []
    probes: Rows = []
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
            if "probe" in value:
                probes.append({"step": value["step"], **value["probe"]})
            elif "event" in value:
                events.append(Event(int(value["step"]), str(value["event"])))
            else:
                logs.append({"step": value["step"], **value})
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return logs, probes, events


def told(config: Config, events: Sequence[Event]) -> dict[str, Any]:
    """What the drift guard did: `title` and `lines` (step, text) of a box, and `after`, said under the curves."""
    if not events:
        silent = "The drift guard did not step in." if config.rple.guard else "The drift guard was off."
        return {"title": "", "lines": [], "guard": False, "after": silent if config.train.method == "l2l" else ""}
    steps = sorted({one.step for one in events})
    guard = all(one.text.startswith(GUARD) for one in events)
    what = "The drift guard stepped in" if guard else "Events of the training"
    at = f"at step {steps[0]:,}" if len(steps) == 1 else f"{len(events)} times from step {steps[0]:,} to {steps[-1]:,}"
    return {
        "title": f"{what} {at}", "lines": [(f"{one.step:,}", one.text.removeprefix(GUARD)) for one in events],
        "guard": guard, "after": f"Thin orange lines: {what[0].lower()}{what[1:]}, see above.",
    }  # fmt: skip


def temporal(
    config: Config, about: dict[str, Any], logs: Rows, probes: Rows, events: Sequence[Event] = ()
) -> dict[str, Any]:
    """The section "Temporal evolution": `plots`, a table of yardsticks, and `said`, what is missing and why."""
    prior, drawn = bool(about["prior"]), " (simulated)" if about["prior_simulated"] else ""
    policy = any("coverage" in probe for probe in probes) or any("loss_fused" in log for log in logs)
    last = float(max([one["step"] for one in (*probes, *logs)], default=1))
    marks, steps = _marks(config, policy, logs, last), _steps(events)
    if not probes:
        return _held_out(config, about, logs, last, marks, drawn, steps)
    lines = [
        _line(probes, "iou_proposal", rf"$P^{{\dagger}}$ prior{drawn}", "grey", "--") if prior else None,
        _line(probes, "iou_fused", r"$\tilde{P}^{\dagger}$ fused", "green") if policy else None,
        _line(probes, "iou_model", r"$Q$ model alone", "blue"),
        _line(probes, "iou_guided", "guided answer", "red", "-.") if prior else None,
    ]
    plots = [_plot(lines, "IoU of the pseudo-labels, %", last=last, marks=marks, events=steps)]
    if policy:
        lines = [
            _line(probes, "accuracy_selected", "accuracy, selected", "green"),
            _line(probes, "accuracy_all", "accuracy, all", "grey"),
            _line(probes, "coverage_samples", "samples taken", "sky", "--"),
            _line(probes, "coverage_front", "foreground taken", "blue", "--"),
            _line(probes, "precision_front", "precision, accepted", "red"),
            _line(probes, "precision_at_own_coverage", "precision, policy cut", "orange"),
            _line(probes, "threshold_best", "precision, threshold", "purple", ":"),
        ]
        plots.append(_plot(lines, "What is selected, %", last=last, marks=marks, events=steps))
        lines = [
            _line(probes, "gain_selected", "selected", "green"), _line(probes, "gain_all", "all", "grey", "--"),
        ]  # fmt: skip
        title = r"What a pseudo-label teaches: IoU that $\tilde{P}^{\dagger}$ has over $Q$"
        plots.append(_plot(lines, title, last=last, marks=marks, events=steps, percent=False, smooth=False))
    absent = set() if prior else {"iou_proposal", "iou_guided", "rho"}
    absent |= set() if policy else {"iou_fused", "rho"}
    table = [
        (name, *(f"{100 * value:.1f}" for value in (probes[0][key], probes[-1][key], max(one[key] for one in probes))))
        for key, name in YARDSTICKS.items()
        if key not in absent and all(key in one for one in probes)
    ]
    return {"plots": plots, "table": table, "said": "", "n": config.train.probe_pairs, "first": int(probes[0]["step"]),
            "last": int(probes[-1]["step"])}  # fmt: skip


def training(logs: Rows, events: Sequence[Event] = ()) -> list[Plot]:
    """One figure for each group of logs that the run has."""
    plots = []
    last = float(max([one["step"] for one in logs], default=1))
    for title, parts in TRAINING:
        lines = [_line(logs, key, name, colour, style) for key, name, colour, style in parts]
        if any(lines):
            plots.append(_plot(lines, title, last=last, events=_steps(events), percent=False, small=True))
    return plots


def _held_out(
    config: Config, about: dict[str, Any], logs: Rows, last: float, marks: Sequence[Mark], drawn: str,
    events: Sequence[float],
) -> dict[str, Any]:
    lines = [
        _line(logs, "held_out_prior", rf"$P^{{\dagger}}$ prior{drawn}", "grey", "--") if about["prior"] else None,
        _line(logs, "held_out_fused", r"$\tilde{P}^{\dagger}$ fused", "green"),
        _line(logs, "held_out_model", r"$Q$ model alone", "blue"),
    ]
    due = config.train.probe_every <= last or about.get("step") == config.train.steps
    said = "There is no truth to measure with: the unlabelled pairs of this data have no masks." if due else (
        "Nothing was measured yet: the run is shorter than one probe.")  # fmt: skip
    if any(lines):
        said += " Shown instead: IoU on labelled pairs held out of the segmenter's training, batch by batch."
    if any(lines):
        plots = [_plot(lines, "IoU on held-out labels, %", last=last, marks=marks, events=events, smooth=True)]
    else:
        plots = []
    return {"plots": plots, "table": [], "said": said, "n": 0, "first": 0, "last": int(last)}


def _steps(events: Sequence[Event]) -> list[float]:
    return sorted({float(one.step) for one in events})


def _marks(config: Config, policy: bool, logs: Rows, last: float) -> list[Mark]:
    """Where burn-in ends and where the held-out labels are released; only a method with a policy has both. A run that
    hears no prior holds nothing out: its labels are those of SemiRES."""
    if not policy:
        return []
    steps = config.train.steps
    marks = [Mark(config.train.burn_in * steps, "burn-in ends")]
    if not any("iom" in one for one in logs):
        marks.append(Mark(config.sesm.release * steps, "release"))
    return [mark for mark in marks if 0 < mark.step <= last]


def _line(rows: Rows, key: str, name: str, colour: str, style: str = "-") -> Line | None:
    points = [(one["step"], one[key]) for one in rows if key in one]
    return Line(name, points, colour, style) if points else None


def _plot(
    lines: Sequence[Line | None], title: str, *, last: float, marks: Sequence[Mark] = (),
    events: Sequence[float] = (), percent: bool = True, smooth: bool | None = None, small: bool = False,
) -> Plot:  # fmt: skip
    there = [line for line in lines if line is not None]
    factor = 100 if percent else 1
    ends = [(line.name, factor * line.points[0][1], factor * line.points[-1][1]) for line in there]
    told = f"{title} over steps: " + "; ".join(f"{name} from {first:.3g} to {end:.3g}" for name, first, end in ends)
    plain = told.translate(str.maketrans("", "", "$\\{}^")).replace("dagger", "†").replace("tildeP", "P̃")
    if events:
        plain += f"; a line at step {', '.join(f'{step:.0f}' for step in events)}"
    return curves(there, title=title, alt=plain, last=last, marks=marks, events=events,
                  percent=percent, smooth=not percent if smooth is None else smooth, small=small)  # fmt: skip
