"""What known labels tell L2L before the first step: how far a prior's own score tells right priors from wrong ones
(its calibrated line, and what SESM makes of it), how well they meet their objects, and whether regions are objects.

    python benchmarks/telling.py [--root ../shared/data] [--out FOLDER] [--only prior|regions]

For fashion's own prior, simulated ones and the grounder; from 30 % of the labels, and from 356, 68 and 30 of these,
drawn four times. `spread` is the standard deviation of the calibrated log odds, from 1.0 on of which `SESM.tells` is 1;
`meets` is that of `known.meets`. Of regions the best one's IoU with the known masks, 1 % and 5 % of them, three label
seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from l2l.benchmark_cell import ROOT, resolve
from l2l.benchmark_suites import FASHION, SCENES
from l2l.config import Config
from l2l.labelling.sesm import calibrated, hard_iou
from l2l.methods.known import held_by_regions, meets
from l2l.proposals.regions import region_bank
from l2l.training.prepare import prepare

FEW = (356, 68, 30)
DRAWS = 4


def show(name: str, config: Config, root: Path, out: Path) -> None:
    """Print a line for all labelled pairs, and for draws of fewer."""
    pool = prepare(resolve(config.replace("data", rate=0.3), root, out, say=lambda _: None)).pool
    rows = torch.tensor([row for ref in pool.labelled.nonzero()[:, 0].tolist() for row in pool.pairs_of[ref]])
    rows = rows[pool.present[rows]]
    score, iou = pool.score[rows].float(), hard_iou(pool.soft[rows] > 127, pool.masks[pool.ref_of[rows]] > 127)
    rng = torch.Generator().manual_seed(0)
    everything = torch.arange(len(rows))
    for some in (everything, *(torch.randperm(len(rows), generator=rng)[:few] for few in FEW for _ in range(DRAWS))):
        slope, constant = calibrated(score[some], iou[some])
        rho = torch.logit(score[some], eps=0.02) * slope + constant
        line = f"slope {slope:.2f}, constant {constant:.2f}, spread {rho.std():.2f}, mean log odds {rho.mean():.2f}"
        met = f"mean IoU {iou[some].mean():.2f}, meets {meets(iou[some]):.3f}"
        print(f"{name}: {len(some)} pairs, {met}, {line}", flush=True)


def show_regions(name: str, config: Config, root: Path, out: Path) -> None:
    """Print a line for each share of the labels and label seed."""
    for rate in (0.01, 0.05):
        for seed in range(3):
            some = config.replace("data", rate=rate).replace("train", seed=seed)
            pool = prepare(resolve(some, root, out, say=lambda _: None)).pool
            held = held_by_regions(pool, region_bank(pool.images))
            found = f"{len(held)} masks, IoU of the best region {held.mean():.3f}"
            print(f"{name}, {rate:.0%}, seed {seed}: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=Path("results/benchmark"), help="where prior stores are made")
    parser.add_argument("--only", choices=("prior", "regions"), help="what to show (both)")
    args = parser.parse_args()
    if args.only != "prior":
        show_regions("fashion", FASHION, args.root, args.out)
        show_regions("scenes", SCENES, args.root, args.out)
    if args.only == "regions":
        return
    show("fashion", FASHION, args.root, args.out)
    for accuracy in ("0.1", "0.3", "0.6", "0.95"):
        prior = f"simulated:accuracy={accuracy},errors=random,seed=0"
        show(f"scenes, simulated, right on {accuracy}", SCENES.replace("data", prior=prior), args.root, args.out)
    show("scenes, grounder", SCENES.replace("data", prior="grounder"), args.root, args.out)


if __name__ == "__main__":
    main()
