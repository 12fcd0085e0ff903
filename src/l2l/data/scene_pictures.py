"""Pictures of coloured shapes, drawn from a seed: the worlds' knobs, where things stand, and how they are painted.

The same world, seed and index give the same bytes on every machine: geometry and colour are integer arithmetic, angles
come from a table of integers, and randomness is the frozen stream of `np.random.RandomState`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

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


class Dice:
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


def _attributes(dice: Dice, objects: list[SceneObject]) -> tuple[str, str, str]:
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


class Layout(NamedTuple):
    objects: tuple[SceneObject, ...]
    covers: tuple[np.ndarray, ...]  # (S, S) each, 0..9
    labels: np.ndarray  # int8 (H, W)


@lru_cache(maxsize=512)
def layout_of(name: str, seed: int, index: int) -> Layout:
    dice = Dice(name, seed, index)
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
    return Layout(tuple(objects), tuple(covers), labels)


@lru_cache(maxsize=16)
def _lattice(cells: int) -> np.ndarray:
    """(SIDE, cells + 1) linear interpolation weights that add up to SIDE."""
    spots = np.arange(SIDE, dtype=np.int64) * cells
    weights = np.zeros((SIDE, cells + 1), dtype=np.int64)
    rows, cell, part = np.arange(SIDE), spots // SIDE, spots % SIDE
    weights[rows, cell] = SIDE - part
    weights[rows, cell + 1] = part
    return weights


def _clouds(dice: Dice, octaves: Sequence[int]) -> np.ndarray:
    """Value noise, 0..255, (H, W): each octave counts half of the one before."""
    total = np.zeros((SIDE, SIDE), dtype=np.int64)
    weight = whole = 1 << len(octaves)
    for cells in octaves:
        weight //= 2
        weights = _lattice(cells)
        total += weight * (weights @ (dice.noise(127, cells + 1, cells + 1) + 128) @ weights.T // SIDE**2)
    stretched = (total // (whole - 1) - 128) * 8 // 5 + 128
    return np.clip(stretched, 0, 255)


def _texture(dice: Dice, texture: str) -> np.ndarray:
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


def _clutter(dice: Dice, world: World, picture: np.ndarray, ground: np.ndarray) -> None:
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
def picture_of(name: str, seed: int, index: int) -> np.ndarray:
    """uint8 (H, W, 3), read-only: background, clutter, objects in order, noise."""
    world, layout, dice = WORLDS[name], layout_of(name, seed, index), Dice(name, seed, index, "paint")
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
