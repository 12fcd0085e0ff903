from __future__ import annotations

import doctest
import hashlib
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from l2l.data import scene_pictures, scene_sentences, scenes
from l2l.data.scene_pictures import COLOURS, KINDS, SENTENCES, SHAPES, SIDE, VISIBLE, WORLDS, SceneObject
from l2l.data.scene_sentences import Meaning, holds, kind_of
from l2l.data.scenes import Scene, render_address, scene, world_samples
from l2l.errors import InputError
from l2l.sample import Sample

SEED, COUNT = 11, 200

GOLDEN = {
    "home": ("3aeb147f6caad0ebaf9005545f4f8a43", "eba0b8c6c34ada184a2540177628e8a6"),
    "away": ("bac5d9d04c009f5fb2754091835c1d7c", "ee26a09b116a51320a33d2b757492274"),
}
"""Per world: digests of the first pictures and of the sentences of the first scenes, of seed 0."""

READ_PLACE = {"upper": "top", "lower": "bottom", "center": "middle"}
READ_MOST = {
    "leftmost": "left", "rightmost": "right", "topmost": "top", "highest": "top", "bottommost": "bottom",
    "lowest": "bottom", "biggest": "big", "largest": "big", "smallest": "small",
}  # fmt: skip
READ_OF = {
    "to the left of": "left", "left of": "left", "to the right of": "right", "right of": "right", "above": "top",
    "below": "bottom", "under": "bottom", "closest to": "near", "nearest to": "near",
}  # fmt: skip


def read(text: str) -> Meaning:
    """A second opinion on what a sentence means, from its words alone."""
    for words, relation in READ_OF.items():
        head, found, tail = text.partition(f" {words} ")
        if found:
            return replace(read(head), kind="relation", relation=relation, anchor=read(tail))
    meaning, place = Meaning(), []
    for word in text.split():
        if word in SHAPES:
            meaning = replace(meaning, shape=word)
        elif word in COLOURS:
            meaning = replace(meaning, colour=word)
        elif word in ("small", "little", "big", "large"):
            meaning = replace(meaning, size="small" if word in ("small", "little") else "big")
        elif word in READ_MOST:
            meaning = replace(meaning, kind="superlative", extreme=READ_MOST[word])
        elif word in ("left", "right", "top", "bottom", "middle", "center"):
            place.append(READ_PLACE.get(word, word))
        else:
            assert word in ("the", "thing", "object", "shape", "one", "on", "at", "in", "furthest", "to"), text
    if "furthest" in text:
        return replace(meaning, kind="superlative", extreme=place[0])
    return replace(meaning, kind="place", place=" ".join(place)) if place else meaning


def swapped(text: str) -> str:
    return re.sub(r"\b(left|right)", lambda word: {"left": "right", "right": "left"}[word[0]], text)


def mirrored(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    return tuple(thing._replace(x=SIDE - 1 - thing.x) for thing in objects)


@pytest.fixture(scope="module", params=sorted(WORLDS))
def drawn(request: pytest.FixtureRequest) -> list[Scene]:
    return [scene(request.param, SEED, index) for index in range(COUNT)]


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_same_bytes_as_ever(world: str) -> None:
    first = [scene(world, 0, index) for index in range(24)]
    pictures = hashlib.blake2b(b"".join(one.picture.tobytes() + one.labels.tobytes() for one in first), digest_size=16)
    lines = "\n".join(f"{sentence.targets} {sentence.text}" for one in first for sentence in one.sentences)
    assert (pictures.hexdigest(), hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()) == GOLDEN[world]


def test_shapes_types_and_bounds(drawn: list[Scene]) -> None:
    for one in drawn:
        assert one.picture.shape == (SIDE, SIDE, 3) and one.picture.dtype == np.uint8
        assert one.labels.shape == (SIDE, SIDE) and one.labels.dtype == np.int8
        assert 4 <= len(one.objects) <= 7
        assert 1 <= len(one.sentences) <= SENTENCES
        assert not one.picture.flags.writeable and not one.labels.flags.writeable
        assert max(Counter(sentence.targets for sentence in one.sentences).values()) <= 2
        assert len({sentence.meaning for sentence in one.sentences}) == len(one.sentences)
        for thing in one.objects:
            low, high = scene_pictures.RADII[thing.size]
            assert low <= thing.radius <= high


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_masks_are_the_visible_pixels(world: str) -> None:
    hidden = 0
    for index in range(COUNT):
        one, layout = scene(world, SEED, index), scene_pictures.layout_of(world, SEED, index)
        for number, (thing, cover) in enumerate(zip(layout.objects, layout.covers, strict=True)):
            whole, visible = int((cover >= 5).sum()), int((one.labels == number + 1).sum())
            assert 100 * visible >= VISIBLE * whole >= 100 * 20
            hidden += visible < whole
            rows, columns = np.nonzero(one.labels == number + 1)
            reach = cover.shape[0] // 2
            assert (np.abs(rows - thing.y) <= reach).all() and (np.abs(columns - thing.x) <= reach).all()
            assert (cover[rows - thing.y + reach, columns - thing.x + reach] >= 5).all()
    assert hidden > COUNT // 2, "occlusion is part of the world"


def test_sentences_are_true_unique_and_say_what_they_mean(drawn: list[Scene]) -> None:
    for one in drawn:
        for sentence in one.sentences:
            meaning = read(sentence.text)
            assert meaning == sentence.meaning, sentence.text
            assert sentence.kind == meaning.kind == kind_of(sentence.text)
            for loosely in (False, True):
                assert holds(meaning, one.objects, loosely=loosely) == sentence.targets, sentence.text


def test_every_word_beyond_the_class_is_needed(drawn: list[Scene]) -> None:
    for one in drawn:
        for sentence in one.sentences:
            meaning = sentence.meaning
            if meaning.size or meaning.place or meaning.extreme:
                assert len(holds(Meaning(shape=meaning.shape, colour=meaning.colour), one.objects)) > 1, sentence.text
            if meaning.relation and meaning.anchor:
                group = holds(Meaning(shape=meaning.shape, colour=meaning.colour), one.objects)
                anchor = holds(meaning.anchor, one.objects)
                assert len(anchor) == 1 and len(set(group) - set(anchor)) > 1, sentence.text


def test_mirrored_scene_and_swapped_words_agree(drawn: list[Scene]) -> None:
    spatial = 0
    for one in drawn:
        for sentence in one.sentences:
            text, objects = swapped(sentence.text), mirrored(one.objects)
            assert holds(read(text), objects) == holds(read(text), objects, loosely=True) == sentence.targets, text
            if text != sentence.text and (sentence.meaning.place or sentence.meaning.extreme):
                spatial += 1
                assert holds(read(sentence.text), objects) != sentence.targets, "the words matter"
    assert spatial > COUNT // 2


@pytest.mark.parametrize(("world", "shares"), [("home", (45, 20, 15, 20)), ("away", (56, 25, 19, 0))])
def test_mixture_of_kinds(world: str, shares: tuple[int, ...]) -> None:
    found = Counter(kind_of(text) for sample in world_samples(COUNT, SEED, world=world) for text in sample.sentences)
    assert sum(found.values()) >= 3.9 * COUNT
    for kind, share in zip(KINDS, shares, strict=True):
        assert abs(100 * found[kind] / sum(found.values()) - share) <= 5, (kind, found)


def test_one_word_is_rarely_enough() -> None:
    texts = [text for sample in world_samples(COUNT, SEED) for text in sample.sentences]
    assert sum(len(text.removeprefix("the ").split()) == 1 for text in texts) < 0.1 * len(texts)
    shared = [
        any(a.shape == b.shape for a, b in combinations(one.objects, 2))
        and any(a.colour == b.colour for a, b in combinations(one.objects, 2))
        for one in (scene("home", SEED, index) for index in range(COUNT))
    ]
    assert sum(shared) > 0.7 * COUNT


def test_colours_of_objects_tell_but_are_not_constant() -> None:
    for world in WORLDS.values():
        means: dict[str, list[np.ndarray]] = {colour: [] for colour in COLOURS}
        for index in range(60):
            one = scene(world.name, SEED, index)
            for number, thing in enumerate(one.objects):
                means[thing.colour].append(one.picture[one.labels == number + 1].mean(axis=0))
        centres = np.stack([np.mean(values, axis=0) for values in means.values()])
        all_means = np.concatenate([np.stack(values) for values in means.values()])
        truth = np.repeat(np.arange(len(COLOURS)), [len(values) for values in means.values()])
        nearest = ((all_means[:, None] - centres) ** 2).sum(-1).argmin(1)
        assert (nearest == truth).mean() > 0.93
        assert min(np.std(values, axis=0).max() for values in means.values()) > 3


def test_order_of_calls_does_not_matter() -> None:
    def fresh(index: int) -> tuple[bytes, bytes, tuple[str, ...]]:
        for cache in (scene_pictures.layout_of, scene_pictures.picture_of, scene_sentences.sentences_of):
            cache.cache_clear()
        one = scene("away", 5, index)
        return one.picture.tobytes(), one.labels.tobytes(), tuple(sentence.text for sentence in one.sentences)

    np.random.seed(1)
    forward = [fresh(index) for index in range(6)]
    np.random.seed(2)
    world_samples(8, 5, world="away", no_target=0.5)
    assert [fresh(index) for index in reversed(range(6))] == forward[::-1]
    assert len(set(forward)) == 6
    assert fresh(0)[0] != scene("away", 6, 0).picture.tobytes() != scene("home", 6, 0).picture.tobytes()


def test_samples() -> None:
    samples = world_samples(40, 3, sentences_per_scene=5)
    assert len({sample.id for sample in samples}) == len(samples)
    keys = [key for sample in samples for key in sample.sentence_ids]
    assert len(set(keys)) == len(keys)
    by_image: dict[str, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    assert list(by_image) == [f"home-3-{index}" for index in range(40)]
    for index, group in enumerate(by_image.values()):
        one = scene("home", 3, index)
        assert sum(len(sample.sentences) for sample in group) <= 5
        for sample in group:
            assert sample.image == f"scenes:home:3:{index}"
            assert sample.split == ("val" if index % 10 == 9 else "train")
            assert sample.provenance == f"scenes home seed 3 index {index}"
            assert 1 <= len(sample.sentences) <= 2 and sample.targets is not None and len(sample.targets) == 1
            (target,) = {sentence.targets[0] for sentence in one.sentences if sentence.text in sample.sentences}
            assert np.array_equal(sample.mask(), one.labels == target + 1)
            assert np.array_equal(render_address(sample.image), one.picture)
    assert world_samples(12, 3, sentences_per_scene=5) == samples[: len(world_samples(12, 3, sentences_per_scene=5))]


def test_no_target_and_several() -> None:
    samples = world_samples(100, 4, no_target=0.25, several=0.25)
    counts = Counter(
        min(len(sample.targets), 2) for sample in samples if sample.targets is not None for _ in sample.sentences
    )
    total = sum(counts.values())
    assert 0.17 < counts[0] / total < 0.33 and 0.15 < counts[2] / total < 0.33
    for sample in samples:
        assert sample.targets is not None
        one = scene("home", 4, int(sample.image.rpartition(":")[2]))
        for text in sample.sentences:
            assert kind_of(text) in KINDS
            if not sample.targets:
                meaning = read(text)
                assert holds(meaning, one.objects, loosely=True) == ()
                assert not sample.mask().any()
                assert not meaning.shape or any(thing.shape == meaning.shape for thing in one.objects)
            elif len(sample.targets) > 1:
                single = re.sub(r"(?<=cross)es\b|(?<!\bcros)s\b", "", re.sub(r"^(all the|all|both|the) ", "", text))
                found = holds(read(single), one.objects)
                assert len(found) == len(sample.targets)
                assert not text.startswith("both") or len(found) == 2
                assert np.array_equal(sample.mask(), np.isin(one.labels, np.array(found) + 1))
    assert all(len(sample.targets or ()) == 1 for sample in world_samples(20, 4))


def test_the_picture_is_a_fresh_copy() -> None:
    picture = render_address("scenes:home:1:2")
    picture[:] = 0
    assert render_address("scenes:home:1:2").any()


@pytest.mark.parametrize(
    "address",
    [
        "", "scenes", "scenes:home:1", "scenes:home:1:2:3", "scenes:mars:1:2", "scenes:home:-1:2", "scenes:home:1:x",
        "scenes:home:01:2", "scenes:home:1:2\n", "scenes:home:1:\u0662", "a.jpg", "scenes:home:1:" + "9" * 40,
    ],
)  # fmt: skip
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(InputError):
        render_address(address)


def test_arguments_out_of_range() -> None:
    for call in (
        lambda: scene("mars", 0, 0),
        lambda: scene("home", -1, 0),
        lambda: scene("home", 0, -1),
        lambda: world_samples(-1, 0),
        lambda: world_samples(1, 0, sentences_per_scene=0),
        lambda: world_samples(1, 0, sentences_per_scene=SENTENCES + 1),
        lambda: world_samples(1, 0, no_target=0.7, several=0.7),
        lambda: world_samples(1, 0, no_target=-0.1),
    ):
        with pytest.raises(InputError):
            call()


def test_kind_of_and_its_example() -> None:
    for module in (scenes, scene_pictures, scene_sentences):
        assert doctest.testmod(module).failed == 0
    assert kind_of("The Red Star") == "attribute"
    assert kind_of("square nearest to the blue cross") == "relation"
