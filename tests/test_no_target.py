"""Sentences that mean nothing, or several things, from the data to the scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import SMALL

import l2l
from l2l.cli import main
from l2l.config import Config, MethodName
from l2l.evaluate import Evaluation, evaluate
from l2l.methods.l2l import came_out
from l2l.training.loop import train


def small(method: MethodName, steps: int, count: int) -> Config:
    config = Config().replace("data", data="scenes", scenes_count=count, height=64, width=64, rate=0.4)
    return config.replace("train", method=method, steps=steps).override(*(f"{k}={v}" for k, v in SMALL.items()))


def test_scenes_have_such_sentences_where_they_are_asked_for() -> None:
    kinds = [len(one.targets or ()) for one in l2l.read("scenes", scenes_count=60, scenes_no_target=0.3,
                                                        scenes_several=0.2).samples]  # fmt: skip
    assert kinds.count(0) > 20 and sum(kind > 1 for kind in kinds) > 10
    assert all(len(one.targets or ()) == 1 for one in l2l.read("scenes", scenes_count=20).samples)


def test_an_empty_answer_to_a_sentence_that_means_nothing_came_out_right() -> None:
    mask, answer = torch.zeros(3, 2, 2), torch.full((3, 2, 2), -1.0)
    mask[0, 0, 0], answer[0, 0], answer[2, 1, 1] = 1, 1.0, 1.0
    assert came_out(answer, mask).tolist() == [0.5, 1, 0]


@pytest.mark.parametrize("method", ["l2l", "semires", "supervised"])
def test_training_on_them_and_their_scores(
    method: MethodName, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(method, 4, 40).replace("data", scenes_no_target=0.4, scenes_several=0.1)
    run = train(config, tmp_path / "run")
    (found,) = evaluate(run)
    general = found.generalised
    assert general is not None and general.n == found.scores.n and 0 < general.no_target < general.n
    assert general.giou == pytest.approx(found.scores.miou) and 0 <= general.n_acc <= 1
    (file,) = (run / "evaluations").glob("*.json")
    assert Evaluation.from_json(json.loads(file.read_text())).generalised == general
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr().out
    assert "N-acc" in said and "no target" in said


def test_where_every_sentence_means_one_thing_nothing_is_said_of_it(tmp_path: Path) -> None:
    (found,) = evaluate(train(small("supervised", 2, 20), tmp_path / "run"), save=False)
    assert found.generalised is None and "generalised" not in found.to_json()
