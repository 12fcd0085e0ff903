from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2l.generalised import THRESHOLDS, GeneralisedScores, generalised_scores
from l2l.metrics import overlap

Pair = tuple[np.ndarray, np.ndarray]
masks = hnp.arrays(bool, (3, 4), elements=st.booleans()) | st.just(np.zeros((3, 4), bool))
samples = st.lists(st.tuples(masks, masks), min_size=1, max_size=12)

NOTHING, ALL = np.zeros((3, 4), bool), np.ones((3, 4), bool)
HALF = np.arange(12).reshape(3, 4) < 6


def score(pairs: Sequence[Pair]) -> GeneralisedScores:
    """Scores of (predicted, truth) masks."""
    counts = [(*overlap(predicted, truth), int(predicted.sum())) for predicted, truth in pairs]
    return generalised_scores(*zip(*counts, strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


@given(samples)
@example([(NOTHING, NOTHING)])
@example([(ALL, NOTHING), (NOTHING, ALL), (NOTHING, NOTHING), (HALF, ALL)])
def test_scores_are_those_of_the_definitions(pairs: list[Pair]) -> None:
    ious, inter, union, right_nothing, right_something, target_ious = [], 0, 0, [], [], []
    for predicted, truth in pairs:
        both, either = int((predicted & truth).sum()), int((predicted | truth).sum())
        inter += both
        if truth.any():
            union += either
            ious.append(both / either)
            target_ious.append(both / either)
            right_something.append(bool(predicted.any()))
        else:
            union += int(predicted.sum())
            ious.append(0.0 if predicted.any() else 1.0)
            right_nothing.append(not predicted.any())
    scores = score(pairs)
    assert scores.giou == pytest.approx(mean(ious))
    assert scores.ciou == pytest.approx(inter / union if union else 1.0)
    assert scores.n_acc == pytest.approx(mean(right_nothing), nan_ok=True)
    assert scores.t_acc == pytest.approx(mean(right_something), nan_ok=True)
    for cut in THRESHOLDS:
        assert scores.precision[f"P@{cut}"] == pytest.approx(mean([one > cut for one in target_ious]), nan_ok=True)
    assert (scores.n, scores.no_target) == (len(pairs), len(right_nothing))


@given(samples, st.randoms())
def test_the_order_does_not_matter_and_all_lie_between_0_and_1(pairs: list[Pair], random: object) -> None:
    mixed = pairs.copy()
    random.shuffle(mixed)  # type: ignore[attr-defined]
    found, other = score(pairs).to_json(), score(mixed).to_json()
    assert found == pytest.approx(other)
    shares = [value for name, value in found.items() if name not in ("n", "no_target") and value is not None]
    assert all(0 <= value <= 1 for value in shares)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@given(samples)
def test_the_truth_itself_is_perfect(pairs: list[Pair]) -> None:
    found = score([(truth, truth) for _, truth in pairs]).to_json()
    assert all(value in (1.0, None) for name, value in found.items() if name not in ("n", "no_target"))


@given(samples)
def test_to_say_nothing_is_right_only_where_there_is_nothing(pairs: list[Pair]) -> None:
    scores = score([(NOTHING, truth) for _, truth in pairs])
    share = sum(not truth.any() for _, truth in pairs) / len(pairs)
    assert scores.giou == pytest.approx(share)
    assert scores.t_acc == 0 or math.isnan(scores.t_acc)
    assert scores.n_acc == 1 or math.isnan(scores.n_acc)


@given(samples)
def test_a_right_silence_leaves_ciou_and_a_wrong_word_lowers_it(pairs: list[Pair]) -> None:
    pairs = [*pairs, (ALL, ALL)]
    before = score(pairs)
    assert score([*pairs, (NOTHING, NOTHING)]).ciou == before.ciou
    assert score([*pairs, (HALF, NOTHING)]).ciou < before.ciou
    for name, value in before.precision.items():  # no-target samples have no part in these
        assert score([*pairs, (HALF, NOTHING)]).precision[name] == value


def test_known_samples() -> None:
    pairs = [(HALF, ALL), (ALL, ALL), (NOTHING, HALF), (NOTHING, NOTHING), (HALF, NOTHING)]
    assert score(pairs).to_json() == {
        "gIoU": pytest.approx((0.5 + 1 + 0 + 1 + 0) / 5), "cIoU": pytest.approx(18 / (12 + 12 + 6 + 0 + 6)),
        "N-acc": 0.5, "T-acc": pytest.approx(2 / 3),
        "P@0.7": pytest.approx(1 / 3), "P@0.8": pytest.approx(1 / 3), "P@0.9": pytest.approx(1 / 3),
        "n": 5, "no_target": 2,
    }  # fmt: skip


def test_a_split_without_one_kind_has_no_score_of_it() -> None:
    some, none = score([(HALF, ALL)]).to_json(), score([(HALF, NOTHING)]).to_json()
    assert (some["N-acc"], some["T-acc"], some["no_target"]) == (None, 1.0, 0)
    assert (none["N-acc"], none["T-acc"], none["P@0.7"], none["cIoU"]) == (0.0, None, None, 0.0)
    assert score([(NOTHING, NOTHING)]).ciou == 1


def test_nothing_and_counts_that_no_masks_have_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        generalised_scores([], [], [])
    with pytest.raises(ValueError, match="intersections of"):
        generalised_scores([1, 1], [2, 2], [1])
    for inter, union, predicted in ((2, 3, 1), (1, 2, 3), (-1, 2, 2)):
        with pytest.raises(ValueError, match="intersection <= predicted"):
            generalised_scores([inter], [union], [predicted])
