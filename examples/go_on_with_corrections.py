"""What people corrected becomes labels, and training goes on with them.

    python examples/go_on_with_corrections.py EXPORT.json LABELS OUT [--also DATA] [--priors PRIORS]

EXPORT.json is Label Studio's JSON export of the tasks that `l2l export --to label-studio` made of LABELS; DATA the set
with the masks that there were before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import l2l
from l2l.exchange.corrected import UNLABELLED, write_corrected
from l2l.exchange.label_studio import read_label_studio
from l2l.exchange.labels import read_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", metavar="EXPORT.json", type=Path)
    parser.add_argument("labels", metavar="LABELS", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--also", metavar="DATA", help="the data set with the first masks")
    parser.add_argument("--priors", default="", help="priors of these pairs")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE")
    args = parser.parse_args()

    data, labels = args.out / "data", read_labels(args.labels)
    also = l2l.read(args.also) if args.also else None
    found = write_corrected(args.export, read_label_studio(args.export), labels, data, also=also)
    print(f"{found.corrected} corrected, {found.rejected} rejected, {found.unlabelled} that nobody looked at")

    rest = str(data / UNLABELLED) if found.unlabelled else ""
    config = l2l.Config().replace("data", data=str(data), prior=args.priors, rate=1.0, unlabelled=rest)
    config = config.replace("train", method="l2l" if rest else "supervised", steps=args.steps).override(*args.set)
    print(l2l.train(config, args.out / "run", tell=print))


if __name__ == "__main__":
    main()
