"""Why scores are too low or too high in the end, and what could be known of it: on trial worlds.

    python benchmarks/scoring.py collect NAME [--world fashion] [--rate 0.05] [--seed 0]   # a run, and what SESM saw
    python benchmarks/scoring.py look OUT/scores-NAME.pt ...                               # what to make of it

`collect` trains L2L on a trial world and keeps the facts that SESM's score is a linear function of, and the IoU that
came out: of 1,600 pairs of the pool when held-out labels are released and at the end, of the pairs that are measured,
with the prior and without it, at their pictures' resolution, and of the labelled ones. `look` shows the expected
calibration error, and expected less achieved IoU, of each way to make a score of what was learned. The truth of the
pool is looked at, which no method may: for finding out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trial import arguments, configure, some_of, validation

from l2l.config import Config
from l2l.evaluate import answers_and_rho, prepare_split, score_pairs
from l2l.labelling.sesm import AHEAD, FEW, MEETS, SESM, came_out, short_of_one
from l2l.methods.l2l import L2L
from l2l.metrics import calibration
from l2l.training.loop import Run, train_step
from l2l.training.pool import Pool, normalise, shrink_mask
from l2l.training.prepare import Prepared, prepare

Kept = dict[str, Tensor]


class Heard(dict[str, list[Tensor]]):
    """The facts of every score that is given from now on, with a prior and (`alone`) without one."""

    def __init__(self, sesm: SESM) -> None:
        super().__init__(facts=[], alone=[])
        for name, judge in (("facts", sesm.expect), ("alone", sesm.alone)):
            judge.register_forward_pre_hook(partial(self.hear, name))

    def hear(self, name: str, _: Any, given: tuple[Tensor, ...]) -> None:
        self[name].append(given[0].detach().float())

    def forget(self) -> None:
        for one in self.values():
            one.clear()

    def all(self) -> Kept:
        return {name: torch.cat(values) for name, values in self.items() if values}


def collect(args: argparse.Namespace) -> None:
    """Train, and keep what scores are made of."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    config = configure(args, args.out)
    prepared = prepare(config)
    run = Run.start(config, prepared)
    method, parts = run.method, run.parts
    assert isinstance(method, L2L)
    teacher = parts.teacher.sesm
    heard = Heard(teacher)
    out: dict[str, Any] = {"start": teacher.expect.start.clone(), "start alone": teacher.alone.start.clone(),
                           "referents": len(method.folds[0]), "finer": float(teacher.finer),
                           "meets": float(teacher.meets)}  # fmt: skip
    release = round(config.sesm.release * config.train.steps)
    while run.step < config.train.steps:
        train_step(run)
        if run.step in (release, config.train.steps):
            out[f"pool {run.step}"] = of_pool(run, prepared.truth, heard)
            out[f"weights {run.step}"] = teacher.expect.weights.detach().clone()
            out[f"weights alone {run.step}"] = teacher.alone.weights.detach().clone()
    measured, _ = validation(config, prepared, args)
    bare = prepare_split(measured.samples, config, prepared.vocabulary, "")[0]
    for name, pool in {"with": measured, "without": bare, "labelled": labelled(config, prepared)}.items():
        heard.forget()
        results = list(answers_and_rho(parts.teacher.eval(), pool, config, prior=name != "without"))
        pairs = score_pairs(pool, results)
        logits = torch.cat([logits for _, logits, _, _ in results])
        masks = torch.stack([shrink_mask(sample.mask(), tuple(logits.shape[1:])) for sample in pool.samples])
        out[name] = heard.all() | {"iou": torch.tensor([one.iou for one in pairs]),
                                   "cells": came_out(logits, masks[pool.ref_of].float() / 255)}  # fmt: skip
    torch.save(out, args.out / f"scores-{args.name}.pt")


def labelled(config: Config, prepared: Prepared) -> Pool:
    """The labelled pairs, with their priors, as they are evaluated."""
    samples = [prepared.pool.samples[ref] for ref in prepared.pool.labelled.nonzero()[:, 0].tolist()]
    return prepare_split(samples, config, prepared.vocabulary, config.data.prior)[0]


@torch.no_grad()
def of_pool(run: Run, truth: Tensor, heard: Heard) -> Kept:
    """Facts and IoUs of 1,600 pairs of the pool, as the teacher answers them."""
    parts, ious, alone = run.parts, [], []
    parts.teacher.eval()
    heard.forget()
    for rows in some_of(parts.pool)[:1600].split(32):
        batch = parts.pool.batch(rows)
        with parts.autocast():
            answer = parts.teacher(normalise(batch.image), batch.tokens, batch.proposals)
        masks = truth[parts.pool.ref_of[rows]][:, None].float() / 255
        ious.append(came_out(answer.elevated.answer, masks[:, 0]))
        alone.append(came_out(answer.q, masks[:, 0]))
    return heard.all() | {"iou": torch.cat(ious), "iou_alone": torch.cat(alone)}


def told(seen: Kept, judge: Tensor, *, alone: bool = False, factor: float = 1.0) -> str:
    """Calibration error of a judge with these weights and a factor, and expected less achieved IoU."""
    facts, iou = seen["alone" if alone else "facts"], seen["iou_alone" if alone and "iou_alone" in seen else "iou"]
    score = short_of_one((facts @ judge[:-1] + judge[-1]).sigmoid() * factor)
    return f"{calibration(score.tolist(), iou.tolist()).ece:.3f} {float((score - iou).mean()):+.3f}"


def look(args: argparse.Namespace) -> None:
    """The pool in cells, what is measured in pictures, each by what is done with what was learned."""
    for path in args.files:
        run = torch.load(path)
        release, steps = sorted(int(name.split()[1]) for name in run if name.startswith("pool"))
        seen, referents, factor = run["with"], run["referents"], run["finer"]
        judge = run[f"weights {steps}"]
        quarters = [seen, *({name: one[rows] for name, one in seen.items() if name in ("iou", "cells")}
                            for rows in (seen["facts"] @ judge[:-1]).argsort().chunk(4)), run["labelled"]]  # fmt: skip
        measured, *each, known = (f"{float(one['iou'].mean() / one['cells'].mean()):.3f}" for one in quarters)
        print(f"\n{path.stem}: {referents} held-out referents; IoU of proposals that meet their object "
              f"{run['meets']:.3f}; IoU in pictures / in cells: P† on known masks "
              f"{factor:.3f}, answers on them {known}, measured {measured}, by quarters of the score {' '.join(each)}")
        for alone in (False, True):
            start, learned = run["start" + " alone" * alone], run["weights " + "alone " * alone + str(steps)]
            print(f"| {'without a prior' if alone else 'with the prior':37} | pool, step {release} | step {steps} | "
                  "measured | times the factor |")  # fmt: skip
            lowered = 1.0 if alone else min(1.0, run["meets"] / MEETS)
            rows = {"where it starts": (0.0, 0.0, 1.0), "as a run learns it": (1.0, 0.0, 1.0)}
            if lowered < 1:
                rows["where it starts, lowered"] = (0.0, 0.0, lowered)
                rows[f"settled, FEW {FEW:g}, not lowered"] = (referents / (referents + FEW), 0.0, 1.0)
            for few, ahead in [(FEW, 0.0)] * alone + [(FEW / 2, AHEAD), (FEW, AHEAD), (2 * FEW, AHEAD)]:
                counts = referents / (referents + few)
                rows[f"settled, FEW {few:g}, AHEAD {ahead:g}"] = (counts, ahead, lowered ** (1 - counts))
            for name, (counts, ahead, low) in rows.items():
                moved = learned - start
                moved[-1] -= alone * ahead * (1 - release / steps)
                judge, measured = start + counts * moved, run["without" if alone else "with"]
                pools = [told(run[f"pool {step}"], judge, alone=alone, factor=low) for step in (release, steps)]
                print(f"| {name:37} | " + " | ".join([*pools, told(measured, judge, alone=alone, factor=low),
                      told(measured, judge, alone=alone, factor=low * factor)]) + " |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("collect")
    arguments(one)
    one.set_defaults(run=collect)
    one = kinds.add_parser("look")
    one.add_argument("files", type=Path, nargs="+")
    one.set_defaults(run=look)
    args = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


if __name__ == "__main__":
    main()
