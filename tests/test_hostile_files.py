"""Files from strangers, made to break, to climb out or to fill the memory; and text of every kind, kept whole."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from l2l.data.folder import read_folder
from l2l.data.images import MAX_PIXELS
from l2l.data.pickles import load_plain
from l2l.data.refer import plain_path, read_json, read_refer
from l2l.data.shards import read_shard, shard_files
from l2l.data.splits import Split
from l2l.errors import BadRecords, InputError
from l2l.exchange.coco import read_coco, write_coco
from l2l.exchange.corrected import write_corrected
from l2l.exchange.cvat import read_cvat, write_cvat
from l2l.exchange.label_studio import read_label_studio, write_label_studio
from l2l.exchange.labels import picture_bytes, place_pictures, read_labels
from l2l.exchange.png import read_png, write_png
from l2l.model.text import Vocabulary
from l2l.priors.precomputed import Precomputed
from l2l.priors.prior import Prior
from l2l.priors.store import PriorStore
from l2l.rle import LARGEST, Rle
from l2l.training.checkpoint import load_tensors, save_tensors, unpack_optimiser

CORPUS = Path(__file__).parent / "corpus"
DEEP = 100_000
SENTENCES = (
    "a" * 100_000, "left shoe\x00\x1b]0;owned\x07\x1b[2J", "الكأس الأحمر على اليسار", "左边的红色杯子",
    "👩‍👩‍👧‍👦 🏳️‍🌈", "\u202eshoe\u202c",
    "<script>alert(1)</script><img src=x onerror=alert(2)>", "=cmd|'/c calc'!A1", "a\u2028b\u2029c\u0085d",
    "' OR 1=1 --",
    "{{ 7 * 7 }} ${7*7} %s {0}",
)  # fmt: skip
CLIMBING = (
    "../a.png", "a/../../b.png", "/etc/hostname", "//server/share/a.png", "C:\\a.png", "C:a.png", "..\\a.png",
    "\\\\server\\share\\a.png", "a\0.png", "",
)  # fmt: skip
MASK = Rle.encode(np.eye(4, 6) > 0)


def within(seconds: float, use: Callable[[], object]) -> None:
    """It is refused, in that much time of the processor."""
    began = time.process_time()
    with pytest.raises(InputError) as caught:
        use()
    assert time.process_time() - began < seconds
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


def refer(root: Path, ref: dict[str, Any], *, image: Any = None, segmentation: Any = None) -> Path:
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (6, 4)).save(root / "images" / "a.png")
    row = {"id": 1, "file_name": "a.png", "height": 4, "width": 6, **(image or {})}
    one = {"id": 1, "segmentation": segmentation or MASK.to_coco()}
    (root / "instances.json").write_text(json.dumps({"images": [row], "annotations": [one]}))
    whole = {"ref_id": 1, "image_id": 1, "ann_id": 1, "sentences": [{"sent_id": 1, "sent": "it"}]}
    (root / "refs(x).p").write_bytes(pickle.dumps([whole | ref], protocol=2))
    return root


# --- pickles and REFER sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CORPUS / "pickle").iterdir()), ids=lambda path: path.stem)
def test_pickles_made_to_harm(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    within(5, lambda: load_plain(path))
    assert not list(tmp_path.iterdir())  # nothing was called


@pytest.mark.parametrize("key", ["ref_id", "image_id", "ann_id", "split", "file_name", "sentences"])
def test_a_list_that_holds_itself_many_times_is_not_written_out(key: str, tmp_path: Path) -> None:
    shared: list[Any] = []
    for _ in range(28):
        shared = [shared, shared]
    within(5, lambda: read_refer(refer(tmp_path, {key: shared})))


def test_few_points_that_span_gigabytes(tmp_path: Path) -> None:
    large = {"height": 10_000, "width": 10_000}
    within(5, lambda: read_refer(refer(tmp_path, {}, image=large, segmentation=[[0, 0, 20_000, 20_000] * 500])))
    within(5, lambda: read_refer(refer(tmp_path, {}, image=large, segmentation=[[0, 0, 20_000, 0, 9, 20_000]] * 5000)))
    huge = {"height": 10**9, "width": 10**9}
    within(5, lambda: read_refer(refer(tmp_path, {}, image=huge, segmentation=[[0, 0, 3, 0, 3, 3]])))


@pytest.mark.parametrize("size", [[10**9, 10**9], [2**15, 2**16], [-4, -6], [0, 0], [4], None, [4.0, 6.0], ["4", "6"]])
@pytest.mark.parametrize("counts", [[24], [10**18], [2**63, -1], [], "", "\ud800", b"\xff", "o" * 1000, None, [True]])
def test_rle_that_does_not_fit(size: Any, counts: Any) -> None:
    within(1, lambda: Rle.from_coco({"size": size, "counts": counts}))
    assert LARGEST == MAX_PIXELS


# --- JSON without a bottom --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[" * DEEP + "]" * DEEP], ids=["list", "dict", "whole"])
def test_json_without_a_bottom(text: str, tmp_path: Path) -> None:
    for name in ("metadata.jsonl", "labels.jsonl", "priors.jsonl", "a.json", "shards.json", "grefs(x).json"):
        (tmp_path / name).write_text(text)
    (tmp_path / "a.tar").write_bytes(b"x")
    readers: list[Callable[[], object]] = [
        lambda: read_json(tmp_path / "a.json"), lambda: read_folder(tmp_path), lambda: read_labels(tmp_path),
        lambda: Precomputed(tmp_path / "priors.jsonl"), lambda: list(read_coco(tmp_path / "a.json")),
        lambda: list(read_label_studio(tmp_path / "a.json")), lambda: Split.load(tmp_path / "a.json"),
        lambda: shard_files(tmp_path),
    ]  # fmt: skip
    for reader in readers:
        within(5, reader)
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {})
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "b.safetensors", metadata={"l2l": text})
    within(5, lambda: load_tensors(tmp_path / "b.safetensors"))


# --- checkpoints, prior stores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((CORPUS / "checkpoint").iterdir()), ids=lambda path: path.stem)
def test_checkpoints_with_a_hostile_head(path: Path) -> None:
    within(5, lambda: load_tensors(path))


def test_an_optimiser_of_another_model() -> None:
    layer = torch.nn.Linear(2, 2, bias=False)
    optimiser = torch.optim.AdamW(layer.parameters())
    names = {layer.weight: "weight"}
    wrong = {"o.weight.step": torch.tensor(1.0), "o.weight.exp_avg": torch.ones(3)}
    within(5, lambda: unpack_optimiser(optimiser, names, "o.", wrong))


@pytest.mark.parametrize("path", sorted((CORPUS / "store").iterdir()), ids=lambda path: path.stem)
@pytest.mark.parametrize("create", [False, True])
def test_prior_stores_of_strangers(path: Path, create: bool, tmp_path: Path) -> None:
    (tmp_path / "priors.sqlite").write_bytes(path.read_bytes())

    def use() -> None:
        store = PriorStore(tmp_path, create=create)
        store.about(), store.get(["k"])

    within(5, use)


@pytest.mark.parametrize("name", ["a?mode=rwc", "a#b", "a%41", "a b"])
def test_a_store_is_where_its_folder_is(name: str, tmp_path: Path) -> None:
    store = PriorStore(tmp_path / name, create=True)
    store.put([("k", Prior(note="here"))])
    store.close()
    assert PriorStore(tmp_path / name).get(["k"])["k"].note == "here"
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- paths that climb out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLIMBING)
def test_paths_that_climb_out(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    for folder in (inside, tmp_path):
        Image.new("RGB", (6, 4)).save(folder / "a.png")
        Image.new("RGB", (6, 4)).save(folder / "b.png")
    with pytest.raises(InputError):
        plain_path(name)
    for line in ({"file_name": name}, {"file_name": "a.png", "mask": name}):
        (inside / "metadata.jsonl").write_text(json.dumps({"sentence": "it", **line}))
        with pytest.raises(InputError):
            read_folder(inside)
    if name:
        with pytest.raises(InputError):
            read_refer(refer(inside, {}, image={"file_name": name}))
    with pytest.raises(InputError):
        place_pictures({name: str(inside / "a.png")}, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.png"))


def test_a_tar_names_nothing_outside() -> None:
    bad = BadRecords(skip=True)
    content = (CORPUS / "tar" / "names-that-climb-out.tar").read_bytes()
    assert not list(read_shard(Path("a.tar"), content=content, bad=bad))
    assert "leads out of its shard" in bad.found[0].reason
    for name in ("size-that-walks-in-circles", "sparse-of-two-terabytes", "pax-header-of-digits", "links"):
        bad, began = BadRecords(skip=True), time.process_time()
        assert not list(read_shard(Path("a.tar"), content=(CORPUS / "tar" / f"{name}.tar").read_bytes(), bad=bad))
        assert bad.found and time.process_time() - began < 1


def label_folder(root: Path, *lines: dict[str, Any]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4)).save(root / "a.png")
    whole = {"id": "a", "image": str(root / "a.png"), "sentence": "it", "score": 0.5, "segmentation": MASK.to_coco()}
    (root / "labels.jsonl").write_text("".join(json.dumps(whole | line) + "\n" for line in lines))
    return root


def test_labels_of_strangers_name_no_file_but_pictures(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("a key")
    for image in (str(secret), "/dev/zero", str(tmp_path)):
        labels = read_labels(label_folder(tmp_path / "labels", {"image": image}))
        with pytest.raises(InputError):
            picture_bytes(labels[0])
        with pytest.raises(InputError):
            write_label_studio(labels, tmp_path / "out")
        with pytest.raises(InputError):
            write_cvat(labels, tmp_path / "out.zip")
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", sorted((CORPUS / "cvat").iterdir()), ids=lambda path: path.stem)
def test_zips_of_strangers(path: Path) -> None:
    within(5, lambda: list(read_cvat(path)))


@pytest.mark.parametrize("path", sorted((CORPUS / "label_studio").iterdir()), ids=lambda path: path.stem)
def test_exports_that_would_fill_the_memory(path: Path) -> None:
    within(5, lambda: list(read_label_studio(path)))


# --- text of every kind -----------------------------------------------------------------------------------------------


def test_sentences_come_back_as_they_were(tmp_path: Path) -> None:
    lines = [{"id": f"i{number}", "sentence": sentence} for number, sentence in enumerate(SENTENCES)]
    labels = read_labels(label_folder(tmp_path / "<b>&\u202e", *lines))
    assert [one.sentence for one in labels] == list(SENTENCES)
    write_coco(labels, tmp_path / "coco.json")
    write_png(labels, tmp_path / "png")
    write_cvat(labels, tmp_path / "cvat.zip")
    write_label_studio(labels, tmp_path / "tasks")
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["sentence"] for task in tasks] == list(SENTENCES)
    for task in tasks:
        task["annotations"] = task.pop("predictions")
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    for file, found in (
        (tmp_path / "coco.json", read_coco), (tmp_path / "png", read_png), (tmp_path / "cvat.zip", read_cvat),
        (tmp_path / "export.json", read_label_studio),
    ):  # fmt: skip
        out = tmp_path / f"back-{file.stem}"
        write_corrected(file, found(file), labels, out)
        assert [sample.sentences[0] for sample in read_folder(out)] == list(SENTENCES)
        assert all(sample.targets == (MASK,) for sample in read_folder(out))


def test_words_of_any_sentence() -> None:
    began = time.process_time()
    tokens = Vocabulary.build([*SENTENCES, *SENTENCES]).encode(SENTENCES, 20)
    assert tokens.shape == (len(SENTENCES), 20) and bool((tokens[:, 0] > 0).all())
    assert time.process_time() - began < 2


@pytest.mark.parametrize("sentence", ["", " \n", "\ud800", None, 7, ["a"], {"a": 1}])
def test_what_is_no_sentence(sentence: Any, tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "sentence": sentence}))
    with pytest.raises(InputError):
        read_folder(tmp_path)


def test_messages_do_not_steer_a_terminal() -> None:
    text = str(InputError("no such image", file="\x1b[2J\u202egnp.exe", record="\ud800\x07"))
    assert text == "\\x1b[2J\\u202egnp.exe, \\ud800\\x07: no such image"
    assert str(InputError("größer: 左")) == "größer: 左"
