from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2l.data.scenes import world_samples
from l2l.errors import BadRecords, InputError
from l2l.priors.precomputed import Precomputed
from l2l.priors.prior import Box, Prior, from_pixels
from l2l.priors.simulated import Simulated, box_of
from l2l.rle import Rle
from l2l.sample import Sample

shares = st.floats(0, 1)
sides = st.tuples(shares, shares).map(sorted).filter(lambda pair: pair[1] > pair[0])
boxes = st.tuples(sides, sides).map(lambda both: (both[0][0], both[1][0], both[0][1], both[1][1]))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
BOX = (0.1, 0.2, 0.5, 0.6)


@st.composite
def priors(draw: st.DrawFn) -> Prior:
    found = tuple(draw(st.lists(boxes, max_size=3)))
    mask = draw(st.none() | st.integers(1, 6).map(lambda side: Rle.encode(np.eye(side) > 0)))
    return Prior(
        boxes=found, scores=tuple(draw(shares) for _ in found), points=tuple(draw(st.lists(st.tuples(shares, shares)))),
        mask=mask, head=draw(texts), attributes=tuple(draw(st.lists(texts))), relations=tuple(draw(st.lists(texts))),
        note=draw(texts),
    )  # fmt: skip


# --- the record -------------------------------------------------------------------------------------------------------


@given(priors())
def test_a_prior_survives_json(prior: Prior) -> None:
    assert Prior.from_json(json.loads(json.dumps(prior.to_json()))) == prior


@given(boxes, st.integers(0, 3), st.sampled_from([math.nan, math.inf, -math.inf, -0.001, 1.001, 1e300]))
def test_bad_numbers_are_refused(box: Box, place: int, number: float) -> None:
    bad = tuple(number if at == place else side for at, side in enumerate(box))
    with pytest.raises(InputError, match="not finite|not between 0 and 1"):
        Prior(boxes=(bad,), scores=(0.5,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not finite|not between 0 and 1"):
        Prior(boxes=(box,), scores=(number,))
    with pytest.raises(InputError, match="not finite|not between 0 and 1"):
        Prior(points=((0.5, number),))


@pytest.mark.parametrize("box", [(0.5, 0.2, 0.5, 1), (0.5, 0.2, 0.4, 1), (0, 0.6, 0.5, 0.6), (0.1, 0.7, 0.5, 0.6)])
def test_boxes_without_area_are_refused(box: Box) -> None:
    with pytest.raises(InputError, match="without area"):
        Prior(boxes=(box,), scores=(0.5,))


def test_scores_go_with_boxes() -> None:
    with pytest.raises(InputError, match="2 scores for 1 boxes"):
        Prior(boxes=(BOX,), scores=(0.5, 0.4))


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", 3, {"boxes": 5}, {"boxes": [[0.1, 0.2, 0.5]], "scores": [1]}, {"boxes": [BOX]},
        {"points": [[1]]}, {"boxes": ["abcd"], "scores": [1]}, {"mask": {"size": [2, 2]}}, {"mask": 7},
        {"attributes": 4},
        {"boxes": [[0.1, 0.2, 0.5, 10**400]], "scores": [1]}, {"boxes": [[0.1, 0.2, 0.5, None]], "scores": [1]},
    ],
)  # fmt: skip
def test_what_is_no_prior_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        Prior.from_json(value)


def test_scores_of_priors() -> None:
    assert Prior().empty and Prior(note="no answer").empty and Prior().score == 0
    assert Prior(points=((0.5, 0.5),)).score == 0.5 and not Prior(points=((0.5, 0.5),)).empty
    assert Prior(boxes=(BOX, BOX), scores=(0.9, 0.3)).score == 0.9


def test_boxes_of_pixels() -> None:
    assert from_pixels([6, 4, 30, 20], (40, 60)) == (0.1, 0.1, 0.5, 0.5)
    assert from_pixels([-2, 0, 60, 41], (40, 60)) == (0, 0, 1, 1)  # a little beyond the border is clamped
    assert from_pixels([30, 0, 90, 40], (40, 60)) == (0.5, 0, 1, 1)  # just half of it is inside
    for far in ([31, 0, 91, 40], [70, 0, 80, 10], [-20, -20, -1, -1], [0, 0, 1000, 1000]):
        with pytest.raises(InputError, match="lies outside the image of 60 x 40"):
            from_pixels(far, (40, 60))
    for flat in ([5, 5, 5, 9], [9, 5, 5, 9]):
        with pytest.raises(InputError, match="without area"):
            from_pixels(flat, (40, 60))
    with pytest.raises(InputError, match="not finite"):
        from_pixels([0, 0, math.nan, 9], (40, 60))


@given(st.lists(st.floats(-200, 200) | st.floats(), min_size=4, max_size=4), st.integers(1, 99), st.integers(1, 99))
def test_pixels_give_a_prior_or_a_reason(box: list[float], height: int, width: int) -> None:
    try:
        found = Prior(boxes=(from_pixels(box, (height, width)),), scores=(1.0,)).boxes[0]
    except InputError:
        return
    inside = [max(box[0], 0) / width, max(box[1], 0) / height, min(box[2], width) / width, min(box[3], height) / height]
    assert found == pytest.approx(inside)


# --- files of priors --------------------------------------------------------------------------------------------------


def sample_at(folder: Path, image: str = "a.jpg", *sentences: str) -> Sample:
    said = sentences or ("red cup",)
    return Sample(
        id="1", image=str(folder / image), image_id="1", size=(40, 60), sentences=said,
        sentence_ids=tuple(map(str, range(len(said)))),
    )  # fmt: skip


def prior_file(folder: Path, *lines: object) -> Path:
    path = folder / "priors.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


GOOD = {"image": "a.jpg", "expression": "red cup", "boxes": [[6, 4, 30, 20], [0, 0, 60, 40]], "scores": [0.3, 0.8]}


def test_lines_are_matched_by_picture_and_sentence(tmp_path: Path) -> None:
    line = GOOD | {"head": "cup", "attributes": ["red"], "relations": None, "points": [[30, 10]]}
    source = Precomputed(prior_file(tmp_path, line, "", {"image": "./b.jpg", "sentence": "x", "boxes": []}))
    there, other_sentence, other_picture, empty = source.answer([
        (sample_at(tmp_path), "red cup"), (sample_at(tmp_path), "blue cup"), (sample_at(tmp_path, "c.jpg"), "red cup"),
        (sample_at(tmp_path, "b.jpg"), "x"),
    ])  # fmt: skip
    assert there == Prior(
        boxes=((0, 0, 1, 1), (0.1, 0.1, 0.5, 0.5)), scores=(0.8, 0.3), points=((0.5, 0.25),), head="cup",  # best first
        attributes=("red",),
    )  # fmt: skip
    assert other_sentence.empty and other_picture.empty and "not in the prior file" in other_sentence.note
    assert empty == Prior()


def test_normalised_boxes_masks_and_other_folders(tmp_path: Path) -> None:
    mask = Rle.encode(np.eye(40, 60) > 0)
    path = prior_file(
        tmp_path, GOOD | {"boxes": [BOX], "scores": None, "normalised": True},
        {"image": "a.jpg", "expression": "mask", "mask": mask.to_coco()},
    )  # fmt: skip
    source = Precomputed(path, images=tmp_path / "pictures")
    here = sample_at(tmp_path / "pictures", "a.jpg", "red cup", "mask")
    box, masked = source.answer([(here, sentence) for sentence in here.sentences])
    assert box == Prior(boxes=(BOX,), scores=(0.5,)) and masked.mask == mask and masked.score == 0.5


def test_strange_but_valid_text(tmp_path: Path) -> None:
    for sentence in ("two\u2028lines", "next\u0085line", "caf\u00e9", "red \U0001f34e", "tab\x0bulator"):
        path = prior_file(tmp_path, json.dumps(GOOD | {"expression": sentence}, ensure_ascii=False))
        assert not Precomputed(path).answer([(sample_at(tmp_path), sentence)])[0].empty


def test_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot read the prior file") as caught:
            Precomputed(path)
        assert str(path) in str(caught.value)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the prior file"):
        Precomputed(tmp_path / "binary")


BROKEN_LINES = [
    "{", "[]", "3", '"x"', "{}", '{"image": "a.jpg"}', '{"expression": "x"}', "[" * 50_000,
    '{"image": "\\u0000", "expression": "x"}',
]  # fmt: skip
BROKEN_PRIORS: list[dict[str, object]] = [
    {"boxes": [[0, 0, math.nan, 9]]}, {"boxes": [[0, 0, math.inf, 9]]}, {"boxes": [[70, 0, 90, 10]]},
    {"boxes": [[5, 5, 5, 9]]}, {"boxes": [[0, 0, 9]]}, {"boxes": 5}, {"boxes": ["abcd"]}, {"scores": [0.5]},
    {"scores": [0.5, math.nan]}, {"points": [[1]]}, {"points": [[90, 3]]}, {"mask": {"size": [4, 6]}},
    {"mask": {"size": [2, 2], "counts": "zz"}}, {"attributes": 7}, {"boxes": [[0, 0, 10**400, 9]]},
    {"boxes": [[0, 0, 9, 9]] * 2, "scores": ["a", 1]},
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN_LINES)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = prior_file(tmp_path, GOOD, "", line, GOOD | {"expression": "later"})
    with pytest.raises(InputError) as caught:
        Precomputed(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and "\n" not in str(caught.value)
    bad = BadRecords(skip=True)
    source = Precomputed(path, bad=bad)
    assert [(one.file, one.record) for one in bad.found] == [(str(path), "line 3")]
    pairs = [(sample_at(tmp_path), text) for text in ("red cup", "later")]
    assert not any(prior.empty for prior in source.answer(pairs))


@pytest.mark.parametrize("change", BROKEN_PRIORS)
def test_a_broken_prior_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = prior_file(tmp_path, GOOD | {"expression": "first"}, GOOD | change)
    pairs = [(sample_at(tmp_path), text) for text in ("first", "red cup")]
    with pytest.raises(InputError) as caught:
        Precomputed(path).answer(pairs)
    assert str(caught.value).startswith(f"{path}, line 2: ") and "\n" not in str(caught.value)
    bad = BadRecords(skip=True)
    first, second = Precomputed(path, bad=bad).answer(pairs)
    assert not first.empty and second.empty and second.note.startswith("bad prior: ")
    assert [one.record for one in bad.found] == ["line 2"]


def test_a_file_says_whose_it_is(tmp_path: Path) -> None:
    plain = Precomputed(prior_file(tmp_path, GOOD))
    simulated = Precomputed(prior_file(tmp_path, GOOD | {"source": "simulated-grounder"}))
    assert not plain.simulated and "priors.jsonl" in plain.name
    assert simulated.simulated and "simulated-grounder" in simulated.name
    assert plain.fingerprint() != simulated.fingerprint()
    assert simulated.fingerprint() == Precomputed(simulated.path).fingerprint()


def test_real_prior_files_read(shared_data: Path) -> None:
    path = shared_data / "fashion" / "priors.jsonl"
    source = Precomputed(path)
    assert source.simulated
    first = json.loads(path.open().readline())
    sample = Sample(
        id="1", image=str(path.parent / first["image"]), image_id="1", size=(2000, 2000),
        sentences=(first["expression"],), sentence_ids=("1",),
    )  # fmt: skip
    assert source.answer([(sample, first["expression"])])[0].scores == (first["scores"][0],)


# --- simulated priors -------------------------------------------------------------------------------------------------

WORLD = world_samples(150, 2)
ASKED = [(sample, sentence) for sample in WORLD for sentence in sample.sentences]


def iou(a: Box, b: Box) -> float:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(across, 0) * max(down, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


@pytest.mark.parametrize(("accuracy", "drop"), [(0.7, 0.0), (0.3, 0.2), (1.0, 0.0), (0.0, 0.0)])
def test_simulated_priors_are_as_right_as_they_say(accuracy: float, drop: float) -> None:
    answers = Simulated(WORLD, accuracy=accuracy, drop=drop).answer(ASKED)
    given_ = [(sample, prior) for (sample, _), prior in zip(ASKED, answers, strict=True) if not prior.empty]
    dropped = 1 - len(given_) / len(ASKED)
    right = np.mean([iou(prior.boxes[0], box_of(sample.mask()) or BOX) > 0.5 for sample, prior in given_])
    for found, stated, count in ((dropped, drop, len(ASKED)), (right, accuracy, len(given_))):
        assert abs(found - stated) <= 4 * (stated * (1 - stated) / count) ** 0.5 + 0.02
    assert len(ASKED) > 500


def test_simulated_priors_are_drawn_again_the_same() -> None:
    source = Simulated(WORLD, seed=1)
    answers = source.answer(ASKED)
    assert Simulated(WORLD, seed=1).answer(ASKED[::-1])[::-1] == answers  # whatever was asked before
    assert Simulated(WORLD, seed=2).answer(ASKED) != answers
    others = [Simulated(WORLD, seed=2), Simulated(WORLD, seed=1, jitter=0.1), Simulated(WORLD, seed=1, drop=0.1)]
    assert len({one.fingerprint() for one in (source, *others)}) == 4
    assert source.name == "simulated (70% right)" and Simulated(WORLD, accuracy=0.25).name == "simulated (25% right)"


@pytest.mark.parametrize("scores", ["telling", "blank"])
def test_scores_tell_or_do_not(scores: str) -> None:
    pairs = [(sample, sentence) for sample in WORLD for sentence in sample.sentences]
    telling, other = Simulated(WORLD, accuracy=0.5), Simulated(WORLD, accuracy=0.5, scores=scores)
    found = other.answer(pairs)
    assert [one.boxes for one in found] == [one.boxes for one in telling.answer(pairs)]
    right = np.array([_meets(one, sample) for one, (sample, _) in zip(found, pairs, strict=True)])
    score = np.array([one.score for one in found])
    difference = score[right].mean() - score[~right].mean()
    assert abs(difference) < 0.03 if scores == "blank" else difference > 0.08
    assert ("blank" in other.name) == (scores == "blank") == (other.fingerprint() != telling.fingerprint())
    with pytest.raises(InputError, match="telling or blank"):
        Simulated(WORLD, scores="loud")


def _meets(prior: Prior, sample: Sample) -> bool:
    (x0, y0, x1, y1), (a0, b0, a1, b1) = prior.boxes[0], box_of(sample.mask())
    inter = max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0)
    return inter / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - inter) > 0.4


def test_systematic_errors_repeat_and_point_at_the_largest() -> None:
    source = Simulated(WORLD, accuracy=0.6, errors="systematic", jitter=0.0)
    wrong: dict[tuple[str, str], set[bool]] = {}
    for (sample, sentence), prior in zip(ASKED, source.answer(ASKED), strict=True):
        own, others = box_of(sample.mask()), [box_of(one.mask()) for one in WORLD if one.image == sample.image]
        others = [one for one in others if one is not None and one != own]
        words = sentence.split()
        erred = prior.boxes[0] != own
        wrong.setdefault((words[0], words[-1]), set()).add(erred)
        if erred and others:
            assert prior.boxes[0] == max(others, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    assert all(len(found) == 1 for found in wrong.values())  # a kind of sentence errs in every picture, or in none
    assert {found.pop() for found in wrong.values()} == {True, False}
    random = Simulated(WORLD, accuracy=0.6, jitter=0.0)
    assert "systematic" in source.name and source.fingerprint() != random.fingerprint()
    with pytest.raises(InputError, match="random or systematic"):
        Simulated(WORLD, errors="often")


def test_a_sentence_without_target_gets_a_wrong_box() -> None:
    samples = world_samples(20, 4, no_target=0.5)
    empty = [sample for sample in samples if sample.targets == ()]
    assert empty
    answers = Simulated(samples, accuracy=1.0).answer([(sample, sample.sentences[0]) for sample in empty])
    assert not any(prior.empty for prior in answers)


def test_the_tight_box() -> None:
    mask = np.zeros((10, 20), bool)
    assert box_of(mask) is None
    mask[2:5, 4:16] = True
    assert box_of(mask) == (0.2, 0.2, 0.8, 0.5)


def test_the_shipped_grounder_still_points() -> None:
    from l2l.priors.grounder import Grounder

    samples = world_samples(3, 0)
    found = Grounder().answer([(sample, sentence) for sample in samples for sentence in sample.sentences])
    assert found and all(one.boxes and 0 <= one.score <= 1 for one in found)
