"""`scenes`: the embedded world. Pictures of coloured shapes and sentences about them, drawn on the fly from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from l2l.data.scene_pictures import SENTENCES, SIDE, WORLDS, Dice, SceneObject, layout_of, picture_of
from l2l.data.scene_sentences import PLACES, Meaning, Sentence, classes_of, holds, phrase_of, sentences_of, text_of
from l2l.errors import InputError
from l2l.rle import Rle
from l2l.sample import Sample


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


def scene(world: str, seed: int, index: int) -> Scene:
    """One scene, the same for the same three arguments. `world` is a name in `WORLDS`; seed and index count from 0.

    Raises:
        InputError: if there is no such world, or a number is negative.
    """
    _check(world, seed, index)
    layout = layout_of(world, seed, index)
    return Scene(picture_of(world, seed, index), layout.labels, layout.objects, sentences_of(world, seed, index))


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
    return picture_of(world, seed, index).copy()


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
    return list(_world(count, seed, world, sentences_per_scene, no_target, several))


@lru_cache(maxsize=4)
def _world(
    count: int, seed: int, world: str, sentences_per_scene: int, no_target: float, several: float
) -> tuple[Sample, ...]:
    """The records of a world; drawing 2,000 scenes takes seconds, and a run asks for them three times."""
    samples: list[Sample] = []
    for index in range(count):
        layout = layout_of(world, seed, index)
        sentences = sentences_of(world, seed, index)[:sentences_per_scene]
        if no_target or several:
            sentences = _with_others(sentences, layout.objects, Dice(world, seed, index, "others"), no_target, several)
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
    return tuple(samples)


def _with_others(
    sentences: tuple[Sentence, ...], objects: Sequence[SceneObject], dice: Dice, no_target: float, several: float
) -> tuple[Sentence, ...]:
    """The sentences with some replaced by ones that mean nothing here, or several things."""
    shapes, colours = (list(dict.fromkeys(values)) for values in list(zip(*objects, strict=True))[:2])
    near = [Meaning(shape=shape, colour=colour) for shape in shapes for colour in colours]
    near += [replace(meaning, kind="place", place=place) for meaning in classes_of(objects) for place in PLACES]
    empty = [meaning for meaning in near if not holds(meaning, objects, loosely=True)]
    plural = [replace(meaning, many=True) for meaning in classes_of(objects) if len(holds(meaning, objects)) > 1]
    result: list[Sentence] = []
    for sentence in sentences:
        roll = dice.between(0, 9999)
        if roll < no_target * 10000 and empty:
            kinds = list(dict.fromkeys(meaning.kind for meaning in empty))
            kind = dice.pick(kinds)
            meaning = dice.pick([meaning for meaning in empty if meaning.kind == kind])
            empty.remove(meaning)
            sentence = Sentence(text_of(meaning, dice), kind, (), meaning)
        elif no_target * 10000 <= roll < (no_target + several) * 10000 and plural:
            meaning = dice.pick(plural)
            plural.remove(meaning)
            found = holds(meaning, objects)
            opening = dice.pick(("all", "all the", "the", "both" if len(found) == 2 else "all"))
            sentence = Sentence(f"{opening} {phrase_of(meaning, dice, article=0)}", "attribute", found, meaning)
        result.append(sentence)
    return tuple(result)
