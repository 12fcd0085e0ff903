"""From the review queue to a data set and to other tools; and labels of shards, which name pictures inside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import l2l
from l2l.cli import main
from l2l.data.images import load
from l2l.data.read import DataSet
from l2l.data.shards import read_shard, shard_files, write_shards
from l2l.errors import InputError
from l2l.exchange.corrected import write_corrected
from l2l.exchange.decisions import CORRECTIONS, apply_decisions, read_decisions
from l2l.exchange.labels import Label, picture_bytes, read_labels
from l2l.rle import Rle

Files = tuple[Path, Path]


@pytest.fixture
def labelled(tmp_path: Path) -> list[Label]:
    """Labels of drawn pictures, in `tmp_path/labels`."""
    (tmp_path / "labels").mkdir()
    lines = [
        {"id": key, "image": one.image, "sentence": text, "score": 0.3,
         "segmentation": Rle.encode(one.mask()).to_coco()}
        for one in l2l.read("scenes", scenes_count=10).samples[:6] for key, text in one.pairs()
    ]  # fmt: skip
    (tmp_path / "labels" / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_labels(tmp_path / "labels")


def decide(folder: Path, *said: tuple[str, str, np.ndarray | None]) -> Path:
    """As `l2l.serving.labels` writes it."""
    folder.mkdir(exist_ok=True)
    with (folder / CORRECTIONS).open("a") as file:
        for key, verdict, mask in said:
            file.write(json.dumps({"id": key, "file_name": None, "sentence": "x", "verdict": verdict,
                                   "mask": None if mask is None else Rle.encode(mask).to_coco()}) + "\n")  # fmt: skip
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_the_last_word_counts(tmp_path: Path, labelled: list[Label]) -> None:
    one, two, three, four = labelled[:4]
    painted = np.zeros(one.size, bool)
    painted[3:9, 5:7] = True
    kept = decide(
        tmp_path / "kept", (one.id, "reject", None), (one.id, "accept", painted), (two.id, "accept", two.mask.decode()),
        (two.id, "open", None), (three.id, "open", None), (three.id, "reject", None),
        (four.id, "accept", painted & False),
    )  # fmt: skip
    with (kept / CORRECTIONS).open("a") as file:
        file.write('{"id": "half a line')  # a server writes it at this moment
    found = {said.id: said for said in read_decisions(kept)}
    assert set(found) == {one.id, three.id, four.id} and found[three.id].rejected and found[one.id].mask is not None
    out = {label.id: label for label in apply_decisions(labelled, found.values(), file=kept)}
    assert set(out) == {label.id for label in labelled} - {three.id}
    assert np.array_equal(out[one.id].mask.decode(), painted) and out[one.id].score == 1
    assert out[four.id].mask.area() == 0 and out[two.id] == two  # the last was taken back: as it was


def test_import_and_export(tmp_path: Path, labelled: list[Label], capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = labelled[:3]
    painted = np.zeros(one.size, bool)
    painted[3:9, 5:7] = True
    kept = decide(tmp_path / "kept", (one.id, "accept", painted), (two.id, "reject", None))
    labels = tmp_path / "labels"
    assert run("import", kept, "--from", "review", "--labels", labels, "--out", tmp_path / "data") == 0
    (sample,) = l2l.read(tmp_path / "data").samples
    assert sample.sentence_ids == (one.id,) and np.array_equal(sample.mask(), painted)
    assert "rejected in review" in (tmp_path / "data" / "rejected.jsonl").read_text()
    rest = [json.loads(line)["id"] for line in (tmp_path / "data" / "unlabelled.jsonl").read_text().splitlines()]
    assert rest == [label.id for label in labelled[2:]]

    assert (
        run("export", labels, "--reviewed", kept, "--to", "coco", "--min-score", 0.5, "--out", tmp_path / "a.json") == 0
    )
    (only,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert only["sentence_id"] == one.id and only["score"] == 1 and only["bbox"] == [5, 3, 2, 6]
    assert "1 rejected ones left out" in capsys.readouterr().out
    assert run("rank", labels, "--reviewed", kept, "--next", 99) == 0
    ranked = (labels / "ranking.csv").read_text()
    assert f"\n{three.id}," in ranked and f"\n{one.id}," not in ranked and f"\n{two.id}," not in ranked


def test_a_picture_of_val_stays_there(tmp_path: Path, labelled: list[Label]) -> None:
    """Else the next run would be scored on a picture that it learned from."""
    samples = l2l.read("scenes", scenes_count=10).samples
    image = labelled[0].image
    mine = [label.id for label in labelled if label.image == image]
    first = next(one for one in samples if one.image == image)
    keys = tuple(f"k{at}" for at in range(len(first.sentences)))
    known = DataSet("known", (replace(first, id="k", sentence_ids=keys, split="val"),))
    kept = decide(tmp_path / "kept", (mine[0], "accept", labelled[0].mask.decode()))
    found = write_corrected(kept, read_decisions(kept), labelled, tmp_path / "data", also=known)
    assert (found.corrected, found.rejected, found.unlabelled) == (1, 0, len(labelled) - 1)
    back = l2l.read(tmp_path / "data").samples
    assert {one.split for one in back} == {"val"}
    assert {one.id: one.chosen for one in back} == {"k": False, mine[0]: True}
    rest = [json.loads(line)["id"] for line in (tmp_path / "data" / "unlabelled.jsonl").read_text().splitlines()]
    assert rest and set(rest).isdisjoint(mine)
    left = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert [line["id"] for line in left] == mine[1:] and all("split val" in line["reason"] for line in left)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a"}', "no verdict"), ('{"id": "a", "verdict": "maybe"}', "neither accept nor reject nor open"),
        ('{"id": "a", "verdict": "accept", "mask": null}', ""), ("[]", ""), ("{", ""),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / CORRECTIONS).write_text(line + "\n")
    with pytest.raises(InputError, match=f"line 1.*{said}"):
        list(read_decisions(tmp_path))


def test_mistakes(tmp_path: Path, labelled: list[Label], capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels"
    assert run("export", labels, "--reviewed", tmp_path / "no", "--to", "coco", "--out", tmp_path / "a.json") == 2
    assert "l2l serve --labels" in capsys.readouterr().err
    kept = decide(tmp_path / "kept", (labelled[0].id, "accept", np.ones((2, 3), bool)))
    assert run("export", labels, "--reviewed", kept, "--to", "coco", "--out", tmp_path / "a.json") == 2
    assert "decided on other labels" in capsys.readouterr().err and not (tmp_path / "a.json").exists()


@pytest.fixture(params=["wds", "parquet"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A folder of shards, and labels as `l2l label --shards` names them."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    shards, labels = tmp_path / "shards", tmp_path / "labels"
    write_shards(l2l.read("scenes", scenes_count=10), shards, format=request.param, per_shard=12)
    labels.mkdir()
    for shard in shard_files(shards):
        lines: list[dict[str, Any]] = [
            {"id": key, "image": sample.image, "sentence": text, "score": 0.5,
             "segmentation": Rle.encode(sample.mask()).to_coco()}
            for sample, _ in read_shard(shard) for key, text in sample.pairs()
        ]  # fmt: skip
        (labels / f"labels-{shard.stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return shards, labels


def test_labels_of_shards_are_read(sharded: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards, folder = sharded
    found = read_labels(folder, images=shards)
    samples = {key: one for one in l2l.read("scenes", scenes_count=10).samples for key in one.sentence_ids}
    assert len(shard_files(shards)) > 2 and {one.id for one in found} == set(samples)
    assert all(one.file_name.split("/")[0] in {file.name for file in shard_files(shards)} for one in found)
    assert [one.id for one in found] == [one.id for one in read_labels(folder)]  # names need no shards
    import io

    from PIL import Image

    from l2l.serving.review import Queue, picture_of

    for one in found[::7]:
        drawn = load(samples[one.id].image)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture_bytes(one))).convert("RGB")), drawn)
        assert picture_of(Queue([one]).get("0"), 10**6).size == one.size
    assert run("rank", folder) == 0
    assert run("export", folder, "--to", "coco", "--out", tmp_path / "a.json") == 0  # no picture is needed
    tasks = tmp_path / "tasks"
    assert run("export", folder, "--images", shards, "--to", "label-studio", "--out", tasks) == 0
    assert len(list((tasks / "images").glob("*/*.png"))) == 10
    capsys.readouterr()
    assert run("export", folder, "--to", "label-studio", "--out", tmp_path / "other") == 2
    assert "--images says where the shards are" in capsys.readouterr().err


def test_other_shards_are_noticed(sharded: Files, tmp_path: Path) -> None:
    shards, folder = sharded
    first, second, *_ = shard_files(shards)
    label = read_labels(folder, images=shards)[0]
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match="no such picture in its shard"):
        picture_bytes(label)
    first.unlink()
    with pytest.raises(InputError, match="no such shard"):
        picture_bytes(label)
    (folder / f"labels-{first.stem}-copy.jsonl").write_bytes((folder / f"labels-{first.stem}.jsonl").read_bytes())
    with pytest.raises(InputError, match="a second label"):
        read_labels(folder)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels.jsonl.*it is what `l2l label` writes"):
        read_labels(tmp_path)
