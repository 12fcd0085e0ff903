"""What labels are worth that are mended with regions, by several rules: a snapshot of a run against the truth.

    python benchmarks/trial.py NAME l2l --snapshot 100 [--world fashion ...] --out trials
    python benchmarks/drawing.py NAME [--world fashion ...] --out trials

Of the fused proposals of 2,400 pairs of the pool, for each rule: soft IoU with the foreground shares of the true masks,
IoU of both cut at half a cell, and what `segmentation_loss` and its cross-entropy are on average.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from trial import arguments, configure, some_of

from l2l.labelling.sesm import hard_iou, soft_iou
from l2l.proposals.regions import compose, drawn, nearest
from l2l.training.loop import Run
from l2l.training.losses import segmentation_loss
from l2l.training.prepare import prepare


def show(rule: str, label: Tensor, truth: Tensor) -> None:
    """A line about labels (N, h, w) in [0, 1]."""
    odds = torch.logit(label, eps=2e-3)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(odds, truth)
    cut = hard_iou(label >= 0.5, truth >= 0.5).mean()
    print(f"{rule:42} soft IoU {100 * soft_iou(label, truth).mean():.1f}  cut {100 * cut:.1f}"
          f"  loss {segmentation_loss(odds, truth).mean():.3f}  cross-entropy {cross:.3f}")  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments(parser)
    args = parser.parse_args()
    config = configure(args, args.out)
    run = Run.start(config, prepare(config))
    pool = run.parts.pool
    said = torch.load(args.out / f"{args.name}.pt")["pool"]
    fused, truth = said["fused"], said["truth"]
    maps = nearest(run.parts.regions[pool.image_of[some_of(pool)]], (2 * truth.shape[1], 2 * truth.shape[2]))
    hard = (fused > 0).float()
    show("fused proposal", fused.sigmoid(), truth)
    for around in (True, False):
        share, iom, cpi = compose(hard, maps, least_iou=0.5, cover=0.7, around=around)
        label = torch.where((iom | cpi)[:, None, None], share, hard)
        rule = f"IOM ({iom.float().mean():.0%}), CPI ({cpi.float().mean():.0%}){'' if around else ', nothing around'}"
        show(rule, label, truth)
    for keep, draw in ((1.0, 0.75), (1.0, 2.5), (0.75, 1.5), (0.65, 2.0), (0.5, 2.5), (0.5, 4.0)):
        show(f"drawn, keep {keep}, draw {draw}", drawn(fused, maps, keep=keep, draw=draw).sigmoid(), truth)


if __name__ == "__main__":
    main()
