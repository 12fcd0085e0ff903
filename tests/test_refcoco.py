from __future__ import annotations

import json
import pickle
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from l2l.cli import main, parser
from l2l.commands import configure
from l2l.data.refcoco import (
    PICTURES,
    RATES,
    RECIPES,
    Counts,
    differences,
    guide,
    labelled_images,
    look,
)
from l2l.data.splits import Split
from l2l.errors import InputError

SPLITS = ("train", "train", "train", "val")


def make(root: Path, *, images: int = 40, pictures: str = PICTURES[0], file: str = "refs(unc).p") -> Path:
    """`refcoco/` with two refs of two sentences on each image; the last quarter of the images is of split val."""
    rows, annotations, refs = [], [], []
    folder = root / pictures
    folder.mkdir(parents=True)
    for image in range(images):
        name = f"COCO_train2014_{image:012d}.jpg"
        Image.new("RGB", (8, 6), (5 * image, 0, 0)).save(folder / name)
        rows.append({"id": image, "file_name": name, "height": 6, "width": 8})
        for ref in (2 * image, 2 * image + 1):
            mask = {"size": [6, 8], "counts": [0, 6 + ref % 2, 42 - ref % 2]}
            annotations.append({"id": ref, "image_id": image, "iscrowd": 0, "segmentation": mask})
            sentences = [{"sent_id": 2 * ref + at, "sent": f"thing {ref} {at}"} for at in (0, 1)]
            split = SPLITS[4 * image // images]
            refs.append({"ref_id": ref, "ann_id": ref, "image_id": image, "split": split, "sentences": sentences})
    (root / "refcoco").mkdir()
    (root / "refcoco" / "instances.json").write_text(json.dumps({"images": rows, "annotations": annotations}))
    (root / "refcoco" / file).write_bytes(pickle.dumps(refs, protocol=2))
    return root


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make` writes is the published RefCOCO."""
    known = {"train": Counts(30, 60, 120), "val": Counts(10, 20, 40)}
    monkeypatch.setitem(RECIPES, "refcoco_unc", replace(RECIPES["refcoco_unc"], known=known, notes=()))


def total(name: str, what: str) -> int:
    return sum(getattr(counts, what) for counts in RECIPES[name].known.values())


def test_the_known_counts_add_up_to_the_published_totals() -> None:
    totals = {
        "refcoco_unc": (19_994, 50_000, 142_210), "refcoco+_unc": (19_992, 49_856, 141_564),
        "refcocog_umd": (25_799, 49_822, 95_010),
    }  # fmt: skip
    for name, numbers in totals.items():
        assert tuple(total(name, what) for what in ("images", "refs", "sentences")) == numbers
    # the same refs and sentences in another partition; more images than there are, for splits share them
    assert (total("refcoco_google", "refs"), total("refcocog_google", "refs")) == (50_000, 49_822)
    assert total("refcocog_google", "sentences") == 95_010
    assert total("refcoco_google", "images") > 19_994 and total("refcocog_google", "images") > 25_799


def test_the_known_splits_of_refcoco() -> None:
    assert [labelled_images(rate, 16_994) for rate in RATES] == [16, 169, 849, 1_699]
    assert labelled_images(0.29, 100) == 29  # in floats, 28


@pytest.mark.parametrize("name", RECIPES)
def test_without_the_data_it_says_what_to_get(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "recipe", name, "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    recipe = RECIPES[name]
    missing = out[out.index("missing:") :].splitlines()[1:4]
    places = [f"{recipe.folder}/{recipe.file}", f"{recipe.folder}/instances.json", PICTURES[0]]
    assert all(str(tmp_path / place) in line for place, line in zip(places, missing, strict=True))
    assert "train2014.zip" in out and "published counts:" in out and "differences" not in out
    assert ("nobody hosts it any more" in out) == (name != "grefcoco_unc")
    assert ("not known here" in out) == (name in ("refcoco_google", "grefcoco_unc"))
    assert ("one image may be in several splits" in out) == name.endswith("google")
    assert ("432 masks and 1,222 sentences" in out) == (name == "refcoco_unc")
    assert all(len(line) <= 120 for line in out.splitlines() if not line.startswith("  "))


def test_a_whole_set_and_its_commands(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "a b")
    assert main(["data", "recipe", "refcoco_unc", "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "all files are there" in out and "differences: none\n" in out and "missing" not in out
    assert " 10.0%       3 of 30 images" in out and "(a rate of 0.01 yields no image here)" in out
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  l2l ")]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        args = parser().parse_args(command[1:])
        if command[1:3] in (["data", "check"], ["data", "split"]):
            assert main(command[1:]) == 0
        elif command[1] == "train":
            config = configure(args).data
            split = Split.load(Path(config.split_file))
            assert len(split.images) == labelled_images(split.rate, 30)
            assert (config.data, config.refs, config.height) == (str(root / "refcoco"), "unc", 480)
    assert [command[1] for command in commands[2:]] == ["data", "train", "data", "train", "evaluate"]


def test_the_last_place_for_pictures_is_named_in_the_commands(small: None, tmp_path: Path) -> None:
    text, whole = guide("refcoco_unc", make(tmp_path, pictures=PICTURES[-1]))
    assert whole
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  l2l data ")]
    assert all(command[command.index("--images") + 1] == str(tmp_path / "train2014") for command in commands)
    assert main(commands[0][1:]) == 0


def test_each_missing_picture_is_named(small: None, tmp_path: Path) -> None:
    root = make(tmp_path)
    gone = [root / PICTURES[0] / f"COCO_train2014_{image:012d}.jpg" for image in (3, 17)]
    for path in gone:
        path.unlink()
    found = look(RECIPES["refcoco_unc"], root)
    assert found.missing == tuple(map(str, gone))
    assert differences(RECIPES["refcoco_unc"], found) == []  # counts are of sentences and refs, not of files
    assert not guide("refcoco_unc", root)[1]
    for path in (root / PICTURES[0]).iterdir():
        path.unlink()
    (line,) = look(RECIPES["refcoco_unc"], root).missing
    assert "none of the 40 pictures" in line


def change(root: Path, edit: Any) -> None:
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(edit(refs)))


def test_each_difference_is_named(small: None, tmp_path: Path) -> None:
    root = make(tmp_path)
    odd = {"ref_id": 99, "ann_id": 1, "image_id": 0, "split": "extra", "sentences": []}
    change(root, lambda refs: [*refs[1:], odd, {"split": "val"}, None])
    found = look(RECIPES["refcoco_unc"], root)
    assert (found.malformed, found.shared) == (2, 1)
    assert differences(RECIPES["refcoco_unc"], found) == [
        "train: refs 59, the published set has 60",
        "train: sentences 118, the published set has 120",
        "extra: a split that the published set does not have",
    ]
    text, whole = guide("refcoco_unc", root)
    assert not whole and "differences: 3" in text
    assert "malformed records, not counted: 2" in text and "images in more than one split: 1" in text
    change(root, lambda refs: [])
    assert len(differences(RECIPES["refcoco_unc"], look(RECIPES["refcoco_unc"], root))) == 6


def test_an_image_that_instances_lacks_and_a_split_that_is_gone(small: None, tmp_path: Path) -> None:
    root = make(tmp_path)
    change(root, lambda refs: [{**refs[-1], "image_id": 77}])
    text, whole = guide("refcoco_unc", root)
    assert not whole and "instances.json: nothing about image 77" in text
    assert "train: images 0, the published set has 30" in text
    assert "there is no split train here" in text and "l2l train" not in text


def test_mistakes(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "recipe", "--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.split())
    assert "examples: l2l data recipe" in help_text and all(name in help_text for name in RECIPES)
    assert main(["data", "recipe", "refcoco"]) == 2
    assert "refcocog_google" in capsys.readouterr().err
    root = make(tmp_path)
    with pytest.raises(InputError, match="own folder"):
        guide("refcoco_unc", root / "refcoco")
    for content in ("[]", "{}", '{"images": [3]}', "{"):
        (root / "refcoco" / "instances.json").write_text(content)
        with pytest.raises(InputError, match=r"instances\.json"):
            guide("refcoco_unc", root)
    change(root, lambda refs: {})
    with pytest.raises(InputError, match="list of refs"):
        guide("refcoco_unc", root)


def test_a_part_of_real_refcoco(shared_data: Path) -> None:
    found = look(RECIPES["refcoco_unc"], shared_data / "refcoco_micro")
    assert found.missing == () and found.shared == found.malformed == 0
    assert found.counts == {"val": Counts(4, 13, 36), "testA": Counts(1, 4, 12), "testB": Counts(4, 8, 26)}
    assert len(differences(RECIPES["refcoco_unc"], found)) == 12
