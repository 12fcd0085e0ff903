from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from l2l.data.read import DataSet
from l2l.data.splits import Split, draw
from l2l.errors import InputError
from l2l.rle import Rle
from l2l.sample import Sample

MASK = Rle.encode(np.eye(4, 6) > 0)


def samples(images: int, *, split: str = "train", targets: tuple[Rle, ...] | None = (MASK,)) -> list[Sample]:
    return [
        Sample(
            id=f"{split}{index}",
            image=f"{index}.png",
            image_id=f"{split}{index // 2}",
            size=(4, 6),
            sentences=("a",),
            sentence_ids=(f"{split}{index}",),
            targets=targets,
            split=split,
        )
        for index in range(2 * images)
    ]


@given(st.integers(1, 300), st.integers(1, 1000), st.integers(0, 5))
@example(100, 290, 0)  # 0.29 * 100 is below 29
def test_the_count_is_the_floor_in_decimals(images: int, permille: int, seed: int) -> None:
    population = samples(images)
    expected = images * permille // 1000
    if expected:
        assert len(draw(population, permille / 1000, seed).images) == expected
    else:
        with pytest.raises(InputError, match="smallest"):
            draw(population, permille / 1000, seed)


def test_lower_rates_are_inside_higher_ones_and_order_does_not_matter() -> None:
    population = samples(200) + samples(20, split="val") + samples(30, split="extra", targets=None)
    shuffled = random.Random(0).sample(population, len(population))
    low, high = draw(population, 0.05, 3), draw(population, 0.2, 3)
    assert len(low.images) == 10 and set(low.images) < set(high.images)
    assert draw(shuffled, 0.05, 3) == low
    assert list(low.images) == sorted(low.images)
    assert all(image.startswith("train") for image in high.images)
    assert draw(population, 0.05, 4).images != low.images


def test_the_draw_never_changes() -> None:
    """Published splits depend on these very images."""
    assert draw(samples(50), 0.1, 0).images == ("train30", "train40", "train5", "train6", "train9")


def test_every_image_is_drawn_about_as_often_as_any_other() -> None:
    population = samples(20)
    drawn = [image for seed in range(400) for image in draw(population, 0.25, seed).images]
    counts = np.array([drawn.count(f"train{index}") for index in range(20)])
    assert counts.sum() == 2000 and counts.min() > 65 and counts.max() < 140  # 100 expected, spread 9


@pytest.mark.parametrize("rate", [0, -0.1, 1.0001, float("nan"), float("inf"), 0.001])
def test_a_rate_that_cannot_work_names_the_smallest_that_does(rate: float) -> None:
    population = samples(30)
    with pytest.raises(InputError) as caught:
        draw(population, rate, 0)
    smallest = next(word for word in caught.value.reason.replace(",", " ").split() if word.startswith("0.0333"))
    assert len(draw(population, float(smallest), 0).images) == 1


def test_images_that_cannot_be_labelled_do_not_count() -> None:
    bare = [replace(sample, image_id=f"bare{sample.image_id}", id=f"b{sample.id}") for sample in samples(90)]
    population = samples(10) + [replace(sample, targets=None) for sample in bare]
    assert len(draw(population, 0.5, 0).images) == 5
    with pytest.raises(InputError, match="no labelled image"):
        draw(samples(5, targets=None), 0.5, 0)


def test_apply_takes_the_masks_away() -> None:
    population = samples(10) + samples(3, split="val")
    split = draw(population, 0.3, 1)
    labelled, unlabelled = split.apply(population)
    assert {sample.image_id for sample in labelled} == set(split.images) and len(labelled) == 6
    assert all(sample.targets == (MASK,) for sample in labelled)
    assert len(unlabelled) == 14
    assert all(sample.targets is None and sample.image_id not in split.images for sample in unlabelled)
    assert {sample.id for sample in labelled + unlabelled} == {sample.id for sample in population[:20]}


def test_save_and_load(tmp_path: Path) -> None:
    split = draw(samples(40), 0.25, 1, data="set é")
    path = tmp_path / "new" / "split.json"
    split.save(path)
    assert Split.load(path) == split
    assert len(split.hash) == len(split.fingerprint) == 16
    lines = [line.strip().rstrip(",") for line in path.read_text().splitlines()]
    assert all(json.dumps(image) in lines for image in split.images)
    assert [entry.name for entry in path.parent.iterdir()] == ["split.json"]


def test_what_was_edited_or_truncated_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    draw(samples(40), 0.25, 1).save(path)
    text = path.read_text()
    content = json.loads(text)
    edits = [{**content, "seed": 2}, {**content, "images": content["images"][1:]}, {**content, "more": 1}, []]
    edits += [
        {**content, "hash": None},
        {key: content[key] for key in content if key != "rate"},
        {**content, "images": 3},
    ]
    for broken in [text[:-20], "", "[" * 100_000, *map(json.dumps, edits)]:
        path.write_text(broken)
        with pytest.raises(InputError, match=r"split\.json"):
            Split.load(path)
    with pytest.raises(InputError):
        Split.load(tmp_path / "none.json")


def test_a_split_belongs_to_one_data_set() -> None:
    population = samples(10) + samples(3, split="val")
    split = draw(population, 0.5, 0, data="mine")
    split.check(DataSet("mine", tuple(reversed(population))))
    split.check(DataSet("mine", tuple(replace(sample, image="/elsewhere", provenance="x") for sample in population)))
    first, *rest = population
    changes = [
        {"sentences": ("b",)},
        {"targets": ()},
        {"targets": None},
        {"split": "val"},
        {"id": "z"},
        {"image_id": "z"},
    ]
    for change in changes:
        other = DataSet("other", (replace(first, **change), *rest))
        with pytest.raises(InputError, match="drawn from mine"):
            split.check(other)
    with pytest.raises(InputError):
        split.check(DataSet("other", tuple(rest)))


def test_labels_can_be_drawn_from_some_of_the_images_alone() -> None:
    from l2l.data.read import read

    both = read("scenes", scenes_count=60, scenes_world="both").samples
    images = {sample.image_id for sample in both}
    worlds = {name.partition("-")[0] for name in images}
    assert worlds == {"home", "away"} and len(images) == 60
    assert {sample.split for sample in both if sample.image_id.startswith("away")} == {"train", "val"}
    split = draw(both, 0.2, 0, only="away")
    train = {sample.image_id for sample in both if sample.split == "train" and sample.image_id.startswith("away")}
    assert set(split.images) < train and len(split.images) == len(train) // 5
    with pytest.raises(InputError, match="no labelled image"):
        draw(both, 0.2, 0, only="nowhere")
