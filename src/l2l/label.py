"""Masks for all the pairs: what a run makes of every unlabelled pair, each with an honest score and a verdict.

`labels.jsonl` grows batch by batch and can be killed at any moment: the next call cuts off what was half written, skips
what is there, and ends with the same bytes as a call that was never cut off.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2l.config import Config
from l2l.data.durable import append, remove_drafts, sync, write_durably
from l2l.data.images import digest
from l2l.data.read import DataSet, read
from l2l.data.readable import readable
from l2l.data.splits import Split
from l2l.errors import BadRecords, InputError
from l2l.evaluate import outline_gain, prepare_split
from l2l.labelling.policy import observe
from l2l.labelling.records import pooled
from l2l.labelling.rple import Rple
from l2l.model.network import Network
from l2l.model.words import vocabulary_of
from l2l.outlines import Drawer, raised, upsample
from l2l.predict import tight_box
from l2l.proposals.bank import PriorBank
from l2l.rle import Rle
from l2l.sample import Sample
from l2l.training.loop import CHECKPOINT, SPLIT, load_run
from l2l.training.pool import Pool, normalise
from l2l.training.prepare import choose_precision, read_data

LABELS, ABOUT, SKIPPED = "labels.jsonl", "about.json", "skipped.jsonl"


@dataclass(frozen=True)
class Labelled:
    """What the network and the policy say of some pairs; B of them."""

    logits: Tensor
    """(B, h, w)."""
    score: Tensor
    """Expected IoU, (B,) in [0, 1]."""
    sample: Tensor | None
    """Probability that the policy accepts the pair, (B,); `None` for a run without a policy."""
    foreground: Tensor | None
    """Mean acceptance of the cells of the mask, (B,); 0 where the mask is empty."""


def label(
    run: Path | str, out: Path | str, *, data: Path | str | None = None, prior: Path | str | None = None,
    no_prior: bool = False, unlabelled: Path | str | None = None, everything: bool = False, skip_bad: bool = False,
    images: Path | str | None = None, refs: str | None = None, outlines: bool = False, batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Label every unlabelled pair of a data set with a run; see the module for what is written.

    Unlabelled are the train pairs outside the run's split and the run's own additional pairs; of a data set that the
    run was not trained on, the train pairs without a mask.

    Args:
        run: the run's folder.
        out: folder for `labels.jsonl`, `about.json` and, with `skip_bad`, `skipped.jsonl`.
        data: another data set than the run's own.
        prior: a store or a file of priors, if not the run's own.
        no_prior: let the network answer alone.
        unlabelled: JSONL file of further pairs.
        everything: label the labelled pairs as well.
        skip_bad: set bad records aside rather than stop.
        images: where the pictures of `data` are, if not in the usual place.
        refs: which `refs(*).p` of `data`.
        outlines: masks get their outlines from the pictures (`l2l.outlines`), and scores say so.
        batch: pairs at a time; part of what makes two calls equal to the bit.

    Returns:
        The path of `labels.jsonl`.

    Raises:
        InputError: if something is not there or damaged, or `out` holds labels made with something else.
    """
    out, run = Path(out), Path(run)
    config, network, extra, about = load_run(run)
    if network is None:
        raise InputError("this run is the prior alone; it has no network to label with", file=run)
    bad = BadRecords(skip=skip_bad)
    changed = dataclasses.replace(config.data, skip_bad=skip_bad)
    if data is not None:
        changed = dataclasses.replace(changed, data=str(data), images=str(images or ""), refs=refs or "")
    dataset = read_data(changed)
    own = dataset.fingerprint() == about["fingerprint"]
    bad.found.extend(dataset.bad)
    samples = to_label(dataset, Split.load(run / SPLIT) if own else None, everything)
    named = (config.data.unlabelled if own else "", unlabelled or "")
    for number, file in enumerate(dict.fromkeys(Path(one).resolve() for one in named if one)):
        samples += _additional(file, "extra-" if number == 0 else f"extra{number + 1}-", bad)
    if skip_bad:
        samples = readable(samples, bad)
    if not samples:
        raise InputError("there is no unlabelled pair; --all labels the labelled ones too", file=dataset.root or data)
    where = "" if no_prior else str(prior or config.data.prior)
    pool, bank = prepare_split(samples, config, vocabulary_of(config, about, run), where, bad=bad)

    out.mkdir(parents=True, exist_ok=True)
    remove_drafts(out)
    bad.write(out / SKIPPED)
    draw, gain = None, 1.0
    if outlines:
        draw = Drawer(pool)
        gain = outline_gain(run, config, network, about, prior=bank is not None)
    origin = _origin(run, about, dataset, pool, bank) | ({"outlines": gain} if outlines else {})
    _check_origin(out, origin)
    _write_json(out / ABOUT, {**origin, "finished": False})
    done = _cut(out / LABELS, pool.ids)
    _label_rest(out / LABELS, done, network, extra if isinstance(extra, Rple) else None, pool, config, bank is not None,
                batch, progress, draw, gain)  # fmt: skip
    _write_json(out / ABOUT, {**origin, "finished": True, **summary(out / LABELS), "skipped": len(bad.found)})
    return out / LABELS


def to_label(dataset: DataSet, split: Split | None, everything: bool) -> list[Sample]:
    """The train pairs to label: those outside the split, or, without a split, those without a mask; or all of them."""
    train = [sample for sample in dataset.samples if sample.split == "train"]
    if not everything:
        train = split.apply(train)[1] if split else [sample for sample in train if sample.targets is None]
    return [dataclasses.replace(sample, targets=None) for sample in train]


def _additional(file: Path, prefix: str, bad: BadRecords) -> list[Sample]:
    """Further pairs, under ids that cannot meet those of the data set."""
    more = read(file, skip_bad=bad.skip)
    bad.found.extend(more.bad)
    return [
        dataclasses.replace(one, id=prefix + one.id, sentence_ids=tuple(prefix + key for key in one.sentence_ids),
                            targets=None)  # fmt: skip
        for one in more.samples
    ]


def _label_rest(
    path: Path, done: int, network: Network, rple: Rple | None, pool: Pool, config: Config, prior: bool, batch: int,
    progress: Callable[[int, int], None] | None, draw: Drawer | None, gain: float,
) -> None:
    """Append what is missing. Batches are cut from the whole order, so a resumed call computes the same ones."""
    with path.open("ab", buffering=0) as file:
        for rows in torch.arange(len(pool)).split(batch):
            if int(rows[-1]) < done:
                continue
            lines = label_rows(network, rple, pool, rows, config, prior=prior, draw=draw, gain=gain)
            lines = lines[max(0, done - int(rows[0])) :]
            append(file, "".join(json.dumps(line) + "\n" for line in lines).encode())
            sync(file)
            if progress:
                progress(int(rows[-1]) + 1, len(pool))


def label_rows(
    network: Network, rple: Rple | None, pool: Pool, rows: Tensor, config: Config, *, prior: bool,
    draw: Drawer | None = None, gain: float = 1.0,
) -> list[dict[str, Any]]:  # fmt: skip
    """The lines of `labels.jsonl` for some rows of a pool, in one batch; with `draw` masks have outlines, and scores
    are raised by the factor `gain`."""
    answer = answer_batch(network, rple, pool, rows, config, prior=prior)
    answer = dataclasses.replace(answer, score=raised(answer.score, gain))
    lines = []
    for place, row in enumerate(rows.tolist()):
        ref = int(pool.ref_of[row])
        sample, which = pool.samples[ref], row - pool.pairs_of[ref][0]
        mask = draw(answer.logits[place], row) if draw else upsample(answer.logits[place], sample.size)
        line = _line(answer, place, mask, present=bool(pool.present[row]))
        named = {"id": sample.sentence_ids[which], "image": sample.image, "sentence": sample.sentences[which]}
        lines.append({**named, **line})
    return lines


@torch.no_grad()
def answer_batch(
    network: Network, rple: Rple | None, pool: Pool, rows: Tensor, config: Config, *, prior: bool
) -> Labelled:
    """Mask, score and acceptance of some rows: guided by the prior if there is one, as `evaluate.answers` does it.

    All sentences of a record get one mask, pooled from what is said to each of them (`sesm.together`).
    """
    together = config.train.method == "l2l" and config.sesm.together  # as it has learned
    every = pool.whole(rows) if together else rows
    x = pool.batch(every)
    half = choose_precision(config) == torch.bfloat16
    with torch.autocast(config.train.device.split(":")[0], torch.bfloat16, enabled=half):
        answer = network(normalise(x.image), x.tokens, x.proposals)
    if together:
        answer = pooled(network, answer, x.proposals, pool.ref_of[every].to(x.image.device), prior=prior)
    elevated = answer.elevated
    assert elevated is not None and answer.guided is not None
    logits, reliability = (answer.best, elevated.score) if prior else (answer.q, elevated.kappa)
    own = slice(len(rows))
    score = network.sesm.promised(reliability[own]).cpu()
    if rple is None:
        return Labelled(logits[own].cpu(), score, None, None)
    cells, samples = rple.decide(observe(answer, x.proposals, x.image))
    front = (logits > 0).float()
    mean = (cells * front).sum((1, 2)) / front.sum((1, 2)).clamp_min(1)
    return Labelled(logits[own].cpu(), score, samples[own].cpu(), mean[own].cpu())


def _line(answer: Labelled, place: int, mask: np.ndarray, *, present: bool) -> dict[str, Any]:
    """One pair as JSON, with its mask (H, W).

    Accepted is a mask whose expected IoU is above one half. What the policy says stands beside it, as `acceptance`: it
    asks what there is to learn from a mask, not how good it is.
    """
    box = tight_box(mask)
    score = float(answer.score[place])
    acceptance = None
    if answer.sample is not None and answer.foreground is not None:
        acceptance = {
            "sample": round(float(answer.sample[place]), 4), "foreground": round(float(answer.foreground[place]), 4),
        }  # fmt: skip
    return {
        "segmentation": Rle.encode(mask).to_coco(),
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]] if box else [0, 0, 0, 0],
        "score": round(score, 4),
        "acceptance": acceptance,
        "accepted": round(score, 4) > 0.5,
        "prior": present,
    }


def summary(path: Path) -> dict[str, Any]:
    """Counts and the mean score of a label file."""
    pairs = accepted = with_prior = 0
    scores = 0.0
    with path.open("rb") as file:
        for text in file:
            line = json.loads(text)
            pairs, scores = pairs + 1, scores + line["score"]
            accepted, with_prior = accepted + line["accepted"], with_prior + line["prior"]
    mean = round(scores / pairs, 4) if pairs else 0.0
    return {"pairs": pairs, "pairs_with_prior": with_prior, "accepted": accepted, "mean_score": mean}


def _origin(run: Path, about: dict[str, Any], dataset: DataSet, pool: Pool, bank: PriorBank | None) -> dict[str, Any]:
    """All that the labels depend on."""
    order = hashlib.blake2b(json.dumps([pool.ids, pool.sentences]).encode(), digest_size=8)
    given = hashlib.blake2b(digest_size=8)
    for part in (*pool.soft.split(1024), pool.score) if bank else ():
        given.update(part.contiguous().numpy())
    return {
        "run": about["hash"], "step": about["step"], "weights": digest(str(run / CHECKPOINT)), "data": dataset.name,
        "pairs_hash": order.hexdigest(), "prior": bank.name if bank else "",
        "prior_simulated": bool(bank and bank.simulated), "prior_hash": given.hexdigest() if bank else "",
    }  # fmt: skip


def _check_origin(out: Path, origin: dict[str, Any]) -> None:
    if not (out / LABELS).exists():
        return
    try:
        before = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        differs = [name for name in (*origin, "outlines") if before.get(name) != origin.get(name)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("what the labels here were made with cannot be read; choose another folder, or remove "
                         f"{LABELS} to have them made anew", file=out / ABOUT) from error  # fmt: skip
    if differs:
        raise InputError(f"the labels here were made with another {differs[0]}; choose another folder", file=out)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_durably(path, (json.dumps(value, indent=1) + "\n").encode())


def _cut(path: Path, ids: list[str]) -> int:
    """How many pairs are labelled already; whatever comes after the last whole and expected line is cut off."""
    if not path.exists():
        return 0
    done = end = 0
    with path.open("rb+") as file:
        for text in file:
            try:
                if not text.endswith(b"\n") or done == len(ids) or json.loads(text)["id"] != ids[done]:
                    break
            except (ValueError, KeyError, TypeError):
                break
            done, end = done + 1, end + len(text)
        file.truncate(end)
    return done
