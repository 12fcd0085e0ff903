"""The field's metrics. mIoU is the mean over samples (gIoU in LISA-style code), oIoU = cIoU the ratio of sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Bin(NamedTuple):
    """Samples of about the same expected IoU."""

    n: int
    expected: float
    """Mean expected IoU."""
    achieved: float
    """Mean achieved IoU."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Does a score mean what it says: the expected against the achieved IoU, both in [0, 1]."""

    ece: float
    """Expected calibration error: sum over bins of share x |mean expected - mean achieved|. With few samples to a bin,
    chance alone makes it larger than 0."""
    correlation: float
    """Pearson's, over samples; NaN where either side is constant."""
    bins: tuple[Bin, ...]
    """The lowest expectations first."""

    @property
    def n(self) -> int:
        """Samples."""
        return sum(one.n for one in self.bins)

    @property
    def expected(self) -> float:
        """Mean expected IoU."""
        return sum(one.n * one.expected for one in self.bins) / self.n

    @property
    def achieved(self) -> float:
        """Mean achieved IoU."""
        return sum(one.n * one.achieved for one in self.bins) / self.n

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON: rounded, and `None` for NaN."""
        flat = {"ece": self.ece, "correlation": self.correlation}
        shown = {name: round(value, 6) if np.isfinite(value) else None for name, value in flat.items()}
        return shown | {"bins": [[one.n, round(one.expected, 4), round(one.achieved, 4)] for one in self.bins]}


def calibration(
    expected: Sequence[float] | np.ndarray, achieved: Sequence[float] | np.ndarray, bins: int = 10
) -> Calibration:
    """Expected IoU against achieved IoU, in bins of equal count (Guo et al., 2017, with IoU for accuracy).

    Samples of equal expectation are never parted, so the order of the samples does not matter; where many are equal
    there are fewer bins, and of unequal count.

    Args:
        expected, achieved: (N,) in [0, 1]. bins: at most so many.

    Raises:
        ValueError: if there are no samples, no bins, or the two differ in length.

    Example:
        >>> round(calibration([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.5, 0.7]).ece, 3)
        0.05
    """
    score, reached = np.asarray(expected, float), np.asarray(achieved, float)
    if score.ndim != 1 or score.shape != reached.shape:
        raise ValueError(f"expected of {score.shape} and achieved of {reached.shape}")
    if not len(score) or bins < 1:
        raise ValueError("no samples to calibrate" if bins > 0 else f"{bins} bins")
    _, value_of, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - counts / 2  # rank of a value's samples, between 0 and N
    bin_of = (middle * bins / len(score)).astype(int)[value_of]
    parts = [bin_of == number for number in np.unique(bin_of)]
    found = tuple(Bin(int(part.sum()), float(score[part].mean()), float(reached[part].mean())) for part in parts)
    ece = sum(one.n * abs(one.expected - one.achieved) for one in found) / len(score)
    return Calibration(ece, _correlation(score, reached), found)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where either side does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale > 0 else float("nan")
