"""It learns: a small network, a small world, half a minute; the loop must end clearly above where it began."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_world

import l2l
from l2l.config import Config
from l2l.training.loop import METRICS, train


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("learns"), count=60)


def small(world: Path, method: str, steps: int) -> Config:
    config = Config()
    config = config.replace(
        "data", data=str(world / "data"), prior=str(world / "priors"), rate=0.5, height=64, width=64,
    )  # fmt: skip
    config = config.replace("model", channels=(16, 32, 48, 64), depths=(1, 1, 1, 1), context=(0, 1, 0), width=32)
    return config.replace(
        "train", method=method, steps=steps, labelled=12, held_out=8, unlabelled=8, rate=2e-3, probe_every=20,
        save_every=40,
    )  # fmt: skip


def logged(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_labels_are_learned(world: Path, tmp_path: Path) -> None:
    config = small(world, "supervised", 120).replace("train", ema=0.9)
    run = train(config, tmp_path / "run")
    losses = logged(run, "loss_x")
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])
    seen = l2l.evaluate(run, split="train")
    with_prior = next(one for one in seen if one.method == "supervised")
    alone = l2l.evaluate(run, split="train", no_prior=True)[0]
    assert alone.scores.miou > 0.15  # without prior; an untrained network has 0.05 at best
    assert with_prior.scores.miou > alone.scores.miou  # pointing helps


def test_the_loop_learns_and_does_not_harm(world: Path, tmp_path: Path) -> None:
    run = train(small(world, "l2l", 80), tmp_path / "run")
    probes = logged(run, "probe")
    assert probes[-1]["iou_fused"] > 0.9 * probes[-1]["iou_proposal"]  # starts as the identity and stays no worse
    assert probes[-1]["iou_model"] > probes[0]["iou_model"] + 0.03  # the model's own opinion gets better
    assert 0.05 < probes[-1]["coverage_front"] < 0.99 and 0.05 < probes[-1]["coverage_samples"] < 0.999
    assert probes[-1]["gain_selected"] > probes[-1]["gain_all"] > 0  # what is believed teaches more than the rest
