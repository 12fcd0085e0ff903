"""Several processes train as one does: the same losses, gradients and weights; they go on with another number."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from divided import take_steps
from safetensors.torch import load_file
from tiny import make_world, small_config
from torch import nn

from l2l.config import Config
from l2l.errors import InputError
from l2l.training.loop import CHECKPOINT, METRICS, Run, train
from l2l.training.prepare import prepare
from l2l.training.processes import Processes, divided

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(make_world(tmp_path_factory.mktemp("processes"), count=20), steps=8, save_every=4)


def torchrun(count: int, *command: str | Path) -> None:
    """Run a command in so many processes of this machine."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    done = subprocess.run(
        [*start, *map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def together(config: Config, out: Path, *, count: int = 2, steps: int = 4) -> list[dict[str, Any]]:
    """What each of `count` processes found."""
    out.mkdir()
    (out / "config.json").write_text(config.to_text())
    torchrun(count, HERE / "divided.py", out / "config.json", out, steps)
    return [torch.load(out / f"{rank}.pt") for rank in range(count)]


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """The first step's loss and gradients are equal but for the order of sums; of a gradient that is nearly zero Adam
    makes a step of full size all the same, so what follows may differ by more."""
    assert a["loss"][0] == pytest.approx(b["loss"][0], rel=2e-6)
    assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    one, other = a["gradients"][0], b["gradients"][0]
    assert one.keys() == other.keys()
    for name, value in one.items():
        apart, size = (value - other[name]).norm(), value.norm()
        assert apart <= 1e-3 * size + 1e-6, f"{name}: {apart:.2g} of {size:.2g}"


@pytest.mark.parametrize("method", ["l2l", "semires", "resmatch"])
def test_two_processes_take_the_steps_of_one(config: Config, method: str, tmp_path: Path) -> None:
    config = config.replace("train", method=method)
    alone = take_steps(config, Processes(), 4)
    first, second = together(config, tmp_path / "two")
    same(alone, first)
    assert first["loss"] == second["loss"]
    assert all(torch.equal(value, second["teacher"][name]) for name, value in first["teacher"].items())


def test_sharded_weights_take_the_same_steps(config: Config, tmp_path: Path) -> None:
    alone = take_steps(config, Processes(), 4)
    same(alone, together(config.replace("train", fsdp=True), tmp_path / "two")[0])


# Of a bias in front of batch norm the gradient is rounding, of which Adam makes steps of full size.
CANCELLED = re.compile(r"vision\.(stem|stages\.[123])\.(0\.bias|1\.running_mean)$")


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_run_goes_on_with_another_number_of_processes(config: Config, fsdp: bool, tmp_path: Path) -> None:
    """Four steps by two processes, four by one; and back."""
    whole = load_file(train(config, tmp_path / "whole") / CHECKPOINT)
    (tmp_path / "config.json").write_text(config.replace("train", fsdp=fsdp).to_text())
    torchrun(2, HERE / "divided.py", tmp_path / "config.json", tmp_path / "two", 4, "run")
    parts = load_file(train(config, tmp_path / "two", resume=True) / CHECKPOINT)
    train(config, tmp_path / "one", stop_after=4)
    torchrun(2, HERE / "divided.py", tmp_path / "config.json", tmp_path / "one", 8, "run")
    others = load_file(tmp_path / "one" / CHECKPOINT)
    assert whole.keys() == parts.keys() == others.keys()
    files = [tmp_path / run / METRICS for run in ("whole", "two", "one")]
    logged = [[json.loads(line)["step"] for line in file.open()] for file in files]
    assert logged[0] == logged[1] == logged[2]
    for found in (parts, others):
        for name, value in whole.items():
            if name.startswith("teacher.") and value.is_floating_point() and not CANCELLED.search(name):
                torch.testing.assert_close(found[name], value, rtol=1e-2, atol=2e-3, msg=name)


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(config: Config) -> None:
    """Batch norm apart, which sees one piece at a time: here it keeps to its running statistics."""
    gradients, answers = [], []
    for pieces in (1, 3):
        run = Run.start(config, prepare(config))
        network = run.parts.network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        batch = run.parts.weak(torch.arange(7), "labelled", 0)
        torch.manual_seed(0)  # dropout is on
        answer = divided(network, batch.image, batch.tokens, batch.proposals, processes=Processes(), pieces=pieces)
        assert answer.guided is not None
        (answer.q.square().mean() + answer.guided.square().mean()).backward()
        answers.append(answer.q.detach())
        gradients.append({name: one.grad for name, one in network.named_parameters() if one.grad is not None})
    torch.testing.assert_close(answers[0], answers[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-3, atol=1e-6)


def test_pieces_leave_running_statistics_alone_when_computed_again(config: Config) -> None:
    run = Run.start(config.replace("train", accumulate=2), prepare(config))
    [norm, *_] = [one for one in run.parts.network.modules() if isinstance(one, nn.BatchNorm2d)]
    batch = run.parts.weak(torch.arange(6), "labelled", 0)
    answer = run.parts.answer(run.parts.network.train(), batch.image, batch.tokens, batch.proposals)
    before = norm.running_mean.clone()
    answer.q.sum().backward()
    assert torch.equal(norm.running_mean, before) and norm.momentum == 0.1


def test_of_fewer_rows_than_processes_everybody_does_all(config: Config) -> None:
    run = Run.start(config, prepare(config))
    network, batch = run.parts.teacher, run.parts.weak(torch.arange(2), "labelled", 0)
    given = (batch.image, batch.tokens, batch.proposals)
    with torch.no_grad():
        for rank in range(3):
            answer = divided(network, *given, processes=Processes(rank, 3))
            torch.testing.assert_close(answer.q, network(*given).q)


def test_every_row_is_somebodys() -> None:
    for total in range(1, 9):
        shares = [Processes(rank, 3).share(total) for rank in range(3)]
        assert [row for share in shares for row in range(total)[share]] == list(range(total))


def test_no_accelerator_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="write cuda"):
        Processes.here("cuda:0")
