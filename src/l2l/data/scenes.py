"""`scenes`: the embedded world. Pictures of coloured shapes and sentences about them, drawn from a seed, without files.

The same world, seed and index give the same bytes on every machine: geometry and colour are integer arithmetic, angles
come from a table of integers, and randomness is the frozen stream of `np.random.RandomState`.

A sentence starts as a `Meaning`; `holds` says which objects a meaning picks, strictly and loosely. A sentence is kept
if exactly one object fits both ways, so that a person who is generous about "left" still finds the same object.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

from l2l.errors import InputError
from l2l.rle import Rle
from l2l.sample import Sample

T = TypeVar("T")

SIDE = 96
"""Height and width of a picture in pixels."""
SENTENCES = 8
"""The most sentences that a scene carries."""
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white")
KINDS = ("attribute", "place", "superlative", "relation")
RADII = {"small": (8, 11), "big": (15, 19)}
VISIBLE = 70
"""Percent of an object's pixels that stay visible at least."""

_TURN = {"circle": 0, "ring": 0, "square": 20, "cross": 20, "triangle": 25, "star": 36}
_ONE = 4096
_COS = np.array([round(math.cos(math.radians(degree)) * _ONE) for degree in range(360)], dtype=np.int64)
_SIN = np.roll(_COS, 90)
_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class World:
    """The knobs of one world. Amounts of colour are in 0..255, shares in percent."""

    name: str
    """What addresses call it."""
    palette: tuple[tuple[int, int, int], ...]
    """The RGB centre of each of `COLOURS`."""
    jitter: int
    """How far an object's colour strays from the centre, per channel."""
    textures: tuple[str, ...]
    """Backgrounds to draw from; see `_texture`."""
    ground: tuple[int, int]
    """Darkest and lightest grey that backgrounds are tinted from."""
    tint: int
    """How far a background's channels stray from grey."""
    shading: int
    """Brightness change from an object's centre to its rim, in 256ths."""
    grain: int
    """Texture noise on objects."""
    noise: int
    """Pixel noise on everything."""
    fade: int
    """Percent of the background's mean colour mixed into the objects: less contrast."""
    clutter: tuple[int, int]
    """Fewest and most unlabelled dots and lines behind the objects."""
    kinds: tuple[int, int, int, int]
    """Weights of attribute, place, superlative and relation sentences, where a scene has them."""


HOME = World(
    name="home",
    palette=(
        (200, 42, 45), (48, 152, 62), (48, 84, 205), (226, 206, 52), (138, 58, 172), (236, 128, 32), (236, 236, 236),
    ),
    jitter=14, textures=("clouds", "stripes", "checks", "gradient"), ground=(55, 165), tint=20, shading=44, grain=12,
    noise=5, fade=0, clutter=(0, 0), kinds=(45, 20, 15, 26),
)  # fmt: skip
AWAY = World(
    name="away",
    palette=(
        (172, 40, 72), (104, 164, 44), (66, 132, 206), (204, 184, 84), (150, 88, 190), (220, 132, 56), (214, 218, 226),
    ),
    jitter=16, textures=("blotches", "dots", "weave", "haze"), ground=(70, 160), tint=30, shading=60, grain=18,
    noise=9, fade=14, clutter=(5, 12), kinds=(56, 25, 19, 0),
)  # fmt: skip
WORLDS = {world.name: world for world in (HOME, AWAY)}


class SceneObject(NamedTuple):
    """One labelled object: `x`, `y` (centre) and `radius` in pixels, `x` to the right and `y` down."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Meaning:
    """What a sentence says, apart from its words. `None` is "not said"."""

    kind: str = "attribute"
    """One of `KINDS`."""
    shape: str | None = None
    """One of `SHAPES`."""
    colour: str | None = None
    """One of `COLOURS`."""
    size: str | None = None
    """`small` or `big`."""
    place: str | None = None
    """Kind place: `left`, `right`, `top`, `bottom`, two of them (`top left`), or `middle`."""
    extreme: str | None = None
    """Kind superlative: `left`, `right`, `top`, `bottom`, `small` or `big`: the one that is so most."""
    relation: str | None = None
    """Kind relation: `left`, `right`, `top` (above), `bottom` (below) or `near` (closest), seen from the anchor."""
    anchor: Meaning | None = None
    """Kind relation: an attribute meaning with one referent."""
    many: bool = False
    """All that fit are meant: "the red stars"."""


class Sentence(NamedTuple):
    """A sentence about a scene; `targets` are indices into the scene's objects."""

    text: str
    kind: str
    targets: tuple[int, ...]
    meaning: Meaning


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and all that is true about it. The arrays are read-only: copy before you draw on them."""

    picture: np.ndarray
    """uint8 (H, W, 3), RGB."""
    labels: np.ndarray
    """int8 (H, W): 0 is background, i + 1 the visible pixels of object i."""
    objects: tuple[SceneObject, ...]
    """4 to 7, in drawing order: later ones hide earlier ones."""
    sentences: tuple[Sentence, ...]
    """Up to `SENTENCES`, each with one target, at most two for an object."""


class _Dice:
    """Random integers from the frozen stream, the same whatever was drawn before in other places."""

    def __init__(self, *name: object):
        digest = hashlib.blake2b(":".join(str(part) for part in name).encode(), digest_size=4).digest()
        self.stream = np.random.RandomState(int.from_bytes(digest, "big"))

    def between(self, low: int, high: int) -> int:
        return low + int(self.stream.random_sample() * (high - low + 1))

    def chance(self, percent: int) -> bool:
        return self.between(1, 100) <= percent

    def pick(self, options: Sequence[T]) -> T:
        return options[self.between(0, len(options) - 1)]

    def weighted(self, options: Sequence[T], weights: Sequence[int]) -> T:
        left = self.between(1, sum(weights))
        for option, weight in zip(options, weights, strict=True):
            left -= weight
            if left <= 0:
                return option
        raise AssertionError("weights do not add up")

    def noise(self, amplitude: int, *shape: int) -> np.ndarray:
        """int64 in -amplitude..amplitude."""
        raw = np.frombuffer(self.stream.bytes(math.prod(shape)), dtype=np.uint8).astype(np.int64).reshape(shape)
        return (raw * (2 * amplitude + 1) >> 8) - amplitude


# --- geometry ---------------------------------------------------------------------------------------------------------


def _coverage(shape: str, radius: int, degrees: int) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 9 of 3 x 3 points; a square crop around the centre pixel."""
    reach = (radius * 6 + 4) // 5 + 1
    points = (np.arange(3 * (2 * reach + 1), dtype=np.int64) * 2 + 1) - 3 * (2 * reach + 1)  # sixths of a pixel
    cos, sin = _COS[degrees % 360], _SIN[degrees % 360]
    u = points[None, :] * cos + points[:, None] * sin
    v = points[:, None] * cos - points[None, :] * sin
    unit = radius * 6 * _ONE  # u = unit is `radius` pixels from the centre

    def inside(side: int, percent: int) -> np.ndarray:  # the half-plane whose outward normal points to `side` degrees
        return u * _COS[side % 360] + v * _SIN[side % 360] <= unit * percent // 100 * _ONE

    match shape:
        case "circle":
            hit = u * u + v * v <= unit * unit
        case "ring":
            square = u * u + v * v
            hit = (square <= unit * unit) & (square >= (unit * 54 // 100) ** 2)
        case "square":
            hit = np.maximum(np.abs(u), np.abs(v)) <= unit * 86 // 100
        case "cross":
            a, b = np.abs(u), np.abs(v)
            hit = (np.minimum(a, b) <= unit * 31 // 100) & (np.maximum(a, b) <= unit)
        case "triangle":
            hit = inside(90, 58) & inside(210, 58) & inside(330, 58)
        case _:  # star: within four of the five lines of a pentagram
            sides = [inside(54 + 72 * side, 40).astype(np.int8) for side in range(5)]
            hit = sides[0] + sides[1] + sides[2] + sides[3] + sides[4] >= 4
    size = 2 * reach + 1
    return hit.reshape(size, 3, size, 3).sum(axis=(1, 3), dtype=np.int64)


def _attributes(dice: _Dice, objects: list[SceneObject]) -> tuple[str, str, str]:
    """Shape, colour and size; more often than not one of them copies an earlier object's."""
    shape, colour, size = dice.pick(SHAPES), dice.pick(COLOURS), dice.pick(("small", "big"))
    if objects:
        other = dice.pick(objects)
        copies = dice.weighted(("shape", "colour", "both", "none"), (36, 34, 18, 12))
        if copies in ("shape", "both"):
            shape = other.shape
        if copies in ("colour", "both"):
            colour = other.colour
        if copies == "both" and dice.chance(75):
            size = "small" if other.size == "big" else "big"
    return shape, colour, size


class _Layout(NamedTuple):
    objects: tuple[SceneObject, ...]
    covers: tuple[np.ndarray, ...]  # (S, S) each, 0..9
    labels: np.ndarray  # int8 (H, W)


@lru_cache(maxsize=512)
def _layout(name: str, seed: int, index: int) -> _Layout:
    dice = _Dice(name, seed, index)
    wanted = dice.between(4, 7)
    objects: list[SceneObject] = []
    covers: list[np.ndarray] = []
    areas: list[int] = []
    labels = np.zeros((SIDE, SIDE), dtype=np.int8)
    for _ in range(60):
        if len(objects) == wanted:
            break
        shape, colour, size = _attributes(dice, objects)
        radius = dice.between(*RADII[size])
        cover = _coverage(shape, radius, dice.between(-_TURN[shape], _TURN[shape]))
        reach, solid = cover.shape[0] // 2, cover >= 5
        for _ in range(12):
            x, y = dice.between(reach, SIDE - 1 - reach), dice.between(reach, SIDE - 1 - reach)
            if any(
                4 * ((x - o.x) ** 2 + (y - o.y) ** 2) < (3 if o.colour == colour else 2) * (radius + o.radius) ** 2
                for o in objects
            ):  # objects of one colour overlap less, so that the border between them can be seen
                continue
            trial = labels.copy()
            trial[y - reach : y + reach + 1, x - reach : x + reach + 1][solid] = len(objects) + 1
            visible = np.bincount(trial.ravel(), minlength=len(objects) + 2)[1:]
            if all(100 * left >= VISIBLE * area for left, area in zip(visible.tolist(), areas, strict=False)):
                labels = trial
                objects.append(SceneObject(shape, colour, size, x, y, radius))
                covers.append(cover)
                areas.append(int(solid.sum()))
                break
    labels.setflags(write=False)
    return _Layout(tuple(objects), tuple(covers), labels)


# --- paint ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _lattice(cells: int) -> np.ndarray:
    """(SIDE, cells + 1) linear interpolation weights that add up to SIDE."""
    spots = np.arange(SIDE, dtype=np.int64) * cells
    weights = np.zeros((SIDE, cells + 1), dtype=np.int64)
    rows, cell, part = np.arange(SIDE), spots // SIDE, spots % SIDE
    weights[rows, cell] = SIDE - part
    weights[rows, cell + 1] = part
    return weights


def _clouds(dice: _Dice, octaves: Sequence[int]) -> np.ndarray:
    """Value noise, 0..255, (H, W): each octave counts half of the one before."""
    total = np.zeros((SIDE, SIDE), dtype=np.int64)
    weight = whole = 1 << len(octaves)
    for cells in octaves:
        weight //= 2
        weights = _lattice(cells)
        total += weight * (weights @ (dice.noise(127, cells + 1, cells + 1) + 128) @ weights.T // SIDE**2)
    stretched = (total // (whole - 1) - 128) * 8 // 5 + 128
    return np.clip(stretched, 0, 255)


def _texture(dice: _Dice, texture: str) -> np.ndarray:
    """A map in 0..255, (H, W), that mixes two background colours."""
    degrees = dice.between(0, 359)
    along = _COLUMNS * _COS[degrees] + _ROWS * _SIN[degrees]
    period = dice.between(8, 22)
    match texture:
        case "clouds":
            return _clouds(dice, (3, 6, 12))
        case "stripes":
            return np.abs((along * 510 // (period * _ONE)) % 510 - 255)
        case "checks":
            across = _ROWS * _COS[degrees] - _COLUMNS * _SIN[degrees]
            return (along // (period * _ONE) + across // (period * _ONE)) % 2 * 200 + 28
        case "gradient":
            return np.clip((along - along.min()) * 255 // (along.max() - along.min()), 0, 255)
        case "blotches":
            return np.clip((_clouds(dice, (5, 10, 20)) - 128) * 6 + 128, 0, 255)
        case "dots":
            spread = (_COLUMNS % period * 2 - period) ** 2 + (_ROWS % period * 2 - period) ** 2
            return np.clip(255 - spread * 500 // period**2, 0, 255)
        case "weave":
            over, under = _COLUMNS * 2 // period, _ROWS * 2 // period
            return np.where((over + under) % 2 == 0, _COLUMNS % 3 * 80, _ROWS % 3 * 80) + 40
        case _:  # haze
            return (_clouds(dice, (2, 4)) + _clouds(dice, (16, 32))) // 2


def _blend(picture: np.ndarray, cover: np.ndarray, x: int, y: int, colour: np.ndarray) -> None:
    """Lay a colour, (3,) or (S, S, 3), on the picture where an (S, S) crop around x, y covers it."""
    reach = cover.shape[0] // 2
    top, left = max(y - reach, 0), max(x - reach, 0)
    crop = picture[top : y + reach + 1, left : x + reach + 1]
    starts = (top - y + reach, left - x + reach)
    rows, columns = (slice(start, start + size) for start, size in zip(starts, crop.shape, strict=False))
    part = cover[rows, columns, None]
    if colour.ndim > 1:
        colour = colour[rows, columns]
    crop[:] = (crop * (9 - part) + colour * part + 4) // 9


def _clutter(dice: _Dice, world: World, picture: np.ndarray, ground: np.ndarray) -> None:
    """Dots and short lines, too small and too dull for an object."""
    for _ in range(dice.between(*world.clutter)):
        colour = (np.array(dice.pick(world.palette), dtype=np.int64) * 2 + ground * 3) // 5
        x, y = dice.between(0, SIDE - 1), dice.between(0, SIDE - 1)
        if dice.chance(55):
            cover = _coverage(dice.pick(("circle", "square")), dice.between(2, 3), dice.between(0, 89))
            _blend(picture, cover, x, y, colour)
        else:
            degrees, reach = dice.between(0, 359), dice.between(5, 12)
            steps = np.arange(-reach, reach + 1, dtype=np.int64)
            u = steps[None, :] * _COS[degrees] + steps[:, None] * _SIN[degrees]
            v = steps[:, None] * _COS[degrees] - steps[None, :] * _SIN[degrees]
            cover = np.where((np.abs(v) * 4 <= 3 * _ONE) & (np.abs(u) <= reach * _ONE), 7, 0)
            _blend(picture, cover, x, y, colour)


@lru_cache(maxsize=512)
def _picture(name: str, seed: int, index: int) -> np.ndarray:
    """uint8 (H, W, 3), read-only: background, clutter, objects in order, noise."""
    world, layout, dice = WORLDS[name], _layout(name, seed, index), _Dice(name, seed, index, "paint")
    greys = [dice.between(*world.ground) for _ in range(2)]
    low, high = (np.array([grey + dice.between(-world.tint, world.tint) for _ in range(3)]) for grey in greys)
    mix = _texture(dice, dice.pick(world.textures))[:, :, None]
    picture = (low * (255 - mix) + high * mix) // 255 + dice.noise(world.grain // 2, SIDE, SIDE, 1)
    ground = (low + high) // 2
    _clutter(dice, world, picture, ground)
    for thing, cover in zip(layout.objects, layout.covers, strict=True):
        centre = world.palette[COLOURS.index(thing.colour)]
        colour = np.array([value + dice.between(-world.jitter, world.jitter) for value in centre])
        colour = (colour * (100 - world.fade) + ground * world.fade) // 100
        reach, degrees = cover.shape[0] // 2, dice.between(0, 359)
        steps = np.arange(-reach, reach + 1, dtype=np.int64)
        ramp = steps[None, :] * _COS[degrees] + steps[:, None] * _SIN[degrees]
        light = 256 + ramp * world.shading // (thing.radius * _ONE)
        grain = dice.noise(world.grain, *cover.shape)
        _blend(picture, cover, thing.x, thing.y, colour * light[:, :, None] // 256 + grain[:, :, None])
    picture += dice.noise(world.noise, SIDE, SIDE, 3)
    finished = np.clip(picture, 0, 255).astype(np.uint8)
    finished.setflags(write=False)
    return finished


# --- meaning ----------------------------------------------------------------------------------------------------------

_AXES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
PLACES = ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right", "middle")
EXTREMES = ("left", "right", "top", "bottom", "big", "small")
RELATIONS = ("left", "right", "top", "bottom", "near")


def holds(meaning: Meaning, objects: Sequence[SceneObject], *, loosely: bool = False) -> tuple[int, ...]:
    """The objects that a meaning picks, as indices.

    Strictly: those that everybody would accept. `loosely`: those that somebody might. A sentence is unambiguous when
    both are the same single object.
    """
    fits = [index for index, thing in enumerate(objects) if _is(meaning, thing)]
    if meaning.place is not None:
        fits = [index for index in fits if _stands(meaning.place, objects[index], loosely)]
    if meaning.extreme is not None and fits:
        best = max(fits, key=lambda index: _degree(meaning.extreme or "", objects[index]))
        fits = [index for index in fits if index == best or loosely and _rivals(meaning.extreme, objects, index, best)]
    if meaning.relation is not None and meaning.anchor is not None:
        anchors = holds(meaning.anchor, objects)
        if len(anchors) != 1:
            return ()
        fits = [index for index in fits if index != anchors[0]]
        fits = _related(meaning.relation, objects, fits, objects[anchors[0]], loosely)
    return tuple(fits)


def _is(meaning: Meaning, thing: SceneObject) -> bool:
    return (
        meaning.shape in (None, thing.shape)
        and meaning.colour in (None, thing.colour)
        and meaning.size in (None, thing.size)
    )


def _stands(place: str, thing: SceneObject, loosely: bool) -> bool:
    u, v = 2 * thing.x - SIDE + 1, 2 * thing.y - SIDE + 1  # half pixels from the middle of the picture
    if place == "middle":
        return max(abs(u), abs(v)) <= (46 if loosely else 22)
    words = place.split()
    least = (-10 if loosely else 22) if len(words) == 2 else (-4 if loosely else 24)
    return all(u * _AXES[word][0] + v * _AXES[word][1] >= least for word in words)


def _degree(extreme: str, thing: SceneObject) -> int:
    if extreme in ("big", "small"):
        return thing.radius if extreme == "big" else -thing.radius
    return thing.x * _AXES[extreme][0] + thing.y * _AXES[extreme][1]


def _rivals(extreme: str, objects: Sequence[SceneObject], index: int, best: int) -> bool:
    """Whether somebody might take `index` for the extreme one: nearly as far out by its centre or by its rim."""
    one, other = objects[index], objects[best]
    if extreme in ("big", "small"):
        low, high = sorted((one.radius, other.radius))
        return high - low < 4 or 4 * high < 5 * low
    gap = _degree(extreme, other) - _degree(extreme, one)
    return gap < 8 or gap + other.radius - one.radius < 2


def _related(
    relation: str, objects: Sequence[SceneObject], fits: list[int], anchor: SceneObject, loosely: bool
) -> list[int]:
    if relation == "near":
        far = {i: math.isqrt(100 * ((objects[i].x - anchor.x) ** 2 + (objects[i].y - anchor.y) ** 2)) for i in fits}
        least = min(far.values(), default=0)  # tenths of a pixel
        return [i for i in fits if far[i] == least or loosely and 10 * far[i] <= 13 * least + 600]
    right, down = _AXES[relation]
    found = []
    for i in fits:
        dx, dy = objects[i].x - anchor.x, objects[i].y - anchor.y
        ahead, aside = dx * right + dy * down, abs(dx * down) + abs(dy * right)
        if ahead >= 2 if loosely else ahead >= 12 and 4 * aside <= 3 * ahead:
            found.append(i)
    return found


def _classes(objects: Sequence[SceneObject]) -> list[Meaning]:
    """Every description by shape, colour or both that fits something here, without repeats."""
    found: dict[Meaning, None] = {}
    for thing in objects:
        found[Meaning(shape=thing.shape)] = None
        found[Meaning(colour=thing.colour)] = None
        found[Meaning(shape=thing.shape, colour=thing.colour)] = None
    return list(found)


def _proposals(objects: Sequence[SceneObject], kind: str) -> list[Meaning]:
    """Meanings of one kind that are worth testing; other than attributes, all need their last part to be unique."""
    classes = _classes(objects)
    members = {meaning: holds(meaning, objects) for meaning in classes}
    if kind == "attribute":
        shared = [meaning for meaning in classes if len(members[meaning]) > 1]
        return classes + [replace(meaning, size=size) for meaning in shared for size in RADII]
    if kind == "relation":
        anchors = [(meaning, members[meaning][0]) for meaning in classes if len(members[meaning]) == 1]
        return [
            replace(meaning, kind=kind, relation=relation, anchor=anchor)
            for meaning in classes
            for anchor, index in anchors
            if len(members[meaning]) - (index in members[meaning]) > 1
            for relation in RELATIONS
        ]
    classes = [meaning for meaning in classes if len(members[meaning]) > 1]
    if kind == "place":
        return [replace(meaning, kind=kind, place=place) for meaning in classes for place in PLACES]
    extremes = [replace(meaning, kind=kind, extreme=extreme) for meaning in classes for extreme in EXTREMES]
    everything = [Meaning(kind, extreme=extreme) for extreme in EXTREMES[:4]]
    return [meaning for meaning in extremes if meaning.shape or meaning.extreme not in RADII] + everything


def _weight(meaning: Meaning) -> int:
    """How readily people say it: two words rather than one, sizes where they are needed."""
    said = sum(word is not None for word in (meaning.shape, meaning.colour, meaning.size))
    return 4 if said > 1 else 2 if said == 1 and meaning.kind != "attribute" else 1


# --- words ------------------------------------------------------------------------------------------------------------

_SIZES = {"small": ("small", "little"), "big": ("big", "large")}
_MOST = {
    "left": ("leftmost",), "right": ("rightmost",), "top": ("topmost", "highest"), "bottom": ("bottommost", "lowest"),
    "big": ("biggest", "largest"), "small": ("smallest",),
}  # fmt: skip
_SIDES = {"left": ("on the left", "at left"), "right": ("on the right", "at right"), "top": ("at the top",),
          "bottom": ("at the bottom",), "middle": ("in the middle", "in the center")}  # fmt: skip
_OF = {
    "left": ("left of", "to the left of"), "right": ("right of", "to the right of"), "top": ("above",),
    "bottom": ("below", "under"), "near": ("closest to", "nearest to"),
}  # fmt: skip


def _phrase(meaning: Meaning, dice: _Dice, *, front: str = "", article: int = 60) -> str:
    noun = meaning.shape or dice.pick(("thing", "object", "shape"))
    if meaning.shape is None and meaning.colour and not meaning.many and dice.chance(25):
        noun = "one"
    if meaning.many:
        noun = noun + ("es" if noun.endswith("s") else "s")
    size = dice.pick(_SIZES[meaning.size]) if meaning.size else ""
    the = "the" if dice.chance(article) else ""
    return " ".join(word for word in (the, front, size, meaning.colour, noun) if word)


def _text(meaning: Meaning, dice: _Dice) -> str:
    """One way to say it, in lower case and without a full stop."""
    if meaning.relation and meaning.anchor:
        how = dice.pick(_OF[meaning.relation])
        return f"{_phrase(meaning, dice)} {how} {_phrase(meaning.anchor, dice, article=90)}"
    if meaning.extreme:
        if meaning.extreme in ("left", "right") and dice.chance(20):
            return f"{_phrase(meaning, dice)} furthest to the {meaning.extreme}"
        return _phrase(meaning, dice, front=dice.pick(_MOST[meaning.extreme]))
    if meaning.place:
        if meaning.place != "middle" and dice.chance(30):
            return _phrase(meaning, dice, front=meaning.place)
        where = _SIDES.get(meaning.place, (f"in the {meaning.place}", f"at the {meaning.place}"))
        return f"{_phrase(meaning, dice)} {dice.pick(where)}"
    return _phrase(meaning, dice)


def kind_of(sentence: str) -> str:
    """Which of `KINDS` a sentence of these worlds is, by its words.

    Example:
        >>> kind_of("the star to the left of the red ring"), kind_of("left star"), kind_of("leftmost star")
        ('relation', 'place', 'superlative')
    """
    sentence = sentence.lower()
    if re.search(r"\b((left|right) of|above|below|under|(closest|nearest) to)\b", sentence):
        return "relation"
    if re.search(r"\b(\w+most|highest|lowest|biggest|largest|smallest|furthest)\b", sentence):
        return "superlative"
    return "place" if re.search(r"\b(left|right|top|bottom|middle|center)\b", sentence) else "attribute"


@lru_cache(maxsize=512)
def _sentences(name: str, seed: int, index: int) -> tuple[Sentence, ...]:
    world, objects = WORLDS[name], _layout(name, seed, index).objects
    dice = _Dice(name, seed, index, "sentences")
    open_: dict[str, list[tuple[Meaning, int]]] = {}
    for kind, weight in zip(KINDS, world.kinds, strict=True):
        for meaning in _proposals(objects, kind) if weight else ():
            found = holds(meaning, objects, loosely=True)
            if len(found) == 1 and holds(meaning, objects) == found:
                open_.setdefault(kind, []).append((meaning, found[0]))
    made: list[Sentence] = []
    while len(made) < SENTENCES and open_:
        kind = dice.weighted(list(open_), [world.kinds[KINDS.index(kind)] for kind in open_])
        target = dice.pick(list(dict.fromkeys(target for _, target in open_[kind])))
        choices = [meaning for meaning, other in open_[kind] if other == target]
        meaning = dice.weighted(choices, [_weight(choice) for choice in choices])
        made.append(Sentence(_text(meaning, dice), kind, (target,), meaning))
        full = sum(sentence.targets == (target,) for sentence in made) == 2
        for key in list(open_):
            open_[key] = [pair for pair in open_[key] if pair[0] != meaning and not (full and pair[1] == target)]
            if not open_[key]:
                del open_[key]
    return tuple(made)


# --- the worlds as data -----------------------------------------------------------------------------------------------


def scene(world: str, seed: int, index: int) -> Scene:
    """One scene, the same for the same three arguments. `world` is a name in `WORLDS`; seed and index count from 0.

    Raises:
        InputError: if there is no such world, or a number is negative.
    """
    _check(world, seed, index)
    layout = _layout(world, seed, index)
    return Scene(_picture(world, seed, index), layout.labels, layout.objects, _sentences(world, seed, index))


def _check(world: str, seed: int, index: int) -> None:
    if world not in WORLDS:
        raise InputError(f"no world {world!r}; there are {', '.join(sorted(WORLDS))}")
    if seed < 0 or index < 0:
        raise InputError(f"seed and index of a scene count from 0, not {seed} and {index}")


def render_address(address: str) -> np.ndarray:
    """The picture at `scenes:WORLD:SEED:INDEX`, a fresh uint8 (H, W, 3).

    Raises:
        InputError: if the address is not of that form or names no world.
    """
    parts = re.fullmatch(r"scenes:([a-z]+):(0|[1-9][0-9]{0,17}):(0|[1-9][0-9]{0,17})", address)
    if parts is None:
        raise InputError("a drawn picture's address reads scenes:WORLD:SEED:INDEX", record=address)
    world, seed, index = parts[1], int(parts[2]), int(parts[3])
    _check(world, seed, index)
    return _picture(world, seed, index).copy()


def world_samples(
    count: int,
    seed: int,
    *,
    world: str = "home",
    sentences_per_scene: int = 4,
    no_target: float = 0.0,
    several: float = 0.0,
) -> list[Sample]:
    """The first `count` scenes as records, one for each object that is spoken of; every tenth scene is `val`.

    Args:
        count: number of pictures.
        seed: which sequence of pictures.
        world: a name in `WORLDS`.
        sentences_per_scene: at most so many sentences about a picture, 1 to `SENTENCES`.
        no_target: share of sentences that describe nothing in the picture, though nearly.
        several: share of sentences that mean two or more objects ("the red stars"), where the scene has such.

    Raises:
        InputError: if an argument is out of its range.
    """
    _check(world, seed, count)
    if not 1 <= sentences_per_scene <= SENTENCES:
        raise InputError(f"sentences_per_scene is 1 to {SENTENCES}, not {sentences_per_scene}")
    if min(no_target, several) < 0 or no_target + several > 1:
        raise InputError(f"no_target {no_target} and several {several} are shares that add up to 1 at most")
    samples: list[Sample] = []
    for index in range(count):
        layout = _layout(world, seed, index)
        sentences = _sentences(world, seed, index)[:sentences_per_scene]
        if no_target or several:
            sentences = _with_others(sentences, layout.objects, _Dice(world, seed, index, "others"), no_target, several)
        image_id = f"{world}-{seed}-{index}"
        texts: dict[str, list[str]] = {}  # by ref
        targets: dict[str, tuple[int, ...]] = {}
        for number, sentence in enumerate(sentences):
            ref = f"{image_id}-{sentence.targets[0]}" if len(sentence.targets) == 1 else f"{image_id}-s{number}"
            texts.setdefault(ref, []).append(sentence.text)
            targets[ref] = sentence.targets
        for ref, lines in texts.items():
            samples.append(
                Sample(
                    id=ref,
                    image=f"scenes:{world}:{seed}:{index}",
                    image_id=image_id,
                    size=(SIDE, SIDE),
                    sentences=tuple(lines),
                    sentence_ids=tuple(f"{ref}-{number}" for number in range(len(lines))),
                    targets=tuple(Rle.encode(layout.labels == target + 1) for target in targets[ref]),
                    split="val" if index % 10 == 9 else "train",
                    provenance=f"scenes {world} seed {seed} index {index}",
                )
            )
    return samples


def _with_others(
    sentences: tuple[Sentence, ...], objects: Sequence[SceneObject], dice: _Dice, no_target: float, several: float
) -> tuple[Sentence, ...]:
    """The sentences with some replaced by ones that mean nothing here, or several things."""
    shapes, colours = (list(dict.fromkeys(values)) for values in list(zip(*objects, strict=True))[:2])
    near = [Meaning(shape=shape, colour=colour) for shape in shapes for colour in colours]
    near += [replace(meaning, kind="place", place=place) for meaning in _classes(objects) for place in PLACES]
    empty = [meaning for meaning in near if not holds(meaning, objects, loosely=True)]
    plural = [replace(meaning, many=True) for meaning in _classes(objects) if len(holds(meaning, objects)) > 1]
    result: list[Sentence] = []
    for sentence in sentences:
        roll = dice.between(0, 9999)
        if roll < no_target * 10000 and empty:
            kinds = list(dict.fromkeys(meaning.kind for meaning in empty))
            kind = dice.pick(kinds)
            meaning = dice.pick([meaning for meaning in empty if meaning.kind == kind])
            empty.remove(meaning)
            sentence = Sentence(_text(meaning, dice), kind, (), meaning)
        elif no_target * 10000 <= roll < (no_target + several) * 10000 and plural:
            meaning = dice.pick(plural)
            plural.remove(meaning)
            found = holds(meaning, objects)
            opening = dice.pick(("all", "all the", "the", "both" if len(found) == 2 else "all"))
            sentence = Sentence(f"{opening} {_phrase(meaning, dice, article=0)}", "attribute", found, meaning)
        result.append(sentence)
    return tuple(result)
