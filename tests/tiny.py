"""A run that takes seconds: a small world on disk, a small network, a handful of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from l2l.cli import main
from l2l.config import Config
from l2l.evaluate import answers, prepare_split
from l2l.model.text import Vocabulary
from l2l.training.checkpoint import load_tensors, save_tensors
from l2l.training.loop import CHECKPOINT, load_run
from l2l.training.prepare import read_data

SMALL = {
    "model.channels": "16,24,32,40", "model.depths": "1,1,1,1", "model.width": "16", "model.text_width": "24",
    "train.labelled": "3", "train.held_out": "3", "train.unlabelled": "4", "train.probe_pairs": "8",
    "train.precision": "float32",
}  # fmt: skip

COUNTED = ("taught", "ahead", "finer", "meets")  # what SESM counts and measures, and nobody learns


def settings(**more: object) -> list[str]:
    """`--size` and `--set` arguments of a small network; `train_save_every=3` changes one."""
    chosen = SMALL | {name.replace("_", ".", 1): str(value) for name, value in more.items()}
    return ["--size", "64x64", *(part for name, value in chosen.items() for part in ("--set", f"{name}={value}"))]


def small_config(root: Path, **train: Any) -> Config:
    """The settings of an L2L run of a few steps on the world in `root`; `train` are further ones of that section."""
    made = Config().replace(
        "data", data=str(root / "data"), prior=str(root / "priors"), rate=0.5, height=64, width=64,
    )  # fmt: skip
    made = made.replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    few = {"labelled": 3, "held_out": 3, "unlabelled": 4, "burn_in": 0.0, "probe_pairs": 4, "precision": "float32"}
    return made.replace("train", **{"method": "l2l", "steps": 4, **few, **train})


def make_world(root: Path, *, count: int = 30) -> Path:
    """`root/data`, a REFER set, and `root/priors`, a store for it."""
    assert main(["data", "scenes", str(root / "data"), "--count", str(count), "--seed", "3"]) == 0
    out = str(root / "priors")
    assert main(["prior", str(root / "data"), "--source", "simulated", "--accuracy", "0.8", "--out", out]) == 0
    return root


def train_arguments(root: Path, out: Path, *more: str, steps: int = 6, **changes: object) -> list[str]:
    """Arguments of `l2l train` on that world."""
    return [
        "train", "--data", str(root / "data"), "--rate", "0.4", "--prior", str(root / "priors"), "--out", str(out),
        "--steps", str(steps), *settings(**changes), *more,
    ]  # fmt: skip


def stir(run: Path) -> Path:
    """Random weights for a run's teacher, with masks that are neither empty nor full: a few steps teach nothing."""
    file = run / CHECKPOINT
    tensors, about = load_tensors(file)
    rng = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        counted = name.endswith(("running_mean", "running_var", *(f"sesm.{one}" for one in COUNTED)))
        if name.startswith("teacher.") and value.is_floating_point() and not counted:
            value += 0.3 * torch.randn(value.shape, generator=rng)
    save_tensors(file, tensors, about)
    config, network, _, told = load_run(run)
    assert network is not None
    pool, _ = prepare_split(
        read_data(config.data).split("train"), config, Vocabulary(tuple(told["vocabulary"])), config.data.prior
    )
    logits = torch.cat([part for _, part, _ in answers(network, pool, config, prior=True)])
    tensors["teacher.segmenter.classify.bias"] -= logits.float().median()
    save_tensors(file, tensors, about)
    return run
