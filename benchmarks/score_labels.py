"""How good are the labels that `l2l label` wrote, and does their score know? Needs a data set that holds the truth.

python benchmarks/score_labels.py DATA LABELS.jsonl
"""

from __future__ import annotations

import json
import sys

import numpy as np

from l2l.data.read import read
from l2l.metrics import calibration, iou, overlap
from l2l.rle import Rle


def main(data: str, labels: str) -> None:
    """Print mean IoU of accepted and refused masks, and expected against achieved IoU in five equal bins."""
    truth = {key: sample for sample in read(data).samples for key in sample.sentence_ids}
    rows = []
    with open(labels, encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line["id"] in truth:
                found = overlap(Rle.from_coco(line["segmentation"]).decode(), truth[line["id"]].mask())
                rows.append((float(iou(*map(np.array, found))), line["score"], line["accepted"]))
    reached, expected, accepted = (np.array(column) for column in zip(*rows, strict=True))
    accepted = accepted.astype(bool)
    score = calibration(expected, reached, bins=5)
    print(f"{score.n} masks, mean IoU {score.achieved:.4f}, mean expected IoU {score.expected:.4f}, "
          f"correlation {score.correlation:.3f}")  # fmt: skip
    for name, mine in (("accepted", accepted), ("refused", ~accepted)):
        if mine.any():
            print(f"{name:9s} {mine.mean():6.1%} of the masks, mean IoU {reached[mine].mean():.4f}")
    for part in score.bins:
        print(f"expected {part.expected:.3f}  achieved {part.achieved:.3f}  n {part.n}")
    print(f"expected calibration error {score.ece:.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
