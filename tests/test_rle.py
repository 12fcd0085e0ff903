from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2l.errors import InputError
from l2l.rle import Rle

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
blobs = st.tuples(
    st.integers(1, 300), st.integers(1, 300), st.integers(0, 299), st.integers(0, 299), st.integers(1, 300)
)


def plain_runs(mask: np.ndarray) -> list[int]:
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(masks)
@example(np.ones((1, 1), bool))
@example(np.zeros((3, 5), bool))
def test_runs_and_area_are_those_of_a_plain_count(mask: np.ndarray) -> None:
    rle = Rle.encode(mask)
    assert rle.runs().tolist() == plain_runs(mask)
    assert rle.area() == mask.sum()
    assert np.array_equal(rle.decode(), mask)
    assert Rle.from_runs(*mask.shape, plain_runs(mask)) == rle
    assert Rle.from_coco(rle.to_coco()) == rle


@given(masks)
def test_strings_are_those_of_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert Rle.encode(mask).counts.encode() == theirs["counts"]
    assert np.array_equal(Rle.from_coco(theirs).decode(), mask)


@given(blobs)
def test_long_runs_are_those_of_pycocotools(blob: tuple[int, int, int, int, int]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    height, width, top, left, side = blob
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    rle = Rle.encode(mask)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert rle.counts.encode() == theirs["counts"]
    assert rle.area() == coco.area(theirs) == mask.sum()


@given(st.text(max_size=30), st.integers(1, 20), st.integers(1, 20))
@example("o" * 30, 4, 4)
@example("\ud800", 4, 4)
def test_a_malformed_string_is_an_input_error_or_a_full_mask(counts: str, height: int, width: int) -> None:
    try:
        rle = Rle.from_coco({"size": [height, width], "counts": counts})
    except InputError:
        return
    assert rle.decode().shape == (height, width)
    assert (rle.runs() >= 0).all()


@pytest.mark.parametrize(
    "counts", ["", "0", "5", "`1", "P", [3], [3, -1, 10], [13], [2**70]], ids=lambda counts: repr(counts)[:20]
)
def test_runs_that_do_not_fill_the_mask_are_refused(counts: object) -> None:
    with pytest.raises(InputError):
        Rle.from_coco({"size": [3, 4], "counts": counts})


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"size": [3, 4]}, {"counts": "0"}, {"size": [3], "counts": "0"}, {"size": [0, 4], "counts": ""}]
    + [{"size": ["a", 4], "counts": "0"}, {"size": [2**20, 2**20], "counts": "0"}, {"size": [3, 4], "counts": None}],
    ids=repr,
)
def test_what_is_no_rle_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        Rle.from_coco(value)  # type: ignore[arg-type]


def test_a_mask_has_two_dimensions() -> None:
    with pytest.raises(InputError, match="two dimensions"):
        Rle.encode(np.zeros((2, 3, 1), bool))
