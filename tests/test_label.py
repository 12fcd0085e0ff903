from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_world, stir, train_arguments

import l2l
from l2l.cli import main
from l2l.config import Config
from l2l.data.splits import Split
from l2l.errors import InputError
from l2l.evaluate import answers, prepare_split
from l2l.label import label
from l2l.labelling.sesm import FEW
from l2l.model.text import Vocabulary
from l2l.outlines import upsample
from l2l.predict import tight_box
from l2l.rle import Rle
from l2l.training.checkpoint import load_tensors
from l2l.training.loop import CHECKPOINT, load_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose weights are stirred, so that its masks have something in them."""
    world = make_world(tmp_path_factory.mktemp("world"))
    more = ["--unlabelled", str(world / "data" / "unlabelled.jsonl")]
    assert main(train_arguments(world, world / "run", *more, steps=4)) == 0
    return stir(world / "run")


@pytest.fixture(scope="module")
def labels(run: Path) -> Path:
    return label(run, run.parent / "labels", batch=8)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_unlabelled_pair_has_a_line(run: Path, labels: Path) -> None:
    data = l2l.read(run.parent / "data")
    split = Split.load(run / "split.json")
    own = [key for one in data.split("train") if one.image_id not in split.images for key in one.sentence_ids]
    pairs = l2l.read(run.parent / "data" / "unlabelled.jsonl").samples
    more = [f"extra-{key}" for one in pairs for key in one.sentence_ids]
    assert own and more
    assert [line["id"] for line in lines_of(labels)] == own + more


def test_what_a_line_says(run: Path, labels: Path) -> None:
    sizes = {one.image: one.size for one in l2l.read(run.parent / "data").samples}
    filled = 0
    for line in lines_of(labels):
        mask = Rle.from_coco(line["segmentation"]).decode()
        assert mask.shape == sizes.get(line["image"], (96, 96))
        box = tight_box(mask) or (0, 0, 0, 0)
        assert line["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        assert 0 <= line["score"] <= 1
        assert line["accepted"] == (line["score"] > 0.5)
        assert 0 <= line["acceptance"]["foreground"] <= 1
        assert line["prior"] == (not line["id"].startswith("extra-"))
        assert isinstance(line["sentence"], str) and line["sentence"]
        filled += bool(mask.any())
    assert filled


def test_masks_and_scores_are_those_of_evaluate(run: Path, labels: Path) -> None:
    config, network, _, about = load_run(run)
    assert network is not None
    known = {line["id"]: line for line in lines_of(labels)}
    split = Split.load(run / "split.json")
    samples = [one for one in l2l.read(run.parent / "data").split("train") if one.image_id not in split.images]
    pool, _ = prepare_split(samples, config, Vocabulary(tuple(about["vocabulary"])), config.data.prior)
    for rows, logits, scores in answers(network, pool, config, prior=True, batch=8):
        for row, logit, score in zip(rows.tolist(), logits, scores.tolist(), strict=True):
            line = known[pool.ids[row]]
            if len(pool.pairs_of[int(pool.ref_of[row])]) > 1:
                continue  # these hear one another
            mask = upsample(logit, pool.samples[int(pool.ref_of[row])].size)
            assert line["score"] == pytest.approx(score, abs=2e-3)
            assert (Rle.from_coco(line["segmentation"]).decode() != mask).mean() < 0.01


def test_the_sentences_of_a_record_have_one_mask(run: Path, labels: Path, tmp_path: Path) -> None:
    data = l2l.read(run.parent / "data")
    records = [one.sentence_ids for one in data.samples if len(one.sentence_ids) > 1]
    known = {line["id"]: line for line in lines_of(labels)}
    of_record = [[known[key] for key in keys] for keys in records if keys[0] in known]
    assert of_record
    for first, *others in of_record:
        for one in others:
            assert one["segmentation"] == first["segmentation"]
            assert one["score"] == pytest.approx(first["score"], abs=1e-4)
    # wherever a batch ends
    single = {line["id"]: line for line in lines_of(label(run, tmp_path / "single", batch=1))}
    for key, line in known.items():
        assert single[key]["score"] == pytest.approx(line["score"], abs=2e-3)
    # and each its own, where the run is not to bring them together
    shutil.copytree(run, tmp_path / "apart")
    config = Config.load(run / "config.json").replace("sesm", together=False)
    (tmp_path / "apart" / "config.json").write_text(config.to_text())
    apart = {line["id"]: line for line in lines_of(label(tmp_path / "apart", tmp_path / "own", batch=8))}
    assert any(apart[a["id"]]["segmentation"] != apart[b["id"]]["segmentation"] for a, b, *_ in of_record)
    several = {key for keys in records for key in keys}
    assert all(apart[key]["score"] == pytest.approx(known[key]["score"], abs=2e-3) for key in set(known) - several)


def test_a_run_is_asked_with_scores_that_have_settled(run: Path) -> None:
    kept, network = load_tensors(run / CHECKPOINT)[0], load_run(run)[1]
    assert network is not None
    moved, taught = kept["teacher.sesm.expect.moved"], float(kept["teacher.sesm.taught"])
    assert moved.abs().min() > 0.001  # stirred
    assert torch.allclose(network.sesm.expect.moved, moved * taught / (taught + FEW))


def test_about(run: Path, labels: Path) -> None:
    about, lines = json.loads((labels.parent / "about.json").read_text()), lines_of(labels)
    assert about["run"] == json.loads((run / "config.json").read_text())["hash"]
    assert about["finished"] and about["prior_simulated"] and about["prior"].startswith("simulated")
    assert about["pairs"] == len(lines) and about["accepted"] == sum(line["accepted"] for line in lines)
    assert about["pairs_with_prior"] == sum(line["prior"] for line in lines)
    assert about["mean_score"] == pytest.approx(np.mean([line["score"] for line in lines]), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 0.77, 0.999, 1.0])
def test_cut_off_anywhere_it_ends_with_the_same_bytes(run: Path, labels: Path, tmp_path: Path, share: float) -> None:
    whole = labels.read_bytes()
    shutil.copytree(labels.parent, tmp_path / "cut")
    path = tmp_path / "cut" / "labels.jsonl"
    path.write_bytes(whole[: int(share * len(whole))])
    seen: list[int] = []
    assert label(run, tmp_path / "cut", batch=8, progress=lambda done, total: seen.append(done)) == path
    assert path.read_bytes() == whole
    assert bool(seen) == (share < 1)


def test_damage_in_the_middle_is_made_good(run: Path, labels: Path, tmp_path: Path) -> None:
    whole = labels.read_bytes()
    shutil.copytree(labels.parent, tmp_path / "cut")
    path = tmp_path / "cut" / "labels.jsonl"
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 64 + whole[len(whole) // 2 :])
    label(run, tmp_path / "cut", batch=8)
    assert path.read_bytes() == whole


def test_labels_of_two_runs_do_not_mix(run: Path, labels: Path) -> None:
    with pytest.raises(InputError, match="made with another prior; choose another folder"):
        label(run, labels.parent, no_prior=True)
    with pytest.raises(InputError, match="made with another pairs_hash"):
        label(run, labels.parent, everything=True)


def test_without_a_prior(run: Path, tmp_path: Path) -> None:
    lines = lines_of(label(run, tmp_path / "out", no_prior=True))
    assert lines and not any(line["prior"] for line in lines)
    assert json.loads((tmp_path / "out" / "about.json").read_text())["prior"] == ""


def test_everything_and_other_data(run: Path, labels: Path, tmp_path: Path) -> None:
    assert main(["label", str(run), "--all", "--out", str(tmp_path / "all")]) == 0
    more = {line["id"] for line in lines_of(tmp_path / "all" / "labels.jsonl")}
    assert more > {line["id"] for line in lines_of(labels)}
    pairs = run.parent / "data" / "unlabelled.jsonl"
    assert main(["label", str(run), "--data", str(pairs), "--no-prior", "--out", str(tmp_path / "pairs")]) == 0
    assert len(lines_of(tmp_path / "pairs" / "labels.jsonl")) == len(pairs.read_text().splitlines())
    l2l.write_scenes(tmp_path / "full", count=10, seed=9, unlabelled_share=0.0)
    with pytest.raises(InputError, match="no unlabelled pair; --all"):
        label(run, tmp_path / "none", data=tmp_path / "full", no_prior=True)


def test_a_run_without_a_policy(run: Path, tmp_path: Path) -> None:
    assert main(train_arguments(run.parent, tmp_path / "run", "--method", "supervised", steps=2)) == 0
    for line in lines_of(label(tmp_path / "run", tmp_path / "out")):
        assert line["acceptance"] is None and line["accepted"] == (line["score"] > 0.5)


def test_killed_in_the_middle(run: Path, labels: Path, tmp_path: Path) -> None:
    """An interruption between two batches leaves whole lines; the next call goes on."""

    def stop(done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(run, tmp_path / "out", batch=8, progress=stop)
    assert not json.loads((tmp_path / "out" / "about.json").read_text())["finished"]
    assert 0 < len(lines_of(tmp_path / "out" / "labels.jsonl")) < len(lines_of(labels))
    label(run, tmp_path / "out", batch=8)
    assert (tmp_path / "out" / "labels.jsonl").read_bytes() == labels.read_bytes()
