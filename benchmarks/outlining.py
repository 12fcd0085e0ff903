"""What an answer with the prior is worth by who draws its outline, from the voices that a trial has kept.

    python benchmarks/trial.py NAME l2l --voices [--world fashion ...] --out trials
    python benchmarks/outlining.py NAME [--world fashion ...] --out trials

For each rule: val mIoU, the share of pairs with an IoU above 0.5, and the mean IoU of those. A rule is a weight for
each of P, Q and M, which count as far as they mean what the fused proposal means (`l2l.labelling.sesm.outlined`).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from trial import arguments, configure, validation

from l2l.evaluate import score_pairs
from l2l.labelling.sesm import outlined, to_logit
from l2l.training.pool import Pool
from l2l.training.prepare import prepare

WEIGHTS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (8, 1, 1), (4, 1, 0),
           (4, 0, 1))  # fmt: skip


def show(rule: str, pool: Pool, logits: Tensor) -> None:
    """A line about answers (N, h, w) to all pairs of a pool."""
    results = [(rows, logits[rows], torch.zeros(len(rows)), None) for rows in torch.arange(len(pool)).split(256)]
    iou = torch.tensor([one.iou for one in score_pairs(pool, results)])
    right = iou > 0.5
    print(f"{rule:24} mIoU {100 * iou.mean():.2f}  right {100 * right.float().mean():.1f}"
          f"  of those {100 * iou[right].mean():.1f}", flush=True)  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    args = parser.parse_args()
    config = configure(args, args.out)
    pool, _ = validation(config, prepare(config), args)
    said = torch.load(args.out / f"{args.name}.voices.pt")
    prior, model, guided = to_logit(said["prior"]), said["model"].clamp(-6, 6), said["guided"].clamp(-6, 6)
    alone = {"P": prior, "Q": model, "M": guided, "fused": said["fused"], "answer": said["answer"]}
    for rule, logits in alone.items():
        show(rule, pool, logits)
    for of_p, of_q, of_m in WEIGHTS:
        voices = [(prior, of_p * said["present"]), (model, of_q), (guided, of_m)]
        show(f"P {of_p}, Q {of_q}, M {of_m}", pool, outlined(said["fused"], voices))


if __name__ == "__main__":
    main()
