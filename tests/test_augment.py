from __future__ import annotations

import doctest
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l2l.data import augment
from l2l.data.augment import Geometry, draw_geometry, mirror_sentence, strong_view
from l2l.data.scene_pictures import HOME, SIDE, SceneObject
from l2l.data.scene_sentences import Meaning, holds, kind_of
from l2l.data.scenes import scene

WORDS = (
    "left", "right", "Left", "RIGHT", "leftmost", "right-hand", "left's", "upright", "bright", "brightest", "next",
    "to", "behind", "over", "all", "the", "cup,", "plate.", "in", "front", "of", "man", "alone", "angle", "that's",
)  # fmt: skip
SWAP = {"left": "right", "right": "left"}


# --- sentences --------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=20))
def test_mirroring_twice_is_nothing(sentence: str) -> None:
    mirrored = mirror_sentence(sentence)
    if mirrored is not None:
        assert mirror_sentence(mirrored) == sentence
        if mirrored == sentence:
            assert not re.search("left|right", re.sub(r"\b(up|b)right(est)?\b", "", sentence.lower()))


@given(st.lists(st.sampled_from(["red", "cup", "Big", "man", "behind", "t-shirt", "up", "bright"])).map(" ".join))
def test_what_has_no_side_stays(sentence: str) -> None:
    assert mirror_sentence(sentence) == sentence


@pytest.mark.parametrize(
    ("sentence", "mirrored"),
    [
        ("left cup", "right cup"),
        ("the leftmost of the two", "the rightmost of the two"),
        ("cup on the right, left of the plate", "cup on the left, right of the plate"),
        ("LEFT Right left-hand", "RIGHT Left right-hand"),
        ("far-left", "far-right"),
        ("bright left lamp", "bright right lamp"),
        ("upright piano", "upright piano"),
        ("lefter one", "righter one"),
    ],
)
def test_sides_change_places(sentence: str, mirrored: str) -> None:
    assert mirror_sentence(sentence) == mirrored


@pytest.mark.parametrize(
    "sentence",
    [
        "man right behind the bus", "right next to the tree", "cup right in front", "all right", "the leftover pizza",
        "the bag left behind", "2nd from left", "number 7", "sign that says stop", "man at 3 o'clock", "lft cup",
        "l cup", "the R on the wall", "text on the left", "clockwise", "eastern wall", "righty", "left #2",
        # their mirror image would say something else
        "left next to the tree", "left beside the plate", "right over there", "all left cups", "right behind it",
        # sides that are no words of their own
        "topleft cup", "bottomright", "leftest zebra", "the lefts", "le\u0131ft or r\u0131ght", "lEfT",
    ],
)  # fmt: skip
def test_who_is_not_sure_does_not_mirror(sentence: str) -> None:
    assert mirror_sentence(sentence) is None


def test_examples() -> None:
    assert doctest.testmod(augment).failed == 0


def in_a_mirror(meaning: Meaning) -> Meaning:
    return replace(
        meaning,
        place=meaning.place and " ".join(SWAP.get(word, word) for word in meaning.place.split()),
        extreme=SWAP.get(meaning.extreme or "", meaning.extreme),
        relation=SWAP.get(meaning.relation or "", meaning.relation),
    )


def sides(meaning: Meaning) -> list[str]:
    said = f"{meaning.place or ''} {meaning.extreme or ''} {meaning.relation or ''}".split()
    return [word for word in said if word in SWAP]


def test_mirrored_sentences_of_scenes_mean_the_same_object() -> None:
    seen = {"sided": 0, "plain": 0}
    for index in range(60):
        drawn = scene("home", 5, index)
        flipped = [SceneObject(*thing[:3], SIDE - 1 - thing.x, *thing[4:]) for thing in drawn.objects]
        for sentence in drawn.sentences:
            text = mirror_sentence(sentence.text)
            assert text is not None and kind_of(text) == sentence.kind
            meaning = in_a_mirror(sentence.meaning)
            assert [word.removesuffix("most") for word in re.findall(r"\b(?:left|right)\w*", text)] == sides(meaning)
            assert re.sub("left|right", "", text) == re.sub("left|right", "", sentence.text)
            assert holds(meaning, flipped) == sentence.targets == holds(meaning, flipped, loosely=True)
            seen["sided" if sides(meaning) else "plain"] += 1
            if sides(meaning):  # and the old words would be wrong, or at least not sure
                assert text != sentence.text
    assert min(seen.values()) > 50


def test_the_mirrored_picture_of_a_scene() -> None:
    drawn = scene("home", 5, 0)
    view = Geometry(torch.tensor([True]), torch.ones(1), torch.zeros(1, 2))
    picture = torch.from_numpy(drawn.picture.copy()).permute(2, 0, 1)[None].float()
    mask = torch.from_numpy(drawn.labels == 1)[None, None].float()
    assert torch.allclose(view.apply(picture), picture.flip(3), atol=0.1)
    assert torch.equal(view.apply(mask) > 0.5, mask.flip(3) > 0.5)


# --- geometry ---------------------------------------------------------------------------------------------------------


def view_of(mirrored: bool, scale: float, x: float, y: float) -> Geometry:
    shift = torch.tensor([[x, y]]) * (1 - scale)
    return Geometry(torch.tensor([mirrored]), torch.tensor([scale]), shift)


views = st.builds(view_of, st.booleans(), st.floats(0.7, 1), st.floats(-1, 1), st.floats(-1, 1))


@given(st.integers(2, 20), st.integers(2, 20))
def test_mirrored_twice_is_the_same_picture(height: int, width: int) -> None:
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    view = view_of(True, 1.0, 0.0, 0.0)
    assert torch.allclose(view.apply(picture), picture.flip(3), atol=1e-4)
    assert torch.allclose(view.apply(view.apply(picture)), picture, atol=1e-4)
    assert torch.allclose(view_of(False, 1.0, 0.0, 0.0).apply(picture), picture, atol=1e-4)


@given(views, st.integers(0, 8), st.integers(0, 10), st.integers(6, 12), st.integers(6, 12))
def test_a_mask_stays_on_its_object(view: Geometry, top: int, left: int, height: int, width: int) -> None:
    """The picture is warped at full size and the mask at stride 4: they must meet all the same."""
    mask = torch.zeros(1, 1, 20, 24)
    mask[:, :, top : top + height, left : left + width] = 1
    picture = 0.2 + 0.6 * F.interpolate(mask, scale_factor=4) * torch.tensor([1.0, 0.0, 0.0])[None, :, None, None]
    warped = F.interpolate(view.apply(picture - 0.2) + 0.2, scale_factor=0.25, mode="area")
    red, moved = (warped[0, 0] - warped[0, 1]) / 0.6, view.apply(mask)[0, 0]
    assert float((red - moved).abs().max()) < 0.6
    assert float(torch.minimum(red, moved).sum() / torch.maximum(red, moved).sum()) > 0.8  # half a cell off: 0.65


@given(views)
def test_a_view_goes_where_it_says(view: Geometry) -> None:
    """A spot's centre of mass, mirrored, shrunk and moved by hand."""
    picture = torch.zeros(1, 1, 60, 80)
    picture[:, :, 10:20, 50:66] = 1
    warped = view.apply(picture)[0, 0]
    x = (torch.arange(80) + 0.5) / 80 * 2 - 1
    y = (torch.arange(60) + 0.5) / 60 * 2 - 1
    found = [float((warped.sum(0) * x).sum() / warped.sum()), float((warped.sum(1) * y).sum() / warped.sum())]
    at_x, at_y = 58 / 40 - 1, 15 / 30 - 1
    sign = -1 if bool(view.mirrored[0]) else 1
    scale, (shift_x, shift_y) = float(view.scale[0]), view.shift[0].tolist()
    assert found == pytest.approx([sign * at_x * scale + shift_x, at_y * scale + shift_y], abs=0.02)


@given(st.integers(0, 10_000), st.floats(0.6, 1))
def test_nothing_leaves_the_frame(seed: int, least: float) -> None:
    view = draw_geometry(torch.rand(8) < 2, torch.Generator().manual_seed(seed), least=least)
    assert ((view.scale >= least - 1e-6) & (view.scale <= 1)).all()
    assert (view.shift.abs() <= 1 - view.scale[:, None] + 1e-6).all()
    corners = torch.zeros(8, 1, 48, 48)
    for place in ((0, 0), (0, 36), (36, 0), (36, 36)):
        corners[:, :, place[0] : place[0] + 12, place[1] : place[1] + 12] = 1
    area = view.apply(corners).sum((1, 2, 3)) / (4 * 144 * view.scale**2)
    assert ((area > 0.88) & (area < 1.12)).all()


def test_views_are_drawn_as_promised() -> None:
    mirrorable = torch.arange(4000) % 2 == 0
    view = draw_geometry(mirrorable, torch.Generator().manual_seed(0), least=0.8)
    assert not view.mirrored[~mirrorable].any()
    assert 0.46 < float(view.mirrored[mirrorable].float().mean()) < 0.54
    again = draw_geometry(mirrorable, torch.Generator().manual_seed(0), least=0.8)
    assert torch.equal(view.grid(4, 4), again.grid(4, 4))


# --- colours ----------------------------------------------------------------------------------------------------------


def patches(colours: Tensor) -> Tensor:
    """(C, 3) -> a picture (1, 3, 16, 16 C) of flat patches."""
    return colours.T[None, :, None, :, None].expand(-1, -1, 16, -1, 16).reshape(1, 3, 16, 16 * len(colours))


def means(picture: Tensor) -> Tensor:
    """The inverse, without the patches' rims: (C, 3)."""
    return picture.unflatten(3, (-1, 16))[0, :, 3:13, :, 3:13].mean((1, 3)).T


@given(st.integers(0, 100_000))
def test_strong_views_keep_the_hue(seed: int) -> None:
    colours = torch.tensor(HOME.palette[:6]) / 255  # white has no hue
    seen = strong_view(patches(colours).contiguous(), torch.Generator().manual_seed(seed))
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1
    for before, after in zip(colours, means(seen), strict=True):
        for one in range(3):
            for other in range(3):
                if before[one] > before[other] + 0.1:
                    assert after[one] > after[other] - 0.01  # clipping may make them equal, nothing swaps them
    pure = torch.tensor([[0.8, 0.2, 0.2], [0.2, 0.7, 0.2], [0.2, 0.2, 0.8], [0.75, 0.7, 0.2]])
    after = means(strong_view(patches(pure).contiguous(), torch.Generator().manual_seed(seed)))
    redness = after[:, 0] - after[:, 1:].amax(1)
    assert int(redness.argmax()) == 0 and float(redness[0]) > 0.1


def test_strong_views_differ_and_can_be_drawn_again() -> None:
    image = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    one, again, other = (strong_view(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and float((one - other).abs().mean()) > 0.02
    same = strong_view(image[:1].expand(3, -1, -1, -1).contiguous(), torch.Generator().manual_seed(1))
    assert float((same[0] - same[1]).abs().mean()) > 0.005  # each picture of a batch is drawn by itself
