"""A few masks in, all masks out: train, see how good it is, label everything, say what to look at, export as COCO.

    python examples/label_photos.py DATA PRIORS OUT [--unlabelled more.jsonl] [--steps 1000]

DATA holds the pictures, sentences and few masks (docs/data.md), PRIORS what a frozen model pointed at (docs/priors.md).
Begun again after an interruption it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import l2l
from l2l.evaluate import table
from l2l.exchange.coco import write_coco
from l2l.exchange.labels import read_labels
from l2l.exchange.rank import rank, write_ranking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("priors", metavar="PRIORS")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--unlabelled", default="", help="JSONL file of further pairs without masks")
    parser.add_argument("--rate", type=float, default=1.0, help="share of the train pictures whose masks are used (1)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE")
    args = parser.parse_args()

    config = l2l.Config().replace("data", data=args.data, prior=args.priors, rate=args.rate, unlabelled=args.unlabelled)
    config = config.replace("train", method="l2l", steps=args.steps).override(*args.set)
    run = l2l.train(config, args.out / "run", resume=True, tell=print)

    if any(sample.targets is not None for sample in l2l.read(args.data).split("val")):
        print(table([(one.method, one.scores) for one in l2l.evaluate(run)]))
    labels = read_labels(l2l.label(run, args.out / "labels").parent)
    ranked = rank(labels, next=40)
    write_ranking(ranked, args.out / "ranking.csv")
    write_coco(labels, args.out / "coco.json")
    counts = Counter(one.action for one in ranked)
    print(f"{len(labels)} labels in {args.out / 'coco.json'}")
    print(f"{counts['trust']} to trust, {counts['look']} to look at, {counts['label next']} to label next: "
          f"{args.out / 'ranking.csv'}")  # fmt: skip


if __name__ == "__main__":
    main()
