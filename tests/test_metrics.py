from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2l.metrics import THRESHOLDS, iou, overlap, summarise

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
