from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2l.data.images import load
from l2l.data.read import read
from l2l.data.refer import read_refer, write_refer
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle
from l2l.sample import Sample

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")

SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]  # columns 1-4, rows 1-3


def box(top: int, left: int, bottom: int, right: int, size: tuple[int, int] = (6, 8)) -> Rle:
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return Rle.encode(mask)


def ref(ref_id: int, ann_id: Any, *sentences: str, **others: Any) -> dict[str, Any]:
    said = [{"sent_id": ref_id * 10 + index, "sent": text, "raw": text} for index, text in enumerate(sentences)]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": 1, "split": "train", "sentences": said, **others}


def make(root: Path, refs: object, segmentation: object = (SQUARE,), **image: object) -> Path:
    """A set with one picture of 6 x 8 pixels and the annotations 7 and 8."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(root / "images" / "a.jpg")
    second = {"size": [6, 8], "counts": [0, 6, 42]}  # column 0
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8, **image}],
        "annotations": [
            {"id": 7, "image_id": 1, "iscrowd": 0, "segmentation": segmentation},
            {"id": 8, "image_id": 1, "iscrowd": 1, "segmentation": second},
            {"id": 9, "image_id": 2, "iscrowd": 0, "segmentation": second},
        ],
    }
    (root / "instances.json").write_text(json.dumps(coco))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    return root


def test_polygons_crowds_lists_and_no_target(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    refs = [ref(1, 7, "cup", "the cup"), ref(2, 8, "crowd"), ref(3, [7, 8], "both")]
    refs += [ref(4, [-1], "a"), ref(5, -1, "b"), ref(6, [], "c")]
    first, crowd, both, *none = read_refer(make(tmp_path, refs))
    assert (first.id, first.image_id, first.size, first.split) == ("1", "1", (6, 8), "train")
    assert list(first.pairs()) == [("10", "cup"), ("11", "the cup")]
    assert first.image == str(tmp_path / "images" / "a.jpg")
    square, column = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    square[1:4, 1:5] = column[:, 0] = True
    assert np.array_equal(first.mask(), square)
    assert np.array_equal(crowd.mask(), column)
    assert both.targets == (Rle.encode(square), Rle.encode(column))
    assert [sample.targets for sample in none] == [(), (), ()]


def test_several_polygons_are_one_mask(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    other = [6, 0, 8, 0, 8, 2, 6, 2]
    (sample,) = read_refer(make(tmp_path, [ref(1, 7, "cup")], segmentation=[SQUARE, other]))
    expected = np.zeros((6, 8), bool)
    expected[1:4, 1:5] = expected[:2, 6:] = True
    assert sample.targets == (Rle.encode(expected),)


def test_sentences_fall_back_to_raw(tmp_path: Path) -> None:
    record = ref(1, 8, "x")
    record["sentences"] = [{"sent_id": 1, "sent": "", "raw": "Raw"}, {"sent_id": 2, "raw": "only"}]
    assert read_refer(make(tmp_path, [record]))[0].sentences == ("Raw", "only")


def test_sentence_ids_that_are_not_unique_are_replaced_everywhere(tmp_path: Path) -> None:
    twin = ref(2, 8, "c")
    twin["sentences"][0]["sent_id"] = 10
    samples = read_refer(make(tmp_path, [ref(1, 8, "a", "b"), twin, ref(3, 8, "d")]))
    assert [sample.sentence_ids for sample in samples] == [("1_0", "1_1"), ("2_0",), ("3_0",)]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (ref(1, 8), "empty sentence"),
        (ref(1, 8, " "), "empty sentence"),
        (ref(1, 8, "\ud800"), "surrogates"),
        (ref(1, 99, "a"), "annotation 99"),
        (ref(1, [8, -1], "a"), "annotation -1"),
        (ref(1, None, "a"), "annotation None"),
        (ref(1, 9, "a"), "belongs to image 2"),
        (ref(1, 8, "a", image_id=5), "image 5"),
        (ref(1, 8, "a", sentences=None), "malformed"),
        (ref(1, 8, "a", split=""), "empty"),
        ({"ref_id": 1, "image_id": 1, "sentences": []}, "no ann_id"),
        ({}, "no image_id"),
        (None, "malformed"),
        (ref(5, 8, "a"), "second ref"),
    ],
)
def test_bad_refs_stop_or_are_set_aside(tmp_path: Path, record: Any, why: str) -> None:
    root = make(tmp_path, [ref(5, 8, "good"), record])
    with pytest.raises(InputError, match=why) as caught:
        read_refer(root)
    assert caught.value.file == root / "refs(unc).p"
    bad = BadRecords(skip=True)
    assert [sample.id for sample in read_refer(root, bad=bad)] == ["5"]
    (found,) = bad.found
    assert why in found.reason
    assert found.record == ("record 1" if not record or "ref_id" not in record else f"ref {record['ref_id']}")


@pytest.mark.parametrize(
    "segmentation",
    [[], [[]], [[1, 1, 2, 2]], [[1, 1, 5, 1, 5]], [[1, 1, 5, 1, "x", 4]], [[1, 1, 5, 1, float("nan"), 4]]]
    + [[[1, 1, 1e12, 1, 5, 4]], [SQUARE, [[1]]], "polygon", None, {"size": [6, 8]}, {"size": [6, 8], "counts": [3]}]
    + [{"size": [8, 6], "counts": [0, 6, 42]}],
    ids=repr,
)
def test_bad_masks_are_bad_records(tmp_path: Path, segmentation: object) -> None:
    pytest.importorskip("pycocotools")
    root = make(tmp_path, [ref(1, 7, "a"), ref(2, 8, "b")], segmentation=segmentation)
    bad = BadRecords(skip=True)
    assert [sample.id for sample in read_refer(root, bad=bad)] == ["2"]
    assert [found.record for found in bad.found] == ["ref 1"]


def test_pictures_are_found_where_the_toolkit_puts_them(tmp_path: Path) -> None:
    name = "COCO_train2014_000000000001.jpg"
    root = make(tmp_path / "refcoco", [ref(1, 8, "a", file_name=name.replace(".jpg", "_8.jpg"))], file_name=None)
    with pytest.raises(InputError, match=f"no such image: {name}"):
        read_refer(root)
    for place in ("images/mscoco/images/train2014", "refcoco/images/mscoco/images/train2014", "refcoco", "elsewhere"):
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        given = folder if place == "elsewhere" else None
        assert Path(read_refer(root, images=given)[0].image).samefile(folder / name)
        (folder / name).unlink()


@pytest.mark.parametrize("name", ["../images/a.jpg", "/etc/passwd", "b/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", 3])
def test_pictures_stay_in_their_folder(tmp_path: Path, name: object) -> None:
    with pytest.raises(InputError, match="leads out|no usable file name"):
        read_refer(make(tmp_path, [ref(1, 8, "a")], file_name=name))


def test_which_refs_has_to_be_said(tmp_path: Path) -> None:
    root = make(tmp_path, [ref(1, 8, "unc")])
    (root / "refs(umd).p").write_bytes(pickle.dumps([ref(1, 8, "umd")]))
    with pytest.raises(InputError, match="umd, unc"):
        read_refer(root)
    with pytest.raises(InputError, match="umd, unc"):
        read_refer(root, refs="google")
    assert read_refer(root, refs="umd")[0].sentences == ("umd",)
    with pytest.raises(InputError, match="no refs"):
        read_refer(root / "images")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [], "annotations": 3}', "[" * 10**5, "\udcff"])
def test_a_broken_instances_file_is_an_input_error(tmp_path: Path, content: str) -> None:
    root = make(tmp_path, [ref(1, 8, "a")])
    (root / "instances.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"instances\.json"):
        read_refer(root)


def samples_to_write() -> list[tuple[Sample, np.ndarray | None]]:
    pictures = [np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8) for seed in range(2)]

    def sample(name: str, image_id: str, *targets: Rle, **others: Any) -> Sample:
        said = {"sentences": (f"say {name}", "é"), "sentence_ids": (f"{name}0", f"{name}1")}
        return Sample(id=name, image="", image_id=image_id, size=(6, 8), targets=targets, **said, **others)

    return [
        (sample("1", "30", box(1, 2, 4, 5)), pictures[0]),
        (sample("2", "a/b", box(0, 0, 6, 8), box(0, 0, 1, 1), split="val"), pictures[1]),
        (sample("3", "30"), None),
        (replace(sample("4", "30"), targets=None), None),
    ]


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    written = samples_to_write()
    write_refer(tmp_path, iter(written), name="out")
    back = read_refer(tmp_path, refs="out")
    blank = {"image": "", "provenance": ""}
    assert [replace(sample, **blank) for sample in back] == [sample for sample, _ in written[:3]]
    for sample, picture in zip(back, (written[0][1], written[1][1], written[0][1]), strict=True):
        assert picture is not None and np.array_equal(load(sample.image), picture)
    lines = [json.loads(line) for line in (tmp_path / "unlabelled.jsonl").read_text().splitlines()]
    assert lines[0] == {"image": "images/30.png", "image_id": "30", "expression": "say 4", "id": "40"}
    pairs = read(tmp_path / "unlabelled.jsonl").samples
    assert [(pair.image_id, pair.targets, pair.sentence_ids) for pair in pairs] == [
        ("30", None, (f"4{i}",)) for i in (0, 1)
    ]
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list((tmp_path / "images").iterdir())) == 2


def test_what_is_written_is_coco(tmp_path: Path) -> None:
    write_refer(tmp_path, samples_to_write())
    coco = pytest.importorskip("pycocotools.mask")
    annotation = json.loads((tmp_path / "instances.json").read_text())["annotations"][0]
    assert annotation["bbox"] == [2, 1, 3, 3] == coco.toBbox(annotation["segmentation"]).tolist()
    assert annotation["area"] == 9 == coco.area(annotation["segmentation"])
    assert annotation["image_id"] == 30
    refs = pickle.loads((tmp_path / "refs(l2l).p").read_bytes())
    assert [record["ann_id"] for record in refs] == [1, [2, 3], [-1]]


def test_a_picture_of_another_size_is_refused_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    sample = samples_to_write()[0][0]
    with pytest.raises(InputError, match="picture of"):
        write_refer(tmp_path, [(sample, np.zeros((5, 5, 3), np.uint8))])
    assert not (tmp_path / "refs(l2l).p").exists()


def test_writing_again_leaves_no_stale_pairs(tmp_path: Path) -> None:
    write_refer(tmp_path, samples_to_write())
    write_refer(tmp_path, samples_to_write()[:1])
    assert not (tmp_path / "unlabelled.jsonl").exists()
    assert len(read_refer(tmp_path)) == 1


@needs_shared
def test_real_refcoco() -> None:
    dataset = read(SHARED / "refcoco_micro" / "refcoco")
    sentences = {name: sum(len(s.sentences) for s in dataset.split(name)) for name in dataset.splits()}
    assert sentences == {"val": 36, "testA": 12, "testB": 26}
    assert len(dataset.samples) == 25 and len({sample.image for sample in dataset.samples}) == 9
    for sample in dataset.samples:
        assert sample.mask().any() and load(sample.image).shape[:2] == sample.size
    with pytest.raises(InputError, match="refcoco_micro/refcoco"):
        read(SHARED / "refcoco_micro")


@needs_shared
def test_real_fashion() -> None:
    dataset = read(SHARED / "fashion")
    assert dataset.splits() == {"train": 5207, "val": 675}
    assert len({sample.image_id for sample in dataset.samples}) == 850
    assert sum(len(sample.targets or ()) for sample in dataset.samples) == 5882
    assert sum(len(sample.sentences) for sample in dataset.samples) == 16364
