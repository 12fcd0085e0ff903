"""The demo: `scenes` with 5 % of the masks; labels alone, the prior alone, and L2L, side by side in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from l2l.config import Config
from l2l.priors.make import SourceName

DEMO = (
    Config()
    .replace("data", data="scenes", scenes_count=1000, scenes_seed=0, rate=0.05)
    .replace("model", channels=(32, 64, 128, 160), depths=(1, 1, 1, 1), context=(0, 1, 1), width=48)
    .replace("train", steps=350, seed=0, labelled=16, held_out=12, unlabelled=32, rate=1e-3, probe_every=50)
)
"""One configuration for everything; only the method differs."""

METHODS = ("supervised", "l2l")


def demo(
    out: Path | str = Path("demo"), steps: int | None = None, *, config: Config = DEMO, source: SourceName = "grounder",
    say: Callable[[str], None] = print,
) -> Path:
    """Make priors, train both methods with the same steps, score everything on `val`, write the report.

    Started again in the same folder it goes on where it stopped.

    Args:
        out: where everything goes.
        steps: optimiser steps of each method, if not those of the demo.
        config: the settings. source: whose priors. say: takes what is told.

    Returns:
        The path of the report.
    """
    from l2l.evaluate import evaluate, table
    from l2l.metrics import Scores
    from l2l.priors.make import make_priors
    from l2l.progress import Progress
    from l2l.report import report
    from l2l.training.loop import train
    from l2l.training.prepare import read_data

    out = Path(out)
    if steps is not None:
        config = config.replace("train", steps=steps)
    config = config.replace("data", prior=str(out / "priors"))
    took: dict[str, float] = {}
    began = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal began
        took[part], began = time.perf_counter() - began, time.perf_counter()

    data = config.data
    say(f"{data.scenes_count} drawn scenes, {data.rate:.0%} of the train images with masks, {config.train.steps} steps")
    with Progress("priors") as progress:
        store = make_priors(read_data(data), out / "priors", source=source, progress=progress)
    prior = store.about()["name"]
    store.close()
    lap("priors")
    for method in METHODS:
        with Progress(f"train {method}") as progress:
            train(config.replace("train", method=method), out / method, resume=True, progress=progress)
        lap(f"train {method}")
    rows: dict[str, Scores] = {}
    for method in METHODS:
        for no_prior in (True, False):
            for one in evaluate(out / method, no_prior=no_prior):
                with_prior = one.prior and one.method != "prior alone"
                rows[f"{one.method} + prior" if with_prior else one.method] = one.scores
    lap("evaluate")
    page = report(out / METHODS[-1], beside=[out / method for method in METHODS[:-1]], out=out / "report.html")
    lap("report")

    order = ["supervised", "prior alone", "supervised + prior", "l2l", "l2l + prior"]
    say("")
    say(table([(name, rows[name]) for name in order]))
    say(f"(val, percent; the prior is {prior})")
    say("")
    for part, seconds in took.items():
        say(f"{part:<17} {seconds:6.1f} s")
    say(f"{'in all':<17} {sum(took.values()):6.1f} s")
    say("")
    say(f"report  {page}")
    say(f"runs    {', '.join(str(out / method) for method in METHODS)}")
    say(f"priors  {out / 'priors'}")
    say(f'try     l2l predict {out / "l2l"} scenes:home:0:9 "the leftmost star" --out mask.png --overlay over.png')
    return page
