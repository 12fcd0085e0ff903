"""What the other sentences about a picture say of a label, against the truth: do they compete, do they agree?

    python benchmarks/trial.py NAME l2l --snapshot 110 --pictures --out trials
    python benchmarks/neighbours.py trials/NAME.pt

Referents of one picture lie apart, so of two sentences that claim one place one is wrong, unless they mean the same
referent. Prints how often they claim one place; the IoU of the fused proposals cut at half a cell, as they are and when
each gives way to the sum of the others' odds, `share` of it; and pooled with the sentences about the same referent.
Who means the same referent is known in a benchmark, and not in a list of image-sentence pairs.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.labelling.records import SHARP, consent
from l2l.labelling.sesm import hard_iou


def given_way(odds: Tensor, others: Tensor, share: float) -> Tensor:
    """Log odds (N, h, w), each less `share` of log(1 + sum of the odds of its `others`, bool (N, N))."""
    found = odds.clone()
    for at, own in enumerate(others):
        if own.any():
            found[at] -= share * F.softplus(odds[own].logsumexp(0))
    return found


def main() -> None:
    """See the module."""
    said = torch.load(sys.argv[1])["pool"]
    odds, truth = said["fused"].clamp(-8, 8), said["truth"] > 0.5
    same_picture = said["picture"][:, None] == said["picture"]
    same_ref = said["ref"][:, None] == said["ref"]
    itself = torch.eye(len(odds), dtype=torch.bool)

    answers = (odds > 0).float().flatten(1)
    common, sizes = answers @ answers.T, answers.sum(1)
    claimed = same_picture & ~itself & (common / (sizes[:, None] + sizes - common).clamp_min(1) > 0.5)
    iou = hard_iou(odds > 0, truth)
    by_others = (claimed & ~same_ref).any(1).float()
    print(f"{len(odds)} pairs; IoU {100 * iou.mean():.1f}; below 0.3: {(iou < 0.3).float().mean():.1%}")
    print(f"claimed for another referent as well: {by_others[iou < 0.3].mean():.1%} of those, "
          f"{by_others[iou >= 0.3].mean():.1%} of the others")  # fmt: skip
    print(f"of two sentences that claim one place {same_ref[claimed].float().mean():.1%} mean the same referent")
    voices = {"other referents": same_picture & ~same_ref, "all other sentences": same_picture & ~itself}
    for name, others in voices.items():
        for share in (0.25, 0.5, 0.75, 1.0):
            made = hard_iou(given_way(odds, others, share) > 0, truth).mean()
            print(f"gives way to {name}, share {share}: {100 * made:.1f}")
    several = same_ref.sum(1) > 1
    print(f"{several.float().mean():.1%} have another sentence about the same referent; of these, alone: "
          f"{100 * iou[several].mean():.1f}")  # fmt: skip
    for sharp in (0.0, 1.0, 2.0):
        share = consent(said["ref"], sharp / SHARP * said["expected"])
        agreed = (share @ odds.flatten(1)).view_as(odds)
        print(f"mean of all of them, weights the odds of their expected IoU to the power of {sharp:g}: "
              f"{100 * hard_iou(agreed > 0, truth)[several].mean():.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
