from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2l.cli import main
from l2l.data.check import check
from l2l.data.grefer import read_grefer
from l2l.data.read import read
from l2l.errors import BadRecords, InputError

COLUMNS = {7: 0, 8: 1, 9: 5}
"""Annotation -> the column it covers, of a picture of 6 x 8 pixels."""


def ref(ref_id: int, ann_id: Any, *sentences: str, **others: Any) -> dict[str, Any]:
    said = [{"sent_id": ref_id * 10 + index, "sent": text, "raw": text} for index, text in enumerate(sentences)]
    return {"ref_id": ref_id, "ann_id": ann_id, "image_id": 1, "split": "train", "sentences": said, **others}


def make(root: Path, refs: object, name: str = "unc") -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(root / "images" / "a.jpg")
    annotations = [
        {"id": key, "image_id": 1, "iscrowd": 0,
         "segmentation": {"size": [6, 8], "counts": [6 * column, 6, 42 - 6 * column]}}
        for key, column in COLUMNS.items()
    ]  # fmt: skip
    images = [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (root / f"grefs({name}).json").write_text(json.dumps(refs))
    return root


def columns(*keys: int) -> np.ndarray:
    mask = np.zeros((6, 8), bool)
    mask[:, [COLUMNS[key] for key in keys]] = True
    return mask


def test_one_several_and_no_target(tmp_path: Path) -> None:
    refs = [ref(1, [7], "cup", "the cup", no_target=False), ref(2, [7, 9], "both", no_target=False),
            ref(3, [-1], "a dog", no_target=True, category_id=[-1]), ref(4, [], "a cat", no_target=True),
            ref(5, [7, 8, 9], "all"), ref(6, [-1], "no flag"), ref(7, 8, "no list")]  # fmt: skip
    dataset = read(make(tmp_path / "grefcoco", refs))
    assert dataset.name == "grefcoco" and dataset.bad == ()
    one, both, dog, cat, every, bare, single = dataset.samples
    assert list(one.pairs()) == [("10", "cup"), ("11", "the cup")]
    assert (one.id, one.image_id, one.size, one.split) == ("1", "1", (6, 8), "train")
    assert one.image == str(tmp_path / "grefcoco" / "images" / "a.jpg")
    for sample, keys in ((one, (7,)), (both, (7, 9)), (every, (7, 8, 9)), (single, (8,))):
        assert len(sample.targets or ()) == len(keys)
        assert np.array_equal(sample.mask(), columns(*keys))  # the union
    for nothing in (dog, cat, bare):
        assert nothing.targets == () and not nothing.mask().any()
    report = check(dataset)
    assert report.problems == () and (report.total.no_target, report.total.several_targets) == (3, 2)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (ref(1, [7]), "empty sentence"),
        (ref(1, [7], " "), "empty sentence"),
        (ref(1, [7], "a", no_target=True), "no_target is True, but ann_id names 1"),
        (ref(1, [-1], "a", no_target=False), "no_target is False, but ann_id names 0"),
        (ref(1, [7, -1], "a"), "annotation -1"),
        (ref(1, [7, 99], "a"), "annotation 99"),
        (ref(1, None, "a"), "annotation None"),
        (ref(1, [7], "a", image_id=2), "image 2"),
        (ref(1, [7], "a", sentences=None), "malformed"),
        ({"ref_id": 1, "image_id": 1, "sentences": []}, "no ann_id"),
        (None, "malformed"),
        ([], "malformed"),
        (ref(5, [7], "a"), "second ref"),
    ],
)
def test_bad_refs_stop_or_are_set_aside(tmp_path: Path, record: Any, why: str) -> None:
    root = make(tmp_path, [ref(5, [-1], "good"), record])
    with pytest.raises(InputError, match=why) as caught:
        read_grefer(root)
    assert caught.value.file == root / "grefs(unc).json"
    bad = BadRecords(skip=True)
    assert [sample.id for sample in read_grefer(root, bad=bad)] == ["5"]
    (found,) = bad.found
    assert why in found.reason
    assert found.record == (f"ref {record['ref_id']}" if isinstance(record, dict) else "record 1")
    dataset = read(root, skip_bad=True)
    assert len(dataset.samples) == len(dataset.bad) == 1


@pytest.mark.parametrize("content", ["", "{}", "3", "[" * 10**5, "[1", "\udcff"])
def test_a_broken_file_is_an_input_error(tmp_path: Path, content: str) -> None:
    root = make(tmp_path, [])
    (root / "grefs(unc).json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"grefs\(unc\)\.json"):
        read(root)


def test_which_refs_has_to_be_said(tmp_path: Path) -> None:
    root = make(make(tmp_path / "set", [ref(1, [7], "unc")]), [ref(1, [8], "other")], "other")
    with pytest.raises(InputError, match="other, unc"):
        read(root)
    with pytest.raises(InputError, match="other, unc"):
        read(root, refs="google")
    dataset = read(root, refs="other")
    assert dataset.name == "set_other" and dataset.samples[0].sentences == ("other",)
    with pytest.raises(InputError, match=str(root)):  # the folder above says where the sets are
        read(tmp_path)
    with pytest.raises(InputError, match="no grefs"):
        read_grefer(tmp_path)


def test_refer_and_grefer_in_one_folder_are_refused(tmp_path: Path) -> None:
    root = make(tmp_path, [ref(1, [7], "a")])
    (root / "refs(unc).p").write_bytes(b"")
    with pytest.raises(InputError, match="a folder of its own"):
        read(root)


def test_a_missing_instances_file(tmp_path: Path) -> None:
    root = make(tmp_path, [ref(1, [7], "a")])
    (root / "instances.json").unlink()
    with pytest.raises(InputError, match=r"instances\.json: no such file"):
        read(root)


def test_the_command_line_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "grefcoco", [ref(1, [7, 8], "two"), ref(2, [-1], "none"), ref(3, [7])])
    assert main(["data", "check", str(root)]) == 1
    assert "ref 3: an empty sentence" in capsys.readouterr().out
    assert main(["data", "check", str(root), "--skip-bad"]) == 0
    out = str(tmp_path / "split.json")
    assert main(["data", "split", str(root), "--rate", "1", "--skip-bad", "--out", out]) == 0
