from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from l2l.data.check import QUANTILES, Counts, check, render
from l2l.data.read import DataSet
from l2l.data.refer import write_refer
from l2l.rle import Rle
from l2l.sample import Sample

SHARED = Path(__file__).parents[2] / "shared" / "data"


def box(side: int) -> Rle:
    mask = np.zeros((8, 10), bool)
    mask[:side, :side] = True
    return Rle.encode(mask)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Four samples on three pictures, nothing wrong with them."""
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 256, (8, 10, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
    known = [((box(2),), 0, "train"), ((), 0, "train"), ((box(4), box(8)), 1, "val"), (None, 2, "train")]
    sentences = [("a red cup", "Cup!"), ("dog",), ("the two long red things",), ("cup",)]
    return [
        Sample(
            id=str(index),
            image=str(tmp_path / f"{image}.png"),
            image_id=str(image),
            size=(8, 10),
            sentences=said,
            sentence_ids=tuple(f"{index}_{place}" for place in range(len(said))),
            targets=targets,
            split=split,
        )
        for index, ((targets, image, split), said) in enumerate(zip(known, sentences, strict=True))
    ]


def dataset(samples: list[Sample], *more: Sample) -> DataSet:
    return DataSet("mine", (*samples, *more))


def test_counts(samples: list[Sample]) -> None:
    report = check(dataset(samples), deep=True)
    assert report.problems == report.notes == ()
    counts = {"images": 2, "refs": 3, "sentences": 4, "masks": 1, "no_target": 1, "several_targets": 0, "unlabelled": 1}
    assert report.splits["train"] == Counts(**counts)
    assert report.splits["val"].several_targets == 1 and report.splits["val"].masks == 2
    assert (report.total.images, report.total.refs, report.total.masks) == (3, 4, 3)
    assert report.words == (1, 1, 5)
    assert report.vocabulary == 8  # a red cup dog the two long things
    shares = dict(zip(QUANTILES, report.mask_share, strict=True))
    assert (shares[0.0], shares[0.5], shares[1.0]) == pytest.approx((4 / 80, 16 / 80, 64 / 80))


def problems(samples: list[Sample], *more: Sample, deep: bool = False) -> list[str]:
    return [problem.reason for problem in check(dataset(samples, *more), deep=deep).problems]


def test_missing_and_unreadable_pictures(samples: list[Sample]) -> None:
    Path(samples[2].image).unlink()
    Path(samples[3].image).write_bytes(b"no picture")
    missing, unreadable = check(dataset(samples)).problems
    assert (missing.file, missing.record) == (samples[2].image, "record 2") and "no such image" in missing.reason
    assert (unreadable.file, unreadable.record) == (samples[3].image, "record 3") and "unreadable" in unreadable.reason


def test_a_truncated_jpeg_takes_a_deep_look(samples: list[Sample], tmp_path: Path) -> None:
    path = tmp_path / "b.jpg"
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (80, 100, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    cut = replace(samples[3], id="9", image_id="9", image=str(path), size=(80, 100))
    assert problems(samples, cut) == []
    (problem,) = problems(samples, cut, deep=True)
    assert "truncated" in problem


def test_another_size_than_the_record_says(samples: list[Sample]) -> None:
    Image.new("RGB", (10, 9)).save(samples[2].image)
    assert problems(samples) == ["the record says 8 x 10 pixels, the file has 9 x 10"]


def test_empty_masks(samples: list[Sample]) -> None:
    samples[2] = replace(samples[2], targets=(box(0), box(1)))
    assert problems(samples) == ["an empty mask"]


def test_an_image_in_two_splits_is_a_leak(samples: list[Sample], tmp_path: Path) -> None:
    leak = replace(samples[0], id="9", split="val")
    assert problems(samples, leak) == ["the image is in more than one split: train, val"]
    under_another_id = replace(leak, image_id="9")
    assert problems(samples, under_another_id) == ["the image is in more than one split: train, val"]
    (tmp_path / "copy.png").write_bytes(Path(samples[0].image).read_bytes())
    copy = replace(under_another_id, image=str(tmp_path / "copy.png"))
    assert problems(samples, copy) == []
    assert problems(samples, copy, deep=True) == ["the image is in more than one split: train, val"]


def test_an_id_for_two_files(samples: list[Sample]) -> None:
    mixed = replace(samples[3], id="9", image_id="0")
    (problem,) = problems(samples, mixed)
    assert "image id 0 stands for several files" in problem


def test_a_split_to_score_needs_masks(samples: list[Sample]) -> None:
    assert problems([*samples[:2], samples[3]], replace(samples[2], targets=None)) == [
        "no mask is known in split val; give it one, or move the line to a file for --unlabelled"
    ]


def test_one_sentence_for_two_things_is_a_note(samples: list[Sample]) -> None:
    report = check(dataset(samples, replace(samples[0], id="9", sentences=("Cup!", "new"), targets=(box(3),))))
    assert report.problems == ()
    (note,) = report.notes
    assert "'Cup!' is also said of other pixels in record 0" in note.reason
    elsewhere = replace(samples[0], id="9", image_id="7", image=samples[3].image)
    assert not [note for note in check(dataset(samples, elsewhere)).notes if "Cup" in note.reason]


def test_bad_records_of_a_path_are_problems(samples: list[Sample], tmp_path: Path) -> None:
    write_refer(tmp_path / "set", [(sample, None) for sample in samples[:3]])
    (tmp_path / "set" / "images" / "1.png").unlink()
    report = check(tmp_path / "set")
    assert report.total.refs == 2
    (problem,) = report.problems
    assert problem.record == "ref 2" and "no such image" in problem.reason


def test_render(samples: list[Sample]) -> None:
    samples[2] = replace(samples[2], targets=(box(0), box(1), box(0)))
    lines = render(check(dataset(samples)), most=1).splitlines()
    assert lines[0] == "mine"
    table = lines[2:6]
    assert [line.split()[0] for line in table] == ["split", "train", "val", "total"]
    assert len({len(line) for line in table}) == 1
    assert table[1].split()[1:] == ["2", "3", "4", "1", "1", "0", "1"]
    assert "problems: 2" in lines and "  ... and 1 more" in lines and "notes: none" in lines
    assert f"  {samples[2].image}, record 2: an empty mask" in lines


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize("name", ["fashion", "refcoco_micro/refcoco"])
def test_real_sets_are_sound(name: str) -> None:
    report = check(SHARED / name)
    assert report.problems == () and report.total.masks > 0
