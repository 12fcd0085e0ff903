"""Which method does best on your own data: the same data, network, steps and evaluation, over label seeds.

    python examples/compare_methods.py DATA PRIORS OUT --methods supervised,semires,l2l --rate 0.05 --seeds 0,1,2

Runs that are finished are not made again. Scores are of split val, at the pictures' own size.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import l2l


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("priors", metavar="PRIORS")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--methods", default="supervised,semires,l2l")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE")
    args = parser.parse_args()

    base = l2l.Config().replace("data", data=args.data, prior=args.priors, rate=args.rate)
    print(f"{'mIoU':<16}{'with the prior':>22}{'without it':>22}")
    for method in args.methods.split(","):
        scores: dict[bool, list[float]] = {True: [], False: []}
        for seed in args.seeds.split(","):
            config = base.replace("train", method=method, seed=int(seed), steps=args.steps).override(*args.set)
            run = l2l.train(config, args.out / f"{method}-{seed}", resume=True)
            for prior, found in scores.items():
                found.append(100 * l2l.evaluate(run, no_prior=not prior)[0].scores.miou)
        print(f"{method:<16}" + "".join(f"{told(found):>22}" for found in scores.values()))


def told(found: list[float]) -> str:
    """Mean, spread and how many."""
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread} ({len(found)})"


if __name__ == "__main__":
    main()
