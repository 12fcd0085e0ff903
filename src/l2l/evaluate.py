"""Scores of a run on a split, at the pictures' own resolution, with the prior, without it, and the prior alone."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2l.config import Config
from l2l.data.durable import write_whole
from l2l.data.images import digest
from l2l.data.splits import Split
from l2l.errors import BadRecords, InputError
from l2l.generalised import GeneralisedScores, generalised_scores
from l2l.metrics import Calibration, Scores, calibration, iou, overlap, summarise
from l2l.model.network import Network
from l2l.model.text import Vocabulary
from l2l.model.words import vocabulary_of
from l2l.outlines import Drawer, raised, upsample
from l2l.proposals.bank import PriorBank, read_priors, soft_maps
from l2l.proposals.proposal import Proposals
from l2l.sample import Sample
from l2l.training.loop import CHECKPOINT, SPLIT, load_run
from l2l.training.pool import Pool, build_pool, grid_size, normalise
from l2l.training.prepare import choose_precision, choose_sam, read_data


@dataclass(frozen=True)
class PairScore:
    """One image-sentence pair of a split."""

    id: str
    intersection: int
    union: int
    score: float
    """What the model thinks its IoU is, in [0, 1]."""
    rho: float | None = None
    """What the model thinks the IoU of the prior's proposal is, in [0, 1]; `None` where it was given none."""
    prior_iou: float | None = None
    """What that is in truth; `None` with `rho`."""
    predicted: int | None = None
    """Pixels of the answer; only where some sentences of the split mean nothing, or several things."""

    @property
    def iou(self) -> float:
        return float(iou(np.array(self.intersection), np.array(self.union)))


@dataclass(frozen=True)
class Evaluation:
    """Scores of one way to answer one split."""

    method: str
    """`l2l`, `supervised`, ... or `prior alone`."""
    data: str
    split: str
    prior: str
    """Whose prior was given at inference; empty for none."""
    prior_simulated: bool
    scores: Scores
    pairs: tuple[PairScore, ...]
    run: str = ""
    """Hash of the run's configuration; empty, like `weights`, in files of older versions."""
    step: int = 0
    """Where the run's training stood."""
    weights: str = ""
    """Digest of the run's checkpoint, by which a stale evaluation is known; empty for a run without one."""
    outlines: float = 0.0
    """Where masks were drawn with outlines (`l2l.outlines`): the factor by which that was foreseen to raise the IoU."""

    @property
    def generalised(self) -> GeneralisedScores | None:
        """gIoU, cIoU, N-acc and T-acc; `None` where every sentence means one thing."""
        said = [one.predicted for one in self.pairs if one.predicted is not None]
        if not said or len(said) < len(self.pairs):
            return None
        return generalised_scores([one.intersection for one in self.pairs], [one.union for one in self.pairs], said)

    @property
    def calibration(self) -> Calibration:
        """The score against the IoU."""
        return calibration([one.score for one in self.pairs], [one.iou for one in self.pairs])

    @property
    def rho_calibration(self) -> Calibration | None:
        """rho against the IoU of the prior's proposal; `None` if no pair was given a prior."""
        known = [(one.rho, one.prior_iou) for one in self.pairs if one.rho is not None and one.prior_iou is not None]
        return calibration([rho for rho, _ in known], [reached for _, reached in known]) if known else None

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        rho, general = self.rho_calibration, self.generalised
        also = {"generalised": general.to_json(), "predicted": [one.predicted for one in self.pairs]} if general else {}
        return {
            "method": self.method, "data": self.data, "split": self.split, "prior": self.prior,
            "prior_simulated": self.prior_simulated, "run": self.run, "step": self.step, "weights": self.weights,
            **({"outlines": self.outlines} if self.outlines else {}),
            "scores": self.scores.to_json(), "calibration": self.calibration.to_json(),
            "rho_calibration": rho.to_json() if rho else None, "pairs": [_row(one) for one in self.pairs], **also,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        """The inverse of `to_json`; files of older versions, which lack `rho` and the run's hash, are read as well."""
        said = value.get("predicted") or [None] * len(value["pairs"])
        pairs = tuple(
            dataclasses.replace(_pair(*row), predicted=count) for row, count in zip(value["pairs"], said, strict=True)
        )
        scores = summarise([one.intersection for one in pairs], [one.union for one in pairs])
        named = {name: value[name] for name in ("method", "data", "split", "prior", "prior_simulated")}
        step, run, weights = int(value.get("step", 0)), str(value.get("run", "")), str(value.get("weights", ""))
        return cls(**named, scores=scores, pairs=pairs, run=run, step=step, weights=weights,
                   outlines=float(value.get("outlines", 0)))  # fmt: skip


def _row(one: PairScore) -> list[Any]:
    """A pair as a row: id, intersection, union, score and, where there is a prior, rho and the IoU of the prior."""
    return [one.id, one.intersection, one.union, one.score, *([] if one.rho is None else [one.rho, one.prior_iou])]


def _pair(key: Any, inter: Any, union: Any, score: Any, rho: Any = None, prior_iou: Any = None) -> PairScore:
    expected, reached = (None if value is None else float(value) for value in (rho, prior_iou))
    return PairScore(str(key), int(inter), int(union), float(score), expected, reached)


def weights_of(run: Path) -> str:
    """Digest of a run's checkpoint; empty where nothing was trained."""
    return digest(str(run / CHECKPOINT)) if (run / CHECKPOINT).exists() else ""


def prepare_split(
    samples: Sequence[Sample], config: Config, vocabulary: Vocabulary, prior: str, *, bad: BadRecords | None = None
) -> tuple[Pool, PriorBank | None]:
    """Tables of some samples, with their priors if `prior` names a store or a file."""
    size = (config.data.height, config.data.width)
    pool = build_pool(samples, vocabulary, size=size, words=config.data.words, labelled=False,
                      device=config.train.device)  # fmt: skip
    if not prior:
        return pool, None
    bank = read_priors(prior, samples, bad=bad)
    return pool.with_proposals(*soft_maps(bank.priors, pool.images, pool.image_of, grid_size(size),
                                          sam=choose_sam(config), pictures=pool.pictures)), bank  # fmt: skip


def answers(
    network: Network, pool: Pool, config: Config, *, prior: bool, batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(rows, logits (B, h, w), expected IoU (B,)) of all pairs of a pool, in order."""
    for rows, logits, score, _ in answers_and_rho(network, pool, config, prior=prior, batch=batch, progress=progress):
        yield rows, logits, score


@torch.no_grad()
def answers_and_rho(
    network: Network, pool: Pool, config: Config, *, prior: bool, batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """As `answers`, and rho (B,), the expected IoU of the prior's proposal; it means nothing where there is none.

    A picture is made ready, and looked at as far as that takes no words, once for all its sentences in a batch.
    """
    kind, precision = config.train.device.split(":")[0], choose_precision(config)
    for rows in torch.arange(len(pool)).split(batch):
        pictures, place = pool.image_of[rows].unique(return_inverse=True)
        image = normalise(pool.images[pictures].to(pool.device).float() / 255)
        with torch.autocast(kind, torch.bfloat16, enabled=precision == torch.bfloat16):
            seen = tuple(part[place.to(pool.device)] for part in network.segmenter.look(image))
            answer = network(image, pool.tokens[rows].to(pool.device), proposals_of(pool, rows), seen=seen)
        assert answer.elevated is not None
        if prior:
            logits, reliability = answer.best, answer.elevated.score
        else:
            logits, reliability = answer.q, answer.elevated.kappa
        assert logits is not None
        yield rows, logits.cpu(), network.sesm.promised(reliability).cpu(), answer.elevated.rho.sigmoid().cpu()
        if progress:
            progress(int(rows[-1]) + 1, len(pool))


def proposals_of(pool: Pool, rows: Tensor) -> Proposals:
    """As in `pool.batch(rows)`, but no picture is touched."""
    soft, score, present = (part[rows].to(pool.device) for part in (pool.soft, pool.score, pool.present))
    return Proposals(soft.float() / 255, score, present)


def prior_answers(pool: Pool, *, batch: int = 256) -> Iterator[tuple[Tensor, Tensor, Tensor, None]]:
    """The prior alone: P cut at 0.5, nothing where there is no prior; its own score; no rho."""
    for rows in torch.arange(len(pool)).split(batch):
        x = proposals_of(pool, rows)
        logits = torch.where(x.present[:, None, None], torch.logit(x.soft, 1e-4), -9.0)
        yield rows, logits, x.score, None


def score_pairs(
    pool: Pool, results: Iterable[tuple[Tensor, Tensor, Tensor, Tensor | None]], prior: Sequence[PairScore] = (),
    draw: Callable[[Tensor, int], np.ndarray] | None = None,
) -> tuple[PairScore, ...]:  # fmt: skip
    """Compare each answer with the truth at the picture's own size; each mask is decoded once.

    Args:
        results: rows, logits, scores and rho, as `answers_and_rho` and `prior_answers` give them.
        prior: what the prior alone scores on the same pairs, beside which rho is kept.
        draw: makes a mask of an answer to a row, as `outlines.Drawer` does; if not given, `upsample`.
    """
    ids, present = pool.ids, pool.present.tolist()
    general = any(sample.targets is not None and len(sample.targets) != 1 for sample in pool.samples)
    out: list[PairScore] = []
    at, truth = -1, np.zeros((1, 1), bool)
    for rows, logits, scores, rho in results:
        expected = [None] * len(rows) if rho is None else rho.tolist()
        for row, logit, score, reliability in zip(rows.tolist(), logits, scores.tolist(), expected, strict=True):
            ref = int(pool.ref_of[row])
            if ref != at:
                at, truth = ref, pool.samples[ref].mask()
            answer = draw(logit, row) if draw else upsample(logit, pool.samples[ref].size)
            inter, union = overlap(answer, truth)
            said = int(np.count_nonzero(answer)) if general else None
            one = PairScore(ids[row], inter, union, round(score, 4), predicted=said)  # rounded as the file has it
            if prior and reliability is not None and present[row]:
                one = dataclasses.replace(one, rho=round(reliability, 4), prior_iou=round(prior[row].iou, 4))
            out.append(one)
    return tuple(out)


def evaluate(
    run: Path | str, *, data: str | Path | None = None, split: str = "val", prior: str | Path | None = None,
    no_prior: bool = False, images: Path | None = None, refs: str | None = None, outlines: bool = False,
    save: bool = True, progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Score a run on a split.

    With a prior (the run's own unless another is named) two rows come back, the run with the prior and the prior alone;
    with `no_prior`, or for a run that never had one, the run by itself. JSON goes to `RUN/evaluations/`. With
    `outlines` masks get theirs from the pictures (`l2l.outlines`), the prior's as well.

    Raises:
        InputError: if the run, the data, the split or the prior is not there.
    """
    config, network, _, about = load_run(run)
    if data is None:
        dataset = read_data(config.data)
    else:
        own = dataclasses.replace(
            config.data, data=str(data), images=str(images or ""), refs=refs or "",
        )  # fmt: skip
        dataset = read_data(own)
    samples = [sample for sample in dataset.split(split) if sample.targets is not None]
    if not samples:
        raise InputError(f"split {split} has no masks to compare with", file=dataset.root)
    where = "" if no_prior else str(prior or config.data.prior)
    if network is None and not where:
        raise InputError("this run is the prior alone: name a prior with --prior", file=run)
    bad = BadRecords(skip=config.data.skip_bad)
    pool, bank = prepare_split(samples, config, vocabulary_of(config, about, run), where, bad=bad)
    name, simulated = (bank.name, bank.simulated) if bank else ("", False)

    def made(method: str, pairs: tuple[PairScore, ...]) -> Evaluation:
        scores = summarise([one.intersection for one in pairs], [one.union for one in pairs])
        return Evaluation(method, dataset.name, split, name, simulated, scores, pairs, str(about["hash"]),
                          int(about.get("step", 0)), weights, gain)  # fmt: skip

    weights = weights_of(Path(run))
    draw, gain = None, 0.0
    if outlines:
        draw, gain = Drawer(pool), 1.0
        if network is not None:
            gain = outline_gain(run, config, network, about, prior=bank is not None)
    alone = score_pairs(pool, prior_answers(pool), draw=draw) if bank is not None else ()
    out = []
    if network is not None:
        results = answers_and_rho(network, pool, config, prior=bank is not None, progress=progress)
        told = ((rows, logits, raised(score, gain or 1), rho) for rows, logits, score, rho in results)
        out.append(made(config.train.method, score_pairs(pool, told, alone, draw)))
    if bank is not None:
        out.append(made("prior alone", alone))
    if save:
        for one in out:
            _save(Path(run), one)
    return out


def _save(run: Path, one: Evaluation) -> None:
    how = "prior" if one.prior else "no-prior"
    kind = "prior-alone" if one.method == "prior alone" else how
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    path = folder / f"{one.data}-{one.split}-{kind}{'-outlines' if one.outlines else ''}.json"
    write_whole(path, (json.dumps(one.to_json()) + "\n").encode())


GAIN, KNOWN = "outlines.json", 200  # the file of a run, and how many referents tell what is in it


def outline_gain(
    run: Path | str, config: Config, network: Network, about: dict[str, Any], *, prior: bool
) -> float:
    """By what factor outlines raise the IoU of a run's answers, at least 1: measured on its labelled pictures, `KNOWN`
    referents of them, with the prior and without it, and kept in the run's folder.

    What the run expects of an answer is meant without outlines; times this it is meant with them. Answers on pictures
    that were learned from are better than others, and so is their factor: on others it may be larger.

    Raises:
        InputError: if the labelled pictures cannot be read and nothing was kept.
    """
    file, weights, how = Path(run) / GAIN, weights_of(Path(run)), "prior" if prior else "no_prior"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["weights"] == weights and how in kept:
            return float(kept[how])
    except (OSError, ValueError, KeyError, TypeError):
        kept = {}
    samples = Split.load(Path(run) / SPLIT).apply(read_data(config.data).samples)[0]
    samples = sorted(random.Random(0).sample(samples, min(KNOWN, len(samples))), key=lambda one: one.image)
    where = config.data.prior if prior else ""
    pool, bank = prepare_split(samples, config, vocabulary_of(config, about, Path(run)), where)
    draw = Drawer(pool)
    results = list(answers_and_rho(network, pool, config, prior=bank is not None))
    plain, drawn = (sum(one.iou for one in score_pairs(pool, results, draw=way)) for way in (None, draw))
    gain = round(max(1.0, drawn / plain), 4) if plain else 1.0
    others = kept if kept.get("weights") == weights else {}
    write_whole(file, json.dumps({**others, "weights": weights, how: gain}).encode())
    return gain


def generalised_table(rows: Sequence[tuple[str, GeneralisedScores]]) -> str:
    """Generalised scores as aligned text, in percent; a dash where no sentence is of the kind that is asked about."""
    names = ["gIoU", "cIoU", "N-acc", "T-acc", "P@0.7", "P@0.8", "P@0.9"]
    wide = max([len(name) for name, _ in rows] + [6])
    lines = [" " * wide + "".join(f"{name:>8}" for name in names) + f"{'n':>8}{'no target':>11}"]
    for name, scores in rows:
        flat = scores.to_json()
        cells = ("       -" if flat[key] is None else f"{100 * (flat[key] or 0):8.2f}" for key in names)
        lines.append(f"{name:<{wide}}" + "".join(cells) + f"{scores.n:8d}{scores.no_target:11d}")
    return "\n".join(lines)


def table(rows: Sequence[tuple[str, Scores]]) -> str:
    """Scores as aligned text, in percent."""
    names = ["mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    wide = max([len(name) for name, _ in rows] + [6])
    lines = [" " * wide + "".join(f"{name:>8}" for name in names) + f"{'n':>8}"]
    for name, scores in rows:
        flat = scores.to_json()
        lines.append(f"{name:<{wide}}" + "".join(f"{100 * flat[key]:8.2f}" for key in names) + f"{scores.n:8d}")
    return "\n".join(lines)
