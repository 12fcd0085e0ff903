"""A simulated reviewer, for data of which all masks are known: the first pairs of the queue get their true masks.

python benchmarks/review.py DATA LABELS KEPT COUNT

Writes to KEPT what `l2l serve RUN --labels KEPT --review LABELS` would write if an honest reviewer repainted the first
COUNT pairs that nobody decided on yet, and never erred. A pair whose mask DATA does not know is passed over. Ids of
pairs from `--unlabelled` lists carry `extra-` in front.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from l2l.data.images import MAX_PIXELS
from l2l.data.read import read
from l2l.exchange.labels import read_labels
from l2l.metrics import iou, overlap
from l2l.rle import Rle
from l2l.serving.labels import LabelFolder
from l2l.serving.review import Queue, picture_of


def main(data: str, labels: str, kept: str, count: str) -> None:
    """Accept the true masks, and print how far the labels were from them."""
    truth = {key: sample for sample in read(data).samples for key in sample.sentence_ids}
    folder = LabelFolder(Path(kept))
    said, reached, empty = folder.verdicts(), list[float](), 0
    for label in Queue(read_labels(Path(labels))).labels:
        sample = truth.get(re.sub(r"^(extra\d*-)+", "", label.id))
        if len(reached) == int(count) or sample is None or sample.targets is None or label.id in said:
            continue
        mask = sample.mask()
        folder.add(sentence=label.sentence, verdict="accept", mask=Rle.encode(mask), key=label.id,
                   picture=picture_of(label, MAX_PIXELS), more={"score": label.score, "repainted": True})  # fmt: skip
        reached.append(float(iou(*map(np.array, overlap(label.mask.decode(), mask)))))
        empty += not label.mask.area()
    folder.write_metadata()
    print(f"{kept}: {len(reached)} true masks accepted by a simulated reviewer; the labels' had a mean IoU of "
          f"{sum(reached) / max(1, len(reached)):.4f}, and {empty} were empty")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
