"""Sentences about drawn scenes: what they mean, what they pick, and how they are worded.

A sentence starts as a `Meaning`; `holds` says which objects a meaning picks, strictly and loosely. A sentence is kept
if exactly one object fits both ways, so that a person who is generous about "left" still finds the same object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from l2l.data.scene_pictures import KINDS, RADII, SENTENCES, SIDE, WORLDS, Dice, SceneObject, layout_of


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


def classes_of(objects: Sequence[SceneObject]) -> list[Meaning]:
    """Every description by shape, colour or both that fits something here, without repeats."""
    found: dict[Meaning, None] = {}
    for thing in objects:
        found[Meaning(shape=thing.shape)] = None
        found[Meaning(colour=thing.colour)] = None
        found[Meaning(shape=thing.shape, colour=thing.colour)] = None
    return list(found)


def _proposals(objects: Sequence[SceneObject], kind: str) -> list[Meaning]:
    """Meanings of one kind that are worth testing; other than attributes, all need their last part to be unique."""
    classes = classes_of(objects)
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


def phrase_of(meaning: Meaning, dice: Dice, *, front: str = "", article: int = 60) -> str:
    noun = meaning.shape or dice.pick(("thing", "object", "shape"))
    if meaning.shape is None and meaning.colour and not meaning.many and dice.chance(25):
        noun = "one"
    if meaning.many:
        noun = noun + ("es" if noun.endswith("s") else "s")
    size = dice.pick(_SIZES[meaning.size]) if meaning.size else ""
    the = "the" if dice.chance(article) else ""
    return " ".join(word for word in (the, front, size, meaning.colour, noun) if word)


def text_of(meaning: Meaning, dice: Dice) -> str:
    """One way to say it, in lower case and without a full stop."""
    if meaning.relation and meaning.anchor:
        how = dice.pick(_OF[meaning.relation])
        return f"{phrase_of(meaning, dice)} {how} {phrase_of(meaning.anchor, dice, article=90)}"
    if meaning.extreme:
        if meaning.extreme in ("left", "right") and dice.chance(20):
            return f"{phrase_of(meaning, dice)} furthest to the {meaning.extreme}"
        return phrase_of(meaning, dice, front=dice.pick(_MOST[meaning.extreme]))
    if meaning.place:
        if meaning.place != "middle" and dice.chance(30):
            return phrase_of(meaning, dice, front=meaning.place)
        where = _SIDES.get(meaning.place, (f"in the {meaning.place}", f"at the {meaning.place}"))
        return f"{phrase_of(meaning, dice)} {dice.pick(where)}"
    return phrase_of(meaning, dice)


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
def sentences_of(name: str, seed: int, index: int) -> tuple[Sentence, ...]:
    world, objects = WORLDS[name], layout_of(name, seed, index).objects
    dice = Dice(name, seed, index, "sentences")
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
        made.append(Sentence(text_of(meaning, dice), kind, (target,), meaning))
        full = sum(sentence.targets == (target,) for sentence in made) == 2
        for key in list(open_):
            open_[key] = [pair for pair in open_[key] if pair[0] != meaning and not (full and pair[1] == target)]
            if not open_[key]:
                del open_[key]
    return tuple(made)
