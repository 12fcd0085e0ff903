"""The field's metrics. mIoU is the mean over samples (gIoU in LISA-style code), oIoU = cIoU the ratio of sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a split, all in [0, 1]."""

    miou: float
    """Mean IoU over samples."""
    oiou: float
    """Sum of intersections over sum of unions."""
    precision: dict[str, float]
    """`P@0.5` ... `P@0.9`: share of samples whose IoU is above the threshold."""
    n: int
    """Samples."""

    def to_json(self) -> dict[str, float]:
        """Flat, ready for JSON."""
        return {"mIoU": self.miou, "oIoU": self.oiou, **self.precision, "n": self.n}


def overlap(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Intersection and union, in pixels, of two boolean (H, W) masks.

    Raises:
        ValueError: if their shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of {predicted.shape} and {truth.shape}")
    return int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))


def iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU per sample; 1 where both masks are empty (a sentence without target, rightly answered)."""
    intersection, union = np.asarray(intersection, float), np.asarray(union, float)
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def summarise(intersection: Sequence[int] | np.ndarray, union: Sequence[int] | np.ndarray) -> Scores:
    """Scores from the intersections and unions of all samples. Raises `ValueError` if there are none."""
    inter, both = np.asarray(intersection, np.int64), np.asarray(union, np.int64)
    if not len(inter):
        raise ValueError("no samples to score")
    each = iou(inter, both)
    total = int(both.sum())
    return Scores(
        miou=float(each.mean()),
        oiou=float(inter.sum() / total) if total else 1.0,
        precision={f"P@{cut}": float((each > cut).mean()) for cut in THRESHOLDS},
        n=len(inter),
    )
