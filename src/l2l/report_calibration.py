"""Does a score mean what it says: expected against achieved IoU, of the run's answers and of what it says of the prior.

A reliability diagram as in "On Calibration of Modern Neural Networks" (Guo et al., ICML 2017), with IoU for accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l2l.metrics import Calibration
from l2l.report_plots import reliability

if TYPE_CHECKING:
    from l2l.evaluate import Evaluation

FEW = 30  # pairs in a bin: below, chance alone moves its mean IoU by 0.05 and more


@dataclass(frozen=True)
class Judged:
    """Somebody's expectation of something, and how it turned out."""

    name: str
    whose: str
    """Which score it is."""
    simulated: bool
    """A prior that is drawn from the truth has a part in it."""
    found: Calibration


def calibrated(found: dict[str, Evaluation], *, simulated: bool) -> dict[str, Any] | None:
    """The section "Calibration": `rows` of a table, `plots`, and `said`, what the scores are good for.

    Args:
        found: evaluations `with` the prior, `without` it, and of the prior `alone`, as far as there are any.
        simulated: whether the run's own prior is.
    """
    given, without, alone = (found.get(key) for key in ("with", "without", "alone"))
    rows: list[Judged] = []
    if given:
        rows.append(Judged("Answers with the prior", "score", given.prior_simulated, given.calibration))
    if without:
        name = "Answers without a prior" if given else "Answers"
        rows.append(Judged(name, "score", simulated, without.calibration))
    if not rows:
        return None
    main = rows[0].found
    said = [meaning(main)]
    if given and without and not constant(rows[1].found):
        said[0] += f" Without a prior it is off by {_off(rows[1].found)}."
    if given and (rho := given.rho_calibration):
        rows.append(Judged("The prior, as this run sees it", "ρ", given.prior_simulated, rho))
        said += [] if constant(rho) else [f"ρ, what it expects of the prior, is off by {_off(rho)}. {_ends(rho)}"]
    plots = [
        reliability(one.found, title=one.name, colour=colour, alt=_in_words(one.name, one.found))
        for one, colour in zip(rows, ("green", "blue", "purple"), strict=False)
        if not constant(one.found)
    ]
    if alone:
        whose = "the frozen model’s own score"
        rows.append(Judged("The prior, by itself", whose, alone.prior_simulated, alone.calibration))
    few = not constant(main) and main.n / len(main.bins) < FEW
    return {"rows": [(one, _cells(one.found)) for one in rows], "plots": plots, "said": said, "few": few}


def constant(one: Calibration) -> bool:
    """Whether the score is the same for all pairs, as where no method has taught it."""
    return len(one.bins) == 1


def meaning(one: Calibration) -> str:
    """What a user may do with the score, in a sentence or two."""
    if constant(one):
        return (f"The score is the same for every pair, {one.expected:.2f}: it was not learned here and says nothing "
                "about the single mask.")  # fmt: skip
    if one.ece <= 0.05:
        return f"A score can be read as the IoU to expect: it is off by {_off(one)}. {_ends(one)}"
    if one.ece <= 0.1:
        return f"A score is a rough guess of the IoU: it is off by {_off(one)}. {_ends(one)}"
    ranks = "but it does rank the masks" if one.correlation >= 0.3 else "and it hardly ranks the masks"
    return f"Do not read a score as an IoU here: it is off by {_off(one)}, {ranks}. {_ends(one)}"


def _off(one: Calibration) -> str:
    bias = one.expected - one.achieved
    if abs(bias) < 0.5 * one.ece or one.ece < 0.005:
        return f"{one.ece:.3f} on average"
    return f"{one.ece:.3f} on average, mostly too {'high' if bias > 0 else 'low'}"


def _ends(one: Calibration) -> str:
    low, high = one.bins[0], one.bins[-1]
    return (f"Where it expects {high.expected:.2f} the masks reach {high.achieved:.2f}, where it expects "
            f"{low.expected:.2f} they reach {low.achieved:.2f}.")  # fmt: skip


def _cells(one: Calibration) -> list[str]:
    correlation = f"{one.correlation:.2f}".replace("-", "−") if math.isfinite(one.correlation) else "–"
    return [f"{one.n:,}", f"{one.expected:.3f}", f"{one.achieved:.3f}", f"{one.ece:.3f}", correlation]


def _in_words(title: str, one: Calibration) -> str:
    points = "; ".join(f"{part.expected:.2f} expected, {part.achieved:.2f} achieved" for part in one.bins)
    return f"{title}: expected against achieved IoU, calibration error {one.ece:.3f}. {points}"
