"""Replies of vision-language models: known boxes survive every dialect, and no reply whatever is a crash."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2l.errors import InputError
from l2l.priors.answers import DIALECTS, Dialect, dialect_of, instruction, read, smart_resize, write
from l2l.priors.prior import Box, Prior

SIZE = (480, 640)
QWEN25, QWEN3, FLORENCE = DIALECTS["qwen2.5-vl"], DIALECTS["qwen3-vl"], DIALECTS["florence-2"]
dialects = st.sampled_from(list(DIALECTS.values()))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, y0 = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    return x0, y0, draw(st.floats(x0 + 0.05, 1)), draw(st.floats(y0 + 0.05, 1))


@given(dialects, st.lists(boxes(), min_size=1, max_size=4), st.integers(60, 3000), st.integers(60, 3000))
def test_known_boxes_survive_every_dialect(dialect: Dialect, known: list[Box], height: int, width: int) -> None:
    seen = smart_resize((height, width))
    found = read(write(dialect, known, seen), dialect, (height, width), seen=seen)
    assert len(found.boxes) == len(known) and not found.note
    for box, back in zip(known, found.boxes, strict=True):
        coarse = {"pixels": 0.51 / min(seen), "bins": 0.51 / dialect.count}.get(dialect.unit, 0.00051)
        assert back == pytest.approx(box, abs=coarse + 1e-9)


@given(st.text(max_size=300), dialects)
def test_no_text_is_a_crash(text: str, dialect: Dialect) -> None:
    found = read(text, dialect, SIZE)
    assert isinstance(found, Prior) and (not found.empty or found.note)


PARTS = [
    "[", "]", "{", "}", '"bbox_2d"', '"boxes"', ":", ",", "1", "-7", "1e400", "999999", "null", "true", "NaN", '"a"',
    "'", "<box>", "</box>", "<loc_5>", "<loc0005>", "(3,4)", "<|box_start|>", "(", ")", "\\", "```json", "9" * 5000,
]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=40).map("".join), dialects)
def test_no_broken_document_is_a_crash(text: str, dialect: Dialect) -> None:
    found = read(text, dialect, SIZE)
    assert not found.empty or found.note


@given(dialects, boxes(), st.integers(0, 200))
def test_no_reply_that_stops_in_the_middle_is_a_crash(dialect: Dialect, box: Box, cut: int) -> None:
    found = read(write(dialect, [box], SIZE)[:cut], dialect, SIZE)
    assert not found.empty or found.note


HOSTILE = ["[" * 100_000, '{"a":' * 50_000, "[1,2,3,4]" * 50_000, "<loc_1>" * 50_000, "\x00" * 99]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_replies_cost_little(hostile: str) -> None:
    for dialect in DIALECTS.values():
        assert len(read(hostile, dialect, SIZE).boxes) <= 100


REPLIES = [
    # as recorded in model cards and issue threads, with other numbers
    (QWEN25, '```json\n[\n\t{"bbox_2d": [64, 48, 320, 240], "label": "left shoe"}\n]\n```', [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN25, '[{"bbox_2d": [64, 48, 320, 240], "label": "a"}, {"bbox_2d": [0, 0, 6', [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN25, "{'bbox_2d': [64, 48, 320, 240], 'label': 'it'}", [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN25, "The shoe is at [64, 48, 320, 240].", [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN25, "Sure! (64, 48), (320, 240)", [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN3, '{"bbox_2d": ["100", "100", "500", "500"]}', [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN3, '[{"bbox_2d": [500, 500, 100, 100]},]', [(0.1, 0.1, 0.5, 0.5)]),
    (QWEN3, '{"bbox_2d": [-50, 100, 500, 1200]}', [(0.0, 0.1, 0.5, 1.0)]),
    (DIALECTS["qwen2-vl"], "<|object_ref_start|>it<|object_ref_end|><|box_start|>(100,100),(500,500)<|box_end|>",
     [(0.1, 0.1, 0.5, 0.5)]),
    (DIALECTS["internvl"], "<ref>the shoe</ref><box>[[100, 100, 500, 500], [0, 0, 250, 250]]</box>",
     [(0.1, 0.1, 0.5, 0.5), (0, 0, 0.25, 0.25)]),
    (FLORENCE, "</s><s>left shoe<loc_99><loc_99><loc_499><loc_499></s>", [(0.0995, 0.0995, 0.4995, 0.4995)]),
    (DIALECTS["paligemma"], "<loc0102><loc0204><loc0511><loc0716> shoe", [(0.1997, 0.1001, 0.6997, 0.4995)]),
    (DIALECTS["gemini"], '[{"box_2d": [100, 200, 500, 700], "label": "shoe"}]', [(0.2, 0.1, 0.7, 0.5)]),
    (DIALECTS["plain"], '{"box": [0.1, 0.1, 0.5, 0.5]}', [(0.1, 0.1, 0.5, 0.5)]),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "reply", "expected"), REPLIES)
def test_replies_as_models_write_them(dialect: Dialect, reply: str, expected: list[Box]) -> None:
    found = read(reply, dialect, SIZE)
    assert len(found.boxes) == len(expected)
    for box, back in zip(expected, found.boxes, strict=True):
        assert back == pytest.approx(box, abs=1e-3)


@pytest.mark.parametrize(("reply", "note"), [
    ("", "nothing"), (None, "nothing"), ("[]", "there is nothing"), ('{"boxes": []}', "there is nothing"),
    ("None.", "there is nothing"), ("I'm sorry, I can't help with that.", "can't help"),
    ('{"bbox_2d": [2000, 2000, 3000, 3000]}', "outside"), ('{"bbox_2d": [5, 5, 5, 5]}', "area"),
    ('{"bbox_2d": [1, 2, 3]}', "no box"),
])  # fmt: skip
def test_what_holds_no_box_says_so(reply: object, note: str) -> None:
    found = read(reply, QWEN3, SIZE)
    assert found.empty and note in found.note


def test_scores_order_boxes_and_the_semantic_part_comes_along() -> None:
    reply = json.dumps({
        "boxes": [{"bbox_2d": [0, 0, 100, 100], "score": 0.2}, {"bbox_2d": [500, 500, 900, 900], "score": "90%"}],
        "head": "shoe", "attributes": ["black", 7, " left "], "relations": "beside\nthe bag",
    })  # fmt: skip
    found = read(f"Here you are:\n{reply}\nAnything else?", QWEN3, SIZE)
    assert found.scores == (0.9, 0.2) and found.boxes[0] == (0.5, 0.5, 0.9, 0.9)
    assert (found.head, found.attributes, found.relations) == ("shoe", ("black", "left"), ("beside the bag",))
    parallel = read('{"boxes": [[0, 0, 100, 100], [1, 1, 200, 200]], "scores": [0.1, 3]}', QWEN3, SIZE)
    assert parallel.scores == (1.0, 0.1)


def test_points_and_polygons() -> None:
    assert read('<point x="61.5" y="40.0" alt="shoe">shoe</point>', DIALECTS["molmo"], SIZE).points == ((0.615, 0.4),)
    assert read('{"point_2d": [500, 250]}', QWEN3, SIZE).points == ((0.5, 0.25),)
    corners = (100, 100, 899, 100, 899, 899, 100, 899)
    found = read("it" + "".join(f"<loc_{one}>" for one in corners), FLORENCE, SIZE)
    assert found.mask is not None and found.mask.area() == pytest.approx(0.8**2 * 480 * 640, rel=0.02)


@pytest.mark.parametrize(("model", "name"), [
    ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl"), ("Qwen/Qwen3-VL-8B-Instruct", "qwen3-vl"),
    ("qwen2-vl", "qwen2-vl"), ("OpenGVLab/InternVL3_5-8B-HF", "internvl"), ("microsoft/Florence-2-base", "florence-2"),
    ("google/gemini-2.5-flash", "gemini"), ("/models/qwen2_5_vl_7b", "qwen2.5-vl"),
])  # fmt: skip
def test_models_are_known_by_their_names(model: str, name: str) -> None:
    assert dialect_of(model).name == name


def test_an_unknown_model_asks_for_its_dialect() -> None:
    with pytest.raises(InputError, match="--dialect"):
        dialect_of("somebody/new-model")


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
def test_every_dialect_is_asked_with_the_sentence(dialect: Dialect) -> None:
    asked = instruction(dialect, 'the "big" shoe', SIZE)
    assert "shoe" in asked and (dialect.unit != "pixels" or "640 x 480" in asked)


@given(st.integers(1, 6000), st.integers(1, 6000))
def test_pictures_as_qwen_sees_them(height: int, width: int) -> None:
    h, w = smart_resize((height, width))
    assert h % 28 == w % 28 == 0 and h >= 28 and w >= 28
    if max(height, width) < 20 * min(height, width):
        assert 56 * 56 <= h * w <= 1280 * 28 * 28
        assert smart_resize((h, w)) == (h, w)
