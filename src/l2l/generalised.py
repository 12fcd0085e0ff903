"""Scores where a sentence may mean several things, or nothing: gIoU, cIoU, N-acc, T-acc, and P@X over what is there.

Source: Liu, Ding, Jiang, "GRES: Generalized Referring Expression Segmentation" (the method ReLA), CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from l2l.metrics import iou, summarise

THRESHOLDS = (0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class GeneralisedScores:
    """Scores of a split, all in [0, 1]; NaN where no sample is of the kind that is asked about."""

    giou: float
    """Mean IoU over samples; a sample without target counts 1 if nothing is predicted, else 0."""
    ciou: float
    """Sum of intersections over sum of unions. A sample without target adds what is predicted to the unions, so it adds
    nothing if nothing is; 1 if all unions are empty."""
    n_acc: float
    """Of the samples without target, the share for which nothing is predicted."""
    t_acc: float
    """Of the samples with a target, the share for which something is predicted, be it right or wrong."""
    precision: dict[str, float]
    """`P@0.7`, `P@0.8`, `P@0.9`: of the samples with a target, the share whose IoU is above the threshold."""
    n: int
    """Samples."""
    no_target: int
    """Samples without target, of these."""

    def to_json(self) -> dict[str, float | None]:
        """Flat, ready for JSON: `None` for NaN."""
        flat = {"gIoU": self.giou, "cIoU": self.ciou, "N-acc": self.n_acc, "T-acc": self.t_acc, **self.precision}
        shown = {name: None if np.isnan(value) else value for name, value in flat.items()}
        return {**shown, "n": self.n, "no_target": self.no_target}


def generalised_scores(
    intersection: Sequence[int] | np.ndarray, union: Sequence[int] | np.ndarray, predicted: Sequence[int] | np.ndarray
) -> GeneralisedScores:
    """Scores from the pixel counts of all samples. The true mask of a sample is the union of its targets.

    A sample is without target if its true mask is empty, and predicted to be if the predicted mask is: not one pixel.
    P@X takes an IoU *above* X, as `l2l.metrics` does; the authors' evaluation takes X itself as well.

    Args:
        intersection, union: (N,) pixels of each predicted mask and true mask, as `l2l.metrics.overlap` counts them.
        predicted: (N,) pixels of each predicted mask.

    Raises:
        ValueError: if there are no samples, if the three differ in shape, or if no two masks have such counts.

    Example:
        A hit of 3 of 4 pixels, a sentence without target that is answered with 4 pixels, and one answered with none.

        >>> scores = generalised_scores([3, 0, 0], [4, 4, 0], [3, 4, 0])
        >>> round(scores.giou, 3), scores.ciou, scores.n_acc, scores.t_acc
        (0.583, 0.375, 0.5, 1.0)
    """
    inter, both, said = (np.asarray(counts, np.int64) for counts in (intersection, union, predicted))
    if inter.ndim != 1 or not inter.shape == both.shape == said.shape:
        raise ValueError(f"intersections of {inter.shape}, unions of {both.shape} and predictions of {said.shape}")
    if ((inter < 0) | (said < inter) | (both < said)).any():
        raise ValueError("it takes 0 <= intersection <= predicted <= union")
    scores = summarise(inter, both)  # IoU is 1 where both masks are empty: so mIoU is gIoU, and oIoU is cIoU
    target = both - said + inter > 0  # the true mask's pixels
    each = iou(inter, both)[target]
    return GeneralisedScores(
        giou=scores.miou,
        ciou=scores.oiou,
        n_acc=_share(said[~target] == 0),
        t_acc=_share(said[target] > 0),
        precision={f"P@{cut}": _share(each > cut) for cut in THRESHOLDS},
        n=scores.n,
        no_target=int(np.count_nonzero(~target)),
    )


def _share(hits: np.ndarray) -> float:
    """Share of true values in a boolean (N,) array; NaN if it is empty."""
    return float(hits.mean()) if len(hits) else float("nan")
