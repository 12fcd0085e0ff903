"""The walk-throughs in docs/ do what they say: every step, on data and networks of seconds, in the page's order."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import SMALL
from walks import ROOT, Step, steps, take

import l2l
from l2l.cli import main
from l2l.data.pickles import load_plain
from l2l.exchange.decisions import read_decisions
from l2l.exchange.labels import read_labels
from l2l.rle import Rle

DOCS = Path(__file__).parents[1] / "docs"
REF = {"ref_id", "ann_id", "image_id", "category_id", "split", "file_name", "sentences", "sent_ids"}
FEW = [
    "--steps",
    "4",
    "--size",
    "64x64",
    *(part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")),
]


def small(step: Step) -> Step:
    """The same with a smaller network and fewer steps; what comes last on a command line counts."""
    return replace(step, words=(*step.words, *FEW)) if step.words[:2] == ("l2l", "train") else step


def walk(page: str, change: Callable[[str], str], served: Callable[[Step], None]) -> dict[str, int]:
    """Take all steps; returns the exit codes that are not 0, by command.

    Args:
        change: what is to be changed in the page's Python.
        served: called in place of `l2l serve`, which does not end.
    """
    codes = {}
    for step in steps(DOCS / page):
        if step.words[:2] == ("l2l", "serve"):
            served(step)
            continue
        code = take(small(replace(step, python=change(step.python)) if step.python else step))
        if code:
            codes[" ".join(step.words)] = code
    return codes


def test_labelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for needed in ("datasets", "label_studio_sdk", "fastapi"):
        pytest.importorskip(needed)
    fashion = tmp_path / "shared" / "data" / "fashion"
    assert main(["data", "scenes", str(fashion), "--count", "45", "--unlabelled-share", "0"]) == 0
    with (fashion / "priors.jsonl").open("w") as file:
        for one in l2l.read(fashion).samples:
            rows, columns = one.mask().nonzero()
            box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            for said in one.sentences:
                line = {"image": f"images/{Path(one.image).name}", "expression": said, "boxes": [box], "scores": [0.7]}
                file.write(json.dumps(line | {"source": "simulated"}) + "\n")
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    reviewed: list[str] = []
    again: list[str] = []

    def review(step: Step) -> None:
        """What the page's reader does in the browser: accept, repaint, reject, and one thing back."""
        from test_page import client, png_of

        if reviewed:
            assert step.words[2:] == ("runs/b", "--labels", "corrections-b", "--review", "labels-b")
            with client(Path("labels-b"), Path("corrections-b")) as http:
                pairs = http.get("/review/queue").json()["pairs"]
                assert {pair["decided"] for pair in pairs} == {None}  # what was rejected before is open again
                for number, verdict in enumerate(("accept", "reject")):
                    told = {"id": pairs[number]["id"], "verdict": verdict}
                    assert http.post(f"/review/item/{number}", json=told).status_code == 200
                    again.append(pairs[number]["id"])
            return
        assert step.words[2:] == ("runs/a", "--labels", "corrections", "--review", "labels")
        with client(Path("labels"), Path("corrections")) as http:
            pairs = http.get("/review/queue").json()["pairs"]
            for number, pair in enumerate(pairs[:6]):
                told = {"id": pair["id"], "verdict": "reject" if number == 1 else "accept"}
                if number == 2:
                    height, width = http.get("/review/item/2").json()["size"]
                    mask = np.zeros((height, width), bool)
                    mask[: height // 2] = True
                    told["mask"] = png_of(mask)
                assert http.post(f"/review/item/{number}", json=told).status_code == 200
            undo = {"id": pairs[5]["id"], "verdict": "open"}
            assert http.post("/review/item/5", json=undo).status_code == 200
            reviewed.extend(pair["id"] for pair in pairs[:5])

    def change(code: str) -> str:
        return code.replace("[::5]", "[::1]")  # a few scenes are not 750 photographs

    assert walk("walk-labelling.md", change, review) == {}
    said = capsys.readouterr().out
    known = l2l.read("street")
    masks = [one.split for one in known.samples if one.targets is not None]
    assert len(masks) > 8 and 0 < masks.count("val") < len(masks) / 3
    assert {one.image for one in known.split("val")}.isdisjoint(one.image for one in known.split("train"))
    assert "(simulated: drawn from the true masks)" in said
    everything = {json.loads(line)["id"] for line in Path("labels/labels.jsonl").read_text().splitlines()}
    rest = [json.loads(line) for line in Path("street/rest.jsonl").read_text().splitlines()]
    assert rest and {f"extra-{one['id']}" for one in rest} < everything  # nobody is left without a mask
    with open("labels/ranking.csv", newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == everything - set(reviewed)
    for name in ("png", "hub", "label-studio", "cvat"):
        assert f"{name}: " in said and "the pixels of coco.json" in said
    coco = json.loads(Path("out/coco.json").read_text())
    out = {one["sentence_id"]: one for one in coco["annotations"]}
    assert set(out) == everything - {reviewed[1]}
    assert {key for key, one in out.items() if one["score"] == 1} == {*reviewed[:1], *reviewed[2:]}
    (height,) = [one["height"] for one in coco["images"] if one["id"] == out[reviewed[2]]["image_id"]]
    assert out[reviewed[2]]["bbox"][3] == height // 2  # what was painted is what came out
    corrected = l2l.read("corrected")
    assert {key for one in corrected.samples for key in one.sentence_ids} == {
        key for one in known.samples if one.targets is not None for key in one.sentence_ids
    } | {reviewed[0], *reviewed[2:]}
    assert Path("corrected/rejected.jsonl").read_text().count("rejected in review") == 1
    about = json.loads(Path("labels-b/about.json").read_text())
    assert about["pairs_with_prior"] == about["pairs"] > 20  # the store knows the pictures where they are now
    whole = {json.loads(line)["id"]: json.loads(line) for line in Path("all/labels.jsonl").read_text().splitlines()}
    own = {key.removeprefix("extra-") for key in everything}
    own |= {key for one in known.samples if one.targets is not None for key in one.sentence_ids}
    accepted, rejected = (re.sub(r"^(extra\d*-)+", "", key) for key in again)
    assert set(whole) == own - {rejected}  # each sentence that we began with, and no other
    assert len(json.loads(Path("out/all.json").read_text())["annotations"]) == len(whole)
    sure = {key for key, line in whole.items() if line["score"] == 1}
    assert {accepted, *(key.removeprefix("extra-") for key in (reviewed[0], *reviewed[2:]))} < sure
    assert len(sure) == len(masks) + 5


def test_refcoco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def change(code: str) -> str:
        assert "scenes_count=120" in code
        return code.replace("scenes_count=120", "scenes_count=40")

    codes = walk("walk-refcoco.md", change, lambda step: None)
    recipe = "l2l data recipe refcoco_unc --root data"
    assert codes == {recipe: 1}, codes  # nothing is there, and later it is not RefCOCO
    said = capsys.readouterr().out
    assert "missing:" in said and "all files are there" in said and "differences:" in said
    refs = load_plain(Path("data/refcoco/refs(unc).p"))
    assert isinstance(refs, list) and all(set(one) == REF for one in refs)
    assert {key for one in refs for line in one["sentences"] for key in line} == {"sent_id", "sent", "raw", "tokens"}
    assert {one["split"] for one in refs} == {"train", "val", "testA", "testB"}
    assert max(len(one["sentences"]) for one in refs) > 1
    splits: dict[int, set[str]] = {}
    for one in refs:
        splits.setdefault(one["image_id"], set()).add(one["split"])
    assert all(len(found) == 1 for found in splits.values())
    for split in ("val", "testA", "testB"):
        assert f"refcoco_unc, split {split}, percent" in said
    assert said.count("prior alone") >= 4 and "(simulated: drawn from the true masks)" in said
    assert {one["score"] <= 1 for one in json.loads(Path("labels.json").read_text())["annotations"]} == {True}


def test_the_stand_in_is_laid_out_as_real_refcoco_is(shared_data: Path) -> None:
    """The keys that `test_refcoco` asks of the stand-in are those of the real file."""
    refs = load_plain(shared_data / "refcoco_micro" / "refcoco" / "refs(unc).p")
    assert isinstance(refs, list)
    assert set(refs[0]) == REF
    assert set(refs[0]["sentences"][0]) == {"sent_id", "sent", "raw", "tokens"}


@pytest.mark.parametrize("page", ["walk-labelling.md", "walk-refcoco.md"])
def test_no_step_is_forgotten(page: str) -> None:
    """Each line of a walk that calls something of ours is a step."""
    text = (DOCS / page).read_text(encoding="utf-8")
    lines = re.findall(r"^(?:l2l [a-z]|python ).*", text, re.MULTILINE)
    assert len(lines) == sum(bool(step.words) for step in steps(DOCS / page)) > 8


def test_the_install_says_something_while_it_runs() -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    told = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/.installed"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install" in told.stdout and "--quiet" not in told.stdout and told.stdout.count("echo 'l2l: ") == 2


def test_simulated_reviewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The least sure pairs get their true masks, and a second call goes on where the first one ended."""
    pytest.importorskip("fastapi")
    assert main(["data", "scenes", str(tmp_path / "known"), "--count", "6", "--unlabelled-share", "0"]) == 0
    pairs = [(key, text, one) for one in l2l.read(tmp_path / "known").samples for key, text in one.pairs()]
    empty = {one.size: Rle.encode(np.zeros(one.size, bool)).to_coco() for _, _, one in pairs}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "labels.jsonl").write_text("".join(
        json.dumps({"id": f"extra-{key}" if at % 2 else key, "image": one.image, "sentence": text,
                    "score": 1 - at / len(pairs), "segmentation": empty[one.size]}) + "\n"
        for at, (key, text, one) in enumerate(pairs)
    ))  # fmt: skip
    order = [label.id for label in sorted(read_labels(tmp_path / "labels"), key=lambda one: one.score)]
    words = ("python", "benchmarks/review.py", *(str(tmp_path / one) for one in ("known", "labels", "kept")), "3")
    for times in (1, 2):
        assert take(Step(words=words)) == 0
        said = {one.id: one.mask for one in read_decisions(tmp_path / "kept")}
        assert set(said) == set(order[: 3 * times])
        assert "3 true masks accepted by a simulated reviewer" in capsys.readouterr().out
    truth = {key: one.mask() for key, _, one in pairs}
    for key, mask in said.items():
        assert mask is not None and np.array_equal(mask.decode(), truth[key.removeprefix("extra-")])
