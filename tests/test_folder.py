from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2l.data import folder
from l2l.data.folder import read_folder, read_pairs
from l2l.data.read import read
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle

SHARED = Path(__file__).parents[2] / "shared" / "data"
MASK = np.zeros((4, 6), bool)
MASK[1:3, 2:5] = True


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "img" / "a.png")
    Image.fromarray(MASK.astype(np.uint8) * 255).save(tmp_path / "m.png")
    return tmp_path


def test_every_way_to_say_it(root: Path) -> None:
    rle = Rle.encode(MASK)
    write(
        root / "metadata.jsonl",
        {"file_name": "img/a.png", "sentences": ["a", "b"], "mask": "m.png", "split": "val", "id": 7},
        {"image": "./img/a.png", "sentence": "c", "mask": rle.to_coco()},
        "",
        {"file_name": "img/a.png", "expression": "d", "masks": ["m.png", rle.to_coco()]},
        {"file_name": "img/a.png", "text": "e", "masks": []},
        {"file_name": "img/a.png", "text": "f", "mask": None, "chosen": True},
        {"file_name": "img/a.png", "text": "g", "image_id": 12},
    )
    samples = read_folder(root)
    assert [sample.targets for sample in samples] == [(rle,), (rle,), (rle, rle), (), None, None]
    assert [sample.sentences for sample in samples] == [("a", "b"), ("c",), ("d",), ("e",), ("f",), ("g",)]
    assert [sample.id for sample in samples] == ["7", "r2", "r4", "r5", "r6", "r7"]
    assert samples[0].sentence_ids == ("7_0", "7_1")
    assert [sample.chosen for sample in samples] == [False] * 4 + [True, False]
    assert [sample.split for sample in samples] == ["val"] + ["train"] * 5
    assert [sample.image_id for sample in samples] == ["img/a.png"] * 5 + ["12"]
    assert {sample.image for sample in samples} == {str(root / "img" / "a.png")}
    assert read(root).samples == read(root / "metadata.jsonl").samples == tuple(samples)


@pytest.mark.parametrize("mode", ["0/1", "0/255", "bits", "RGB", "RGBA", "palette", "16 bit"])
def test_not_zero_is_the_target(root: Path, mode: str) -> None:
    values = MASK.astype(np.uint8)
    picture = {
        "0/1": Image.fromarray(values),
        "0/255": Image.fromarray(values * 255),
        "bits": Image.fromarray(MASK),
        "RGB": Image.fromarray(np.dstack([values * 0, values * 9, values * 0])),
        "RGBA": Image.fromarray(np.dstack([values * 255, values * 0, values * 0, values * 0 + 255])),
        "palette": Image.fromarray(values).convert("P"),
        "16 bit": Image.fromarray(values.astype(np.uint16) * 256),
    }[mode]
    picture.save(root / "m.png")
    write(root / "metadata.jsonl", {"file_name": "img/a.png", "text": "a", "mask": "m.png"})
    assert np.array_equal(read_folder(root)[0].mask(), MASK)


def bad_lines() -> list[tuple[Any, str]]:
    good = {"file_name": "img/a.png", "text": "a"}
    return [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        ("[1]", "not a JSON object"),
        ({"text": "a"}, "no usable file name"),
        ({**good, "file_name": "../a.png"}, "leads out"),
        ({**good, "file_name": "/etc/hostname"}, "leads out"),
        ({**good, "file_name": "img/../../a.png"}, "leads out"),
        ({**good, "file_name": "none.png"}, "no such image"),
        ({**good, "file_name": "m.txt"}, "unreadable"),
        ({"file_name": "img/a.png"}, "empty sentence"),
        ({**good, "text": "  "}, "empty sentence"),
        ({**good, "text": 5}, "empty sentence"),
        ({**good, "sentences": []}, "empty sentence"),
        ({**good, "sentences": "a"}, "list"),
        ({**good, "text": "\ud800"}, "surrogates"),
        ({**good, "mask": "../m.png"}, "leads out"),
        ({**good, "mask": "none.png"}, "no such image"),
        ({**good, "mask": "img/m8.png"}, "a mask of 4 x 8 on an image of 4 x 6"),
        ({**good, "mask": "img/m.jpg"}, "JPEG"),
        ({**good, "mask": {"size": [4, 6], "counts": "0"}}, "do not fill"),
        ({**good, "mask": 3}, "a mask is"),
        ({**good, "masks": "m.png"}, "list"),
        ({**good, "masks": [], "mask": "m.png"}, "both"),
        ({**good, "split": None}, "empty"),
        ({**good, "id": "first"}, "second record"),
    ]


@pytest.mark.parametrize(("line", "why"), bad_lines(), ids=[why for _, why in bad_lines()])
def test_bad_lines_stop_or_are_set_aside(root: Path, line: Any, why: str) -> None:
    Image.new("L", (8, 4)).save(root / "img" / "m8.png")
    Image.new("L", (6, 4)).save(root / "img" / "m.jpg")
    (root / "m.txt").write_text("no picture")
    good = {"file_name": "img/a.png", "text": "good"}
    path = write(root / "metadata.jsonl", {**good, "id": "first"}, line, {**good, "id": "last"})
    with pytest.raises(InputError, match=why) as caught:
        read_folder(root)
    assert (caught.value.file, caught.value.record) == (path, "line 2")
    bad = BadRecords(skip=True)
    assert [sample.id for sample in read_folder(root, bad=bad)] == ["first", "last"]
    assert [found.record for found in bad.found] == ["line 2"]


def test_bytes_that_are_no_text(root: Path) -> None:
    (root / "metadata.jsonl").write_bytes(
        b'\xef\xbb\xbf{"file_name": "img/a.png", "text": "a"}\r\n{"text": "\xff\xfe"}\r\n'
    )
    bad = BadRecords(skip=True)
    assert [sample.sentences for sample in read_folder(root, bad=bad)] == [("a",)]
    assert [found.record for found in bad.found] == ["line 2"]


def test_pairs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def size(image: str) -> tuple[int, int]:
        asked.append(image)
        return 4, 6

    monkeypatch.setattr(folder, "size", size)
    lines = [{"image": "a.png", "expression": "x", "mask": "m.png", "split": "val"}, {"image": "a.png", "text": "y"}]
    path = write(root / "pairs.jsonl", *lines, {"image": "a.png", "text": "y", "id": 5})
    samples = read_pairs(path, images=root / "img")
    assert asked == [str(root / "img" / "a.png")]
    assert [(s.id, s.sentence_ids, s.sentences) for s in samples] == [
        ("u1", ("u1",), ("x",)),
        ("u2", ("u2",), ("y",)),
        ("5", ("5",), ("y",)),
    ]
    assert all(s.targets is None and s.split == "train" and s.image_id == "a.png" for s in samples)


def test_read_says_what_it_looked_for(root: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        read(root)
    with pytest.raises(InputError, match="no such file or folder"):
        read(root / "none")
    with pytest.raises(InputError, match=r"\.jsonl"):
        read(root / "m.png")
    write(root / "metadata.jsonl", {"file_name": "none.png", "text": "a"})
    with pytest.raises(InputError, match="1 set aside, the first because: no such image"):
        read(root, skip_bad=True)
    with pytest.raises(InputError, match="refs=unc"):
        read(root, refs="unc")
    with pytest.raises(InputError, match="no such file"):
        read_folder(root / "img")


def test_splits_of_a_data_set(root: Path) -> None:
    names = ["zebra", "testB", "val", "train", "val"]
    write(root / "metadata.jsonl", *({"file_name": "img/a.png", "text": "a", "split": name} for name in names))
    dataset = read(root)
    assert list(dataset.splits().items()) == [("train", 1), ("val", 2), ("testB", 1), ("zebra", 1)]
    assert [sample.id for sample in dataset.split("val")] == ["r3", "r5"]
    with pytest.raises(InputError, match="train, val, testB, zebra"):
        dataset.split("test")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")
def test_real_pairs() -> None:
    samples = read(SHARED / "fashion" / "unlabelled.jsonl").samples
    assert len(samples) == 8404 and len({sample.image for sample in samples}) == 1094
    assert all(sample.targets is None for sample in samples)
