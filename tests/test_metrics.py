from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2l.metrics import THRESHOLDS, calibration, iou, overlap, summarise

pairs = hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 12), st.integers(1, 12)))
counts = st.tuples(st.integers(0, 400), st.integers(0, 400)).map(lambda pair: (min(pair), max(pair)))


def plain(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    both = one = 0
    for place in np.ndindex(a.shape):
        both += bool(a[place] and b[place])
        one += bool(a[place] or b[place])
    return both, one


@given(pairs)
@example(np.zeros((2, 3, 4), bool))
def test_overlap_is_a_plain_count(pair: np.ndarray) -> None:
    assert overlap(*pair) == plain(*pair)
    assert overlap(*pair[::-1]) == overlap(*pair)


@given(pairs)
def test_iou_is_that_of_pycocotools(pair: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    one, other = (coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in pair)
    inter, union = overlap(*pair)
    found = float(iou(np.array([inter]), np.array([union]))[0])
    if union:
        assert found == pytest.approx(float(coco.iou([one], [other], [0])[0, 0]))
    else:
        assert found == 1  # pycocotools says 0: it knows no sentence without a target


@given(st.lists(counts, min_size=1, max_size=20))
@example([(0, 0)])
@example([(0, 0), (1, 2), (0, 5), (3, 3)])
def test_scores_are_those_of_the_definitions(samples: list[tuple[int, int]]) -> None:
    scores = summarise(*zip(*samples, strict=True))
    each = [i / u if u else 1.0 for i, u in samples]
    whole = sum(u for _, u in samples)
    assert scores.miou == pytest.approx(sum(each) / len(each))
    assert scores.oiou == pytest.approx(sum(i for i, _ in samples) / whole if whole else 1.0)
    assert scores.n == len(samples)
    for cut in THRESHOLDS:
        assert scores.precision[f"P@{cut}"] == pytest.approx(sum(one > cut for one in each) / len(each))


def test_scores_of_known_samples() -> None:
    # a large half hit and a small full hit: mIoU treats them alike, oIoU does not
    scores = summarise([500, 10], [1000, 10])
    assert scores.to_json() == {
        "mIoU": 0.75, "oIoU": pytest.approx(510 / 1010),
        "P@0.5": 0.5, "P@0.6": 0.5, "P@0.7": 0.5, "P@0.8": 0.5, "P@0.9": 0.5, "n": 2,
    }  # fmt: skip


def test_large_masks_do_not_overflow() -> None:
    side = 2**30
    assert summarise(np.array([side] * 8, np.int32), np.array([side] * 8, np.int32)).oiou == 1


def test_nothing_and_strange_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarise([], [])
    with pytest.raises(ValueError, match="masks of"):
        overlap(np.zeros((3, 4), bool), np.zeros((4, 3), bool))


unit = st.floats(0, 1)


def test_a_score_that_is_true_is_calibrated() -> None:
    values = np.random.default_rng(0).random(1000)
    found = calibration(values, values)
    assert found.ece == pytest.approx(0) and found.correlation == pytest.approx(1)
    assert [one.n for one in found.bins] == [100] * 10 and found.n == 1000
    assert [one.expected for one in found.bins] == sorted(one.expected for one in found.bins)


def test_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    found = calibration([0.1, 0.9, 0.2, 0.8], [0.4, 0.6, 0.1, 0.6], bins=2)
    assert found.bins == ((2, pytest.approx(0.15), pytest.approx(0.25)), (2, pytest.approx(0.85), pytest.approx(0.6)))
    assert found.ece == pytest.approx((0.10 + 0.25) / 2)
    assert (found.expected, found.achieved) == (pytest.approx(0.5), pytest.approx(0.425))


def test_a_constant_score_is_one_bin_without_a_correlation() -> None:
    found = calibration([0.1] * 30, np.linspace(0, 1, 30))
    assert len(found.bins) == 1 and found.ece == pytest.approx(0.4) and math.isnan(found.correlation)
    assert math.isnan(calibration([0.1, 0.2], [0.3, 0.3]).correlation)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == {
        "ece": 0.4, "correlation": None, "bins": [[30, 0.1, 0.5]],
    }  # fmt: skip


def test_one_sample() -> None:
    found = calibration([0.25], [0.75])
    assert found.bins == ((1, 0.25, 0.75),) and found.ece == 0.5 and math.isnan(found.correlation)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.50001, 1.0]), unit), min_size=1, max_size=40), st.randoms())
def test_ties_stay_together_so_the_order_does_not_matter(samples: list[tuple[float, float]], random: object) -> None:
    mixed = samples.copy()
    random.shuffle(mixed)  # type: ignore[attr-defined]
    found, other = (calibration(*zip(*some, strict=True), bins=4) for some in (samples, mixed))
    assert [one.n for one in found.bins] == [one.n for one in other.bins] and found.ece == pytest.approx(other.ece)
    edges = [sorted(s for s, _ in samples)[at - 1 : at + 1] for at in np.cumsum([one.n for one in found.bins])[:-1]]
    assert all(low < high for low, high in edges)


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=60), st.integers(1, 12))
def test_bins_hold_every_sample_once(samples: list[tuple[float, float]], bins: int) -> None:
    found = calibration(*zip(*samples, strict=True), bins=bins)
    assert found.n == len(samples) and len(found.bins) <= bins
    assert abs(found.expected - found.achieved) - 1e-9 <= found.ece <= 1
    if len({expected for expected, _ in samples}) == len(samples):
        counts = [one.n for one in found.bins]
        assert max(counts) - min(counts) <= 1


def test_nothing_to_calibrate_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        calibration([], [])
    with pytest.raises(ValueError, match="0 bins"):
        calibration([0.5], [0.5], bins=0)
    with pytest.raises(ValueError, match="expected of"):
        calibration([0.5, 0.6], [0.5])
