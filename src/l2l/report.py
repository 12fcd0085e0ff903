"""A run as one HTML file: scores and what they are worth, pseudo-labels over time, prior against model, cases, curves.

The file holds everything it shows (pictures as data URIs, no script, no network), so it can be mailed and kept.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l.config import Config
from l2l.errors import InputError

if TYPE_CHECKING:
    from l2l.evaluate import Evaluation
    from l2l.report_gallery import Section
    from l2l.sample import Sample

COLUMNS = ("mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
METHODS = {
    "l2l": "Learning to Label (L2L)",
    "supervised": "supervised training on labelled pairs alone",
    "fully_supervised": "supervised training on all training pairs, every one of them labelled",
    "prior_only": "the frozen prior alone",
    "prior_training": "training on the prior’s masks as they are",
    "fixmatch": "FixMatch (confident pseudo-labels)",
    "mean_teacher": "Mean Teacher (agreement with its own slow mean)",
    "resmatch": "RESMatch (FixMatch made for referring expressions)",
    "semires": "SemiRES (pseudo-labels mended with regions of the picture)",
    "dam_net": "DAM-Net (two strong views and attention consistency)",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """One line of the headline table."""

    name: str
    detail: str
    simulated: bool
    """The prior behind the numbers is drawn from the truth."""
    evaluation: Evaluation
    own: bool
    """Measured on the very pairs of this run's table; others are not compared."""


def report(
    run: Path | str, *, beside: Sequence[Path | str] = (), out: Path | None = None, data: str | None = None,
    split: str = "val", gallery: int = 12, progress: Progress | None = None,
) -> Path:
    """Write a run's report and return where it is.

    Args:
        run: a run directory. beside: other run directories, for the table.
        out: the HTML file; `RUN/report.html` if not given.
        data: another data set than the run's own. split: what to measure on.
        gallery: about how many cases to show.
        progress: called with (pairs done, pairs) during each evaluation that has to be made.

    Raises:
        InputError: if a run, the data or the split is not there or is damaged.
    """
    from l2l.priors.known import seen
    from l2l.report_calibration import calibrated
    from l2l.report_curves import SCORE, read_metrics, temporal, told, training
    from l2l.report_gallery import make_gallery
    from l2l.training.loop import METRICS, load_run
    from l2l.training.prepare import read_data

    run = Path(run)
    config, network, extra, about = load_run(run)
    source = config.data if data is None else dataclasses.replace(config.data, data=data, images="", refs="")
    dataset = read_data(source)
    samples = [sample for sample in dataset.samples if sample.split == split]
    if not samples and split != "val":
        dataset.split(split)  # raises, naming the splits there are
    truth = [sample for sample in samples if sample.targets is not None]
    ids = [key for sample in truth for key in sample.sentence_ids]
    found, notes = _evaluations(run, config, about, data, split, ids, progress) if truth else ({}, [])
    if not truth:
        why = "has no masks: no truth to measure with." if samples else "does not exist: nothing to measure on."
        notes = [f"Split {split} of {dataset.name} {why}"]
    rows = _rows(run, config, about, found, ids, None)
    for other in dict.fromkeys(map(Path, beside)):
        if truth and other.resolve() != run.resolve():
            about_other = _load_json(other / "about.json")
            config_other = Config.load(other / "config.json")
            theirs, said = _evaluations(other, config_other, about_other, data, split, ids, progress)
            rows += _rows(other, config_other, about_other, theirs, ids, rows)
            notes += [f"{other.name}: {note}" for note in said]

    logs, probes, every = read_metrics(run / METRICS)
    events = [one for one in every if not one.text.startswith(SCORE)]
    notes += [f"{one.text[0].upper()}{one.text[1:]}." for one in every if one.text.startswith(SCORE)]
    shown: list[Section] = []
    if network is not None and samples and gallery > 0:
        shown = make_gallery(run, config, network, extra, about, truth or samples, found, gallery)
    return _write(Path(out) if out else run / "report.html", {
        "name": run.resolve().name, "config": config, "about": about, "split": split, "data": dataset.name,
        "sentence": _sentence(config, about), "facts": _facts(config, about), "simulated": about["prior_simulated"],
        "models": _models(about),
        "seen": seen(about["prior"], about["data"]), "notes": notes, "columns": COLUMNS, "table": _table(rows),
        "kinds": _by_kind(rows, truth), "error": _standard_error(rows), "has_truth": bool(truth),
        "trained": network is not None,
        "temporal": temporal(config, about, logs, probes, events), "joint": _joint(found), "sections": shown,
        "calibration": calibrated(found, simulated=about["prior_simulated"]), "events": told(config, events),
        "training": training(logs, events), "settings": _settings(config), "policy": config.train.method == "l2l",
    })  # fmt: skip


def _evaluations(
    run: Path, config: Config, about: dict[str, Any], data: str | None, split: str, ids: list[str],
    progress: Progress | None,
) -> tuple[dict[str, Evaluation], list[str]]:
    """`with` the prior, `without` it and the prior `alone`, as far as the run has them, read or made; and remarks."""
    from l2l.evaluate import evaluate

    trained = config.train.method != "prior_only"
    found = _stored(run, split, about, ids)
    notes: list[str] = []
    if trained and "without" not in found:
        found["without"] = evaluate(run, data=data, split=split, no_prior=True, progress=progress)[0]
    if config.data.prior and not ({"with", "alone"} if trained else {"alone"}) <= set(found):
        try:
            for one in evaluate(run, data=data, split=split, progress=progress):
                found["alone" if one.method == "prior alone" else "with"] = one
        except InputError as error:
            if not trained:
                raise
            notes = [f"No numbers with the prior: {error.reason}."]
            found = {"without": found["without"]}
    return found, notes


def _stored(run: Path, split: str, about: dict[str, Any], ids: list[str]) -> dict[str, Evaluation]:
    """What `RUN/evaluations` holds for exactly these pairs, this prior and these weights.

    Files of older versions do not say which weights they are about: they count if they are younger.
    """
    from l2l.evaluate import Evaluation, weights_of
    from l2l.training.loop import CHECKPOINT, CONFIG

    weights = run / CHECKPOINT if (run / CHECKPOINT).exists() else run / CONFIG
    made = weights.stat().st_mtime if weights.exists() else 0.0
    now, prior = (str(about["hash"]), weights_of(run)), about["prior"]
    found: dict[str, Evaluation] = {}
    for path in sorted((run / "evaluations").glob("*.json")):
        try:
            one = Evaluation.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # damaged: it will be made again
        fits = one.split == split and one.prior in ("", prior) and [pair.id for pair in one.pairs] == ids
        if fits and not one.outlines and ((one.run, one.weights) == now if one.run else path.stat().st_mtime >= made):
            found["alone" if one.method == "prior alone" else "with" if one.prior else "without"] = one
    return found


def _rows(
    run: Path, config: Config, about: dict[str, Any], found: dict[str, Evaluation], ids: list[str],
    above: list[Row] | None,
) -> list[Row]:
    """Lines of one run; `above` are those of the runs before it, `None` for the run of the report itself."""
    name = "this run" if above is None else run.resolve().name
    detail = f"{config.train.method}, seed {config.train.seed}, {config.train.steps:,} steps"
    rows = []
    for key, how in (("with", ", with the prior"), ("without", ", without a prior"), ("alone", "")):
        if (one := found.get(key)) is None:
            continue
        own = [pair.id for pair in one.pairs] == ids
        simulated = one.prior_simulated or (key == "without" and about["prior_simulated"])
        if key != "alone":
            how = how if about["prior"] else ""
            rows.append(Row(name + how, detail, simulated, one, own))
        elif not any(row.evaluation.pairs == one.pairs for row in above or ()):
            rows.append(Row("prior alone", one.prior, simulated, one, own))
    return rows


def _table(rows: list[Row]) -> list[dict[str, Any]]:
    """Cells as text, in percent; the best of each column among the comparable rows is marked."""
    shown = [[f"{100 * row.evaluation.scores.to_json()[name]:.2f}" for name in COLUMNS] for row in rows]
    return _marked(rows, shown, [f"{row.evaluation.scores.n:,}" for row in rows])


def _by_kind(rows: list[Row], samples: Sequence[Sample]) -> dict[str, Any] | None:
    """mIoU by kind of sentence, for drawn scenes."""
    from l2l.data.scene_pictures import KINDS
    from l2l.data.scene_sentences import kind_of

    if not samples or not samples[0].image.startswith("scenes:"):
        return None
    kinds = {key: kind_of(sentence) for sample in samples for key, sentence in sample.pairs()}
    counts = {kind: sum(one == kind for one in kinds.values()) for kind in KINDS}
    counts = {kind: count for kind, count in counts.items() if count}
    own = [row for row in rows if row.own]
    shown = []
    for row in own:
        ious = {kind: [pair.iou for pair in row.evaluation.pairs if kinds[pair.id] == kind] for kind in counts}
        shown.append([f"{100 * sum(values) / len(values):.2f}" for values in ious.values()])
    return {"columns": counts, "rows": _marked(own, shown, [""] * len(own))}


def _marked(rows: list[Row], shown: list[list[str]], last: list[str]) -> list[dict[str, Any]]:
    own = [cells for row, cells in zip(rows, shown, strict=True) if row.own]
    best = [max(map(float, column)) for column in zip(*own, strict=True)] if len(own) > 1 else None
    return [
        {"row": row, "n": n, "cells": [(text, bool(best and row.own and float(text) == top))
                                       for text, top in zip(cells, best or [0.0] * len(cells), strict=True)]}
        for row, cells, n in zip(rows, shown, last, strict=True)
    ]  # fmt: skip


def _standard_error(rows: list[Row]) -> str:
    """Of the first row's mIoU, in points."""
    import numpy as np

    if not rows or len(rows[0].evaluation.pairs) < 2:
        return ""
    values = 100 * np.array([pair.iou for pair in rows[0].evaluation.pairs])
    return f"{values.std(ddof=1) / len(values) ** 0.5:.2f}"


def _sentence(config: Config, about: dict[str, Any]) -> str:
    unlabelled = about["refs"] - about["labelled_refs"]
    prior = f"a prior from “{about['prior']}”" if about["prior"] else "no prior"
    if config.train.method == "prior_only":
        return f"{prior[0].upper()}{prior[1:]}, measured by itself: nothing was trained."
    method = METHODS.get(config.train.method, f"the method “{config.train.method}”")
    masks = f"{about['labelled_refs']:,} masks on {about['labelled_images']:,} of {about['images']:,} images"
    uses = unlabelled and config.train.method not in ("supervised", "fully_supervised")
    rest = f", {unlabelled:,} further referents without a mask" if uses else ""
    return f"A segmenter that follows sentences, made by {method}: {masks}{rest}, and {prior}."


def _facts(config: Config, about: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, remark)."""
    share = about["labelled_images"] / max(1, about["images"])
    planned, done = config.train.steps, int(about.get("step", config.train.steps))
    steps = f"{planned:,}" if done >= planned else f"{done:,} of {planned:,}"
    facts = [
        ("method", config.train.method, ""),
        ("data", str(about["data"]), ""),
        ("labelled images", f"{about['labelled_images']:,} / {about['images']:,}", f"{100 * share:.3g} %"),
        ("pairs", f"{about['pairs']:,}", f"{about['pairs_with_prior']:,} with a prior"),
        ("prior", str(about["prior"]) or "none", ""),
        ("steps", steps, "" if done >= planned else "unfinished"),
        ("seed", str(config.train.seed), ""),
        ("config", str(about["hash"]), ""),
        ("split", str(about["split_hash"]), ""),
        ("precision", str(about["precision"]), ""),
    ]
    hidden = ("steps", "precision") if config.train.method == "prior_only" else ()
    return [fact for fact in facts if fact[0] not in hidden]


def _models(about: dict[str, Any]) -> str:
    """Pretrained parts and SAM, each with the beginning of its commit or digest; runs of older versions do not say."""
    shown = []
    for key, what in (("backbone", "backbone"), ("text", "text encoder"), ("sam", "SAM")):
        name, _, version = str(about.get(key, "")).rpartition("@")
        if name:
            shown.append(f"{what} {name}@{version[:12]}")
    return ", ".join(shown)


def _settings(config: Config) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """(section, [(setting, value, changed)])."""
    plain = Config().to_json()
    return [
        (section, [(name, json.dumps(value) if value != "" else "–", value != plain[section][name])
                   for name, value in values.items()])
        for section, values in config.to_json().items()
    ]  # fmt: skip


def _joint(found: dict[str, Evaluation]) -> dict[str, Any] | None:
    """Prior alone against model alone, and what the run makes of each quadrant."""
    import numpy as np

    from l2l.report_plots import scatter

    if not {"alone", "without", "with"} <= set(found):
        return None
    prior, model, both = (np.array([pair.iou for pair in found[key].pairs]) for key in ("alone", "without", "with"))
    names = {(False, True): "model only", (True, True): "both", (False, False): "neither", (True, False): "prior only"}
    quadrants = []
    for (by_prior, by_model), name in names.items():
        inside = ((prior > 0.5) == by_prior) & ((model > 0.5) == by_model)
        n = int(inside.sum())
        quadrants.append({
            "name": name, "n": n, "share": f"{100 * n / len(prior):.1f}",
            "right": f"{100 * float((both[inside] > 0.5).mean()):.1f}" if n else "–",
            "miou": f"{100 * float(both[inside].mean()):.2f}" if n else "–",
        })  # fmt: skip
    labels = [f"{one['name']}: {one['n']:,} ({one['share']} %)" for one in quadrants]
    plot = scatter(prior, model, both, names=labels, alt="IoU of prior alone against model alone. " + "; ".join(labels))
    return {"plot": plot, "quadrants": quadrants, "n": len(prior), "correlation": _correlation(prior, model)}


def _correlation(x: Any, y: Any) -> str:
    import numpy as np

    return f"{np.corrcoef(x, y)[0, 1]:.2f}" if len(x) > 2 and x.std() > 0 and y.std() > 0 else ""


def _load_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"no run here: {error}", file=path) from error


def _write(path: Path, context: dict[str, Any]) -> Path:
    """Fill the template; the file is there whole or not at all."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    from l2l.report_gallery import legend

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("l2l") / "templates" / "report.html").read_text(encoding="utf-8"))
    text = template.render(**context, legend=legend())
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", errors="replace")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write the report: {error.strerror}", file=path) from error
    return path
