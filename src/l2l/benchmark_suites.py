"""What the benchmark runs: suites of cells, each cell one training. Settings only; nothing here does work.

Data are named, not placed: `data.data` is `scenes` or `fashion`, `data.prior` one of "" (none), `grounder`, `own` (the
data set's own `priors.jsonl`) and `simulated:accuracy=0.5,errors=random,seed=0`. So a cell has one key everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from l2l.config import Config, MethodName

SEEDS = (0, 1, 2)

PRIOR = "simulated:accuracy=0.6,errors=random,seed=0"
SCENES = (
    Config()
    .replace("data", data="scenes", prior=PRIOR, scenes_count=2000, height=96, width=96, rate=0.05)
    .replace("model", channels=(40, 80, 128, 160), depths=(1, 2, 2, 1), context=(0, 1, 1), width=48, start="away")
    .replace("sesm", together=False)
    .replace("train", steps=300, seed=0, labelled=8, held_out=8, unlabelled=24, rate=1e-3, ema=0.97)
    .replace("train", probe_every=100, save_every=50)
)
"""1,800 training pictures, so that 0.1 % is one of them. All methods start from the encoders of another world, and full
supervision is near its plateau after these steps (docs/results.md has the curve). The prior is simulated: the embedded
grounder shares its encoders with the start, hence its mistakes, and two voices that err together cannot correct one
another; it has a suite of its own."""
FASHION = (
    SCENES.replace("data", data="fashion", prior="own", height=144, width=96)
    .replace("model", channels=(32, 64, 128, 160), depths=(1, 1, 1, 1), start="")
    .replace("train", steps=800, labelled=16, held_out=10, unlabelled=16, rate=5e-4)
)
"""750 training photographs: 0.1 % would be none of them."""

SCENES_RATES = (0.001, 0.01, 0.05, 0.10)
FASHION_RATES = (0.002, 0.01, 0.05, 0.10)
METHODS: tuple[MethodName, ...] = (
    "supervised", "prior_training", "fixmatch", "mean_teacher", "resmatch", "semires", "dam_net", "l2l",
)  # fmt: skip
PRIOR_FREE: tuple[MethodName, ...] = (
    "supervised", "fixmatch", "mean_teacher", "resmatch", "semires", "dam_net", "l2l",
)  # fmt: skip
"""Those that can learn without any prior as well."""
BEST_RIVALS: tuple[MethodName, ...] = ("fixmatch", "semires")
"""Those that go along where the prior's quality is swept."""
UNLABELLED_WEIGHT: dict[tuple[str, str], float] = {("fashion", "fixmatch"): 0.3, ("fashion", "dam_net"): 0.3}
"""Suite and method, where it is not the default: on photographs FixMatch falls below labels alone with it
(docs/LOG.md)."""
ACCURACIES = (0.1, 0.3, 0.6, 0.8, 0.95)


@dataclass(frozen=True)
class Cell:
    """One training and what is measured of it."""

    suite: str
    row: str
    """What the table's row is called."""
    column: str
    """What its column is called."""
    seed: int
    config: Config
    """With named data."""

    @property
    def key(self) -> str:
        """12 hex digits, the same on every machine; cells with equal keys are one training."""
        return self.config.hash()


@dataclass(frozen=True)
class Suite:
    """Cells that answer one question."""

    name: str
    title: str
    text: str
    """What question it answers."""
    column: str
    """What the columns are."""
    cells: tuple[Cell, ...]
    reference: str = "l2l"
    """The row that the others are paired with."""
    log: bool = False
    """Columns are drawn on a logarithmic axis."""
    taken_apart: bool = False
    """Each row is the reference with one thing changed: what is drawn is how much that takes away."""

    @property
    def simulated(self) -> bool:
        """A prior of some cell is drawn from the truth (so is `fashion`'s own)."""
        return any(cell.config.data.prior.startswith(("simulated", "own")) for cell in self.cells)

    @property
    def rows(self) -> list[str]:
        """In the order they were written."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """In the order they were written."""
        return list(dict.fromkeys(cell.column for cell in self.cells))


def percent(rate: float) -> str:
    """A rate as a column's name.

    Example:
        >>> percent(0.001), percent(0.05)
        ('0.1 %', '5 %')
    """
    return f"{100 * rate:g} %"


def number_of(column: str) -> float | None:
    """The number that a column's name is (a rate in percent), or `None` where it is more or other than that.

    Example:
        >>> number_of("0.1 %"), number_of("0.95"), number_of("0.7, systematic")
        (0.1, 0.95, None)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?: %)?", column)
    return float(found[1]) if found else None


def with_steps(suites: Sequence[Suite], steps: int) -> list[Suite]:
    """The same suites with other steps: other cells, for a try."""
    return [
        replace(suite, cells=tuple(replace(c, config=c.config.replace("train", steps=steps)) for c in suite.cells))
        for suite in suites
    ]


def with_seeds(suites: Sequence[Suite], seeds: Sequence[int]) -> list[Suite]:
    """The same suites with these label seeds beside their own, in every place that has several."""

    def more(suite: Suite) -> tuple[Cell, ...]:
        several = {(cell.row, cell.column) for cell in suite.cells if cell.seed != SEEDS[0]}
        first = [cell for cell in suite.cells if cell.seed == SEEDS[0] and (cell.row, cell.column) in several]
        return tuple(
            replace(cell, seed=seed, config=cell.config.replace("train", seed=seed))
            for seed in dict.fromkeys(seeds) if seed not in SEEDS for cell in first
        )  # fmt: skip

    return [replace(suite, cells=suite.cells + more(suite)) for suite in suites]


def _methods(suite: str, base: Config, rates: Sequence[float]) -> tuple[Cell, ...]:
    """All methods at all rates, with and without the prior in training."""
    cells = []
    alone = base.replace("train", method="prior_only")  # neither rate nor seed changes it
    for rate in rates:
        column = percent(rate)
        cells.append(Cell(suite, "prior_only", column, alone.train.seed, alone))
        for seed in SEEDS:
            own = base.replace("data", rate=rate).replace("train", seed=seed)
            for method in METHODS:
                cells.append(Cell(suite, method, column, seed, _fitted(suite, own, method)))
            for method in PRIOR_FREE:
                bare = _fitted(suite, own.replace("data", prior=""), method)
                cells.append(Cell(suite, f"{method}, no prior in training", column, seed, bare))
            more = own.replace("train", method="l2l").replace("sesm", together=True)
            cells.append(Cell(suite, "l2l, sentences of a referent together", column, seed, more))
            full = own.replace("data", rate=1.0).replace("train", method="fully_supervised")
            cells.append(Cell(suite, "fully_supervised", column, seed, full))
    return tuple(cells)


def _fitted(suite: str, base: Config, method: MethodName) -> Config:
    weight = UNLABELLED_WEIGHT.get((suite, method), base.train.unlabelled_weight)
    return base.replace("train", method=method, unlabelled_weight=weight)


ABLATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("l2l", ()),
    ("without SESM", ("sesm.use=false",)),
    ("SESM that does not weigh", ("sesm.weigh=false",)),
    ("the prior's score not calibrated", ("sesm.calibrate=false",)),
    ("held-out labels released at 80 %", ("sesm.release=0.8",)),
    ("labels not mended", ("sesm.regions=false",)),
    ("the guided answer learns from the fused proposal", ("sesm.commit=false",)),
    ("sentences of a referent together", ("sesm.together=true",)),
    ("without guidance", ("sesm.guidance=false",)),
    ("the guided pass teaches the encoder as much", ("sesm.guided_share=1",)),
    ("without a prior", ("data.prior=",)),
    ("everything believed", ("rple.rule=threshold", "rple.threshold=0.5")),
    ("fixed threshold for RPLE", ("rple.rule=threshold",)),
    ("labels cut at 0.5", ("rple.soft=false",)),
    ("learned confidence for RPLE", ("rple.rule=confidence",)),
    ("a policy that learns nothing", ("rple.truth=0", "rple.utility=0")),
    ("samples weighed, not chosen", ("rple.candidates=1",)),
    ("reward: how right, not what is gained", ("rple.gain=false",)),
    ("reward from labels trained on", ("sesm.held_out=0", "rple.guard=false")),
    ("no reward from labels", ("rple.truth=0",)),
    ("with the agreement reward", ("rple.agreement=0.2",)),
    ("no one-step utility", ("rple.utility=0",)),
    ("K = 2 sampled actions", ("rple.samples=2",)),
    ("K = 4 sampled actions", ("rple.samples=4",)),
    ("K = 16 sampled actions", ("rple.samples=16",)),
    ("exact gradient", ("rple.estimator=exact",)),
    ("samples: one of four", ("rple.candidates=4",)),
    ("foreground: 0.4 to 0.7", ("rple.front_low=0.4", "rple.front_high=0.7")),
    ("without the drift guard", ("rple.guard=false",)),
)
"""Row and what it changes; elsewhere K is 8, the policy chooses one of two samples, and accepts at least 0.8 of their
foreground. Fixed thresholds choose samples by chance; a policy that learns nothing, by their expected gain."""


PARTS = ("l2l", "without SESM", "without guidance", "everything believed")
"""Rows that are made on photographs, too: what the method has in its name."""


def _ablations() -> tuple[Cell, ...]:
    """L2L at 1 % and 5 % of the labels with one thing changed; its main parts on photographs as well."""
    cells = []
    for row, changes in ABLATIONS:
        config = SCENES.replace("train", method="l2l").override(*changes)
        for rate in (0.01, 0.05):
            own = config.replace("data", rate=rate)
            cells += [Cell("ablations", row, percent(rate), seed, own.replace("train", seed=seed)) for seed in SEEDS]
        if row in PARTS:
            own = FASHION.replace("train", method="l2l").replace("data", rate=0.05).override(*changes)
            column = f"{percent(0.05)}, photographs"
            cells += [Cell("ablations", row, column, seed, own.replace("train", seed=seed)) for seed in SEEDS]
    return tuple(cells)


def _prior_quality() -> tuple[Cell, ...]:
    """Priors of stated accuracy; one whose errors are systematic; and the embedded grounder."""
    priors = {f"{one:g}": f"simulated:accuracy={one:g},errors=random,seed=0" for one in ACCURACIES}
    priors["0.6, blank scores"] = "simulated:accuracy=0.6,errors=random,scores=blank,seed=0"
    priors["0.6, systematic"] = "simulated:accuracy=0.6,errors=systematic,seed=0"
    priors["grounder"] = "grounder"
    cells = []
    for column, prior in priors.items():
        base = SCENES.replace("data", rate=0.05, prior=prior)
        alone = base.replace("train", method="prior_only")
        cells.append(Cell("prior-quality", "prior_only", column, alone.train.seed, alone))
        for seed in SEEDS:
            for method in ("prior_training", *BEST_RIVALS, "l2l"):
                own = base.replace("train", method=method, seed=seed)
                cells.append(Cell("prior-quality", method, column, seed, own))
    return tuple(cells)


def _shift() -> tuple[Cell, ...]:
    """Half of the pictures from either world; labels (as many) from both of them, or from one world alone."""
    columns = {"labels from both": ("", 0.05), "labels from away": ("away", 0.10), "labels from home": ("home", 0.10)}
    cells = []
    for column, (world, rate) in columns.items():
        base = SCENES.replace("data", scenes_world="both", labels_from=world, rate=rate)
        cells.append(Cell("shift", "prior_only", column, 0, base.replace("train", method="prior_only")))
        for seed in SEEDS:
            for method in ("supervised", "prior_training", *BEST_RIVALS, "l2l"):
                cells.append(Cell("shift", method, column, seed, base.replace("train", method=method, seed=seed)))
    return tuple(cells)


def _guard() -> tuple[Cell, ...]:
    """Where the loop would poison itself: hardly a label, a bad prior; with and without the guard."""
    bad = PRIOR.replace("0.6", "0.1")
    columns = {
        "0.1 % labels": (0.001, PRIOR), "0.1 % labels, prior 0.1": (0.001, bad), "1 % labels, prior 0.1": (0.01, bad),
    }  # fmt: skip
    cells = []
    for column, (rate, prior) in columns.items():
        base = SCENES.replace("data", rate=rate, prior=prior)
        cells.append(Cell("guard", "prior_only", column, 0, base.replace("train", method="prior_only")))
        for seed in SEEDS:
            own = base.replace("train", seed=seed)
            cells.append(Cell("guard", "supervised", column, seed, own.replace("train", method="supervised")))
            cells.append(Cell("guard", "l2l", column, seed, own))
            cells.append(Cell("guard", "l2l, unguarded", column, seed, own.replace("rple", guard=False)))
            if rate == 0.01:  # a loop that takes the prior at its word
                plain = own.replace("sesm", use=False)
                cells.append(Cell("guard", "l2l without SESM", column, seed, plain))
                bare = plain.replace("rple", guard=False)
                cells.append(Cell("guard", "l2l without SESM, unguarded", column, seed, bare))
    return tuple(cells)


def _plateau() -> tuple[Cell, ...]:
    """Full supervision with other numbers of steps: how near its plateau the benchmark stands."""
    full = SCENES.replace("data", rate=1.0).replace("train", method="fully_supervised")
    return tuple(
        Cell("plateau", "fully_supervised", str(steps), 0, full.replace("train", steps=steps))
        for steps in (75, 150, 300, 600)
    )


SUITES: tuple[Suite, ...] = (
    Suite(
        "scenes", "Methods on drawn scenes",
        "Which method makes most of few masks? Same data, network, start, steps and evaluation; the prior is "
        "simulated, right on about 60 % of the objects.",
        "labelled pictures", _methods("scenes", SCENES, SCENES_RATES), log=True,
    ),
    Suite(
        "fashion", "Methods on street photographs",
        "The same question on photographs (Clothing Co-Parsing), whose sentences are templates and whose prior is "
        "drawn from the truth once, about 70 % on the right region.",
        "labelled pictures", _methods("fashion", FASHION, FASHION_RATES), log=True,
    ),
    Suite(
        "ablations", "What L2L is made of",
        "What is each part worth? L2L on drawn scenes, one thing changed at a time; its main parts also on "
        "photographs.",
        "labelled pictures", _ablations(), taken_apart=True,
    ),
    Suite(
        "prior-quality", "How good the prior has to be",
        "How much does the prior's quality matter, and when does believing it do harm? Drawn scenes with 5 % of the "
        "masks; priors of a stated chance of the right object. Systematic errors are the same in like pictures.",
        "accuracy of the prior", _prior_quality(),
    ),
    Suite(
        "shift", "Under domain shift",
        "What is left when the labelled and the unlabelled pictures differ?",
        "shift", _shift(),
    ),
    Suite(
        "guard", "The drift guard",
        "What happens where the loop would poison itself, and does the guard prevent it?",
        "what is wrong", _guard(),
    ),
    Suite(
        "plateau", "Can this benchmark see label quality?",
        "Full supervision with fewer and more steps: if it still climbs steeply, steps are short, not labels.",
        "steps", _plateau(), reference="fully_supervised",
    ),
)  # fmt: skip
