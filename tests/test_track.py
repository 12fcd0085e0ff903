"""Trackers get what `metrics.jsonl` gets, go on where a run goes on, and never end a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_world, train_arguments

from l2l.cli import main
from l2l.config import Config
from l2l.errors import InputError
from l2l.training import loop, track
from l2l.training.loop import CONFIG, METRICS, train
from l2l.training.track import check_trackers, tracking

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), count=20)


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, str]]]:
    """(step, value) of each figure, and (step, text) of events, as TensorBoard reads its own files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    figures = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    texts = [(one.step, one.tensor_proto.string_val[0].decode()) for tag in events.Tags()["tensors"]
             for one in events.Tensors(tag)]  # fmt: skip
    return figures, texts


def written(run: Path) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, str]]]:
    """The same of `metrics.jsonl`."""
    figures: dict[str, list[tuple[int, float]]] = {}
    texts = []
    for line in (run / METRICS).read_text().splitlines():
        value = json.loads(line)
        step = value.pop("step")
        if "event" in value:
            texts.append((step, value["event"]))
            continue
        kind, value = ("probe", value["probe"]) if "probe" in value else ("train", value)
        for name, one in value.items():
            figures.setdefault(f"{kind}/{name}", []).append((step, pytest.approx(one, rel=1e-6, nan_ok=True)))
    return figures, texts


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training in which something is told at steps 7 and 14."""
    step = loop.train_step

    def and_tell(run: Any) -> dict[str, float]:
        logs = step(run)
        if run.step % 7 == 0:
            run.parts.events.append(f"drift guard: at {run.step}")
        return logs

    monkeypatch.setattr(loop, "train_step", and_tell)
    yield


def test_tensorboard_has_what_the_log_has(world: Path, tmp_path: Path, told: None) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    changes = {"train_save_every": 6, "train_probe_every": 10}
    assert main(train_arguments(world, run, "--track", "tensorboard", steps=21, **changes)) == 0
    figures, texts = read_events(run / "tensorboard")
    assert (figures, texts) == written(run)
    assert [step for step, _ in figures["train/loss"]] == [10, 20, 21] and "probe/iou_fused" in figures
    assert {(step, f"drift guard: at {step}") for step in (7, 14, 21)} <= set(texts)
    [settings] = (run / "tensorboard").glob("*/hparams.yml")
    assert "data.rate: 0.4" in settings.read_text() and "model.channels: (16, 24, 32, 40)" in settings.read_text()
    assert Config.load(run / CONFIG).hash() in settings.read_text()


def test_it_goes_on_with_the_run(world: Path, tmp_path: Path, told: None) -> None:
    """Cut off at step 21, resumed from the checkpoint of step 12: what lay between is there once."""
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    arguments = train_arguments(world, tmp_path / "whole", steps=32, train_save_every=12)
    assert main(arguments) == 0
    config = Config.load(tmp_path / "whole" / CONFIG)
    train(config, run, stop_after=21, track=["tensorboard"])
    train(config, run, resume=True, track=["tensorboard"])
    figures, texts = read_events(run / "tensorboard")
    whole, events = written(tmp_path / "whole")
    assert figures == whole and sorted(set(texts)) == sorted(events)  # it purges no texts
    assert written(run) == (whole, events)
    assert (run / METRICS).read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()
    assert len(list((run / "tensorboard").glob("*/hparams.yml"))) == 1


def test_tracking_does_not_change_a_run(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for name, more in (("without", []), ("with", ["--track", "tensorboard"])):
        assert main(train_arguments(world, tmp_path / name, *more, steps=10)) == 0
    for file in (CONFIG, METRICS):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert not (tmp_path / "without" / "tensorboard").exists()


class Fake:
    """A tracker that keeps what it is given, and fails when it is told to."""

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.fails = name, fails
        self.calls: list[tuple[str, Any]] = []

    def _call(self, what: str, value: Any = None) -> None:
        if what == self.fails:
            raise ConnectionError("no\n  network")
        self.calls.append((what, value))

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("settings", values)

    def log(self, values: dict[str, Any], step: int) -> None:
        self._call("log", (step, values))

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("when", ["start", "settings", "log", "finish"])
def test_one_that_fails_is_left_out(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    bad, good = Fake("wandb", when), Fake("trackio")
    monkeypatch.setattr(track, "_tracker", lambda name, out, step: {"wandb": bad, "trackio": good}[name])
    said: list[str] = []
    with tracking(["wandb", "trackio"], Config(), tmp_path, tell=said.append) as log:
        log({"step": 10, "loss": 0.5})
        log({"step": 20, "loss": 0.25})
    assert said == ["the tracker wandb failed, training goes on without it: no network"]
    assert [what for what, _ in good.calls] == ["start", "settings", "log", "log", "finish"]
    assert good.calls[3] == ("log", (20, {"train/loss": 0.25}))
    settings = good.calls[1][1]
    assert settings["train.method"] == "l2l" and settings["hash"] == Config().hash()
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_a_warning_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setattr(track, "_tracker", lambda name, out, step: Fake(name, "start"))
    with pytest.warns(UserWarning, match="no network"), tracking(["wandb"], Config(), tmp_path):
        pass


def test_a_training_survives_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file in the way")
    assert main(train_arguments(world, tmp_path / "run", "--track", "tensorboard", steps=10)) == 0
    assert capsys.readouterr().err.count("the tracker tensorboard failed, training goes on without it") == 1
    assert '"step": 10' in (tmp_path / "run" / METRICS).read_text()


def test_names_and_packages_are_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no tracker 'mlflow', but tensorboard, trackio, wandb"):
        check_trackers(["mlflow"])
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    check_trackers(["tensorboard", "trackio"])
    with pytest.raises(InputError, match=r"wandb needs wandb: pip install -e '\.\[track\]' -c constraints\.txt wandb"):
        check_trackers(["wandb"])
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tensorboard needs accelerate: pip install -e '\.\[track\]' -c \S+$"):
        check_trackers(["tensorboard"])
    out = str(tmp_path / "run")
    assert main(["train", "--data", "scenes", "--out", out, "--track", "tensorboard,trackio", "--track", "wandb"]) == 2
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_plain_training_needs_no_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with tracking([], Config(), tmp_path) as log:
        log({"step": 10, "loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_one_of_two_processes_writes(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "l2l.cli"]
    done = subprocess.run(
        [*start, *train_arguments(world, run, "--track", "tensorboard", steps=10)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((run / "tensorboard").glob("events*"))) == 1
    assert read_events(run / "tensorboard") == written(run)


def test_wandb_offline(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not among the tests' packages: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert main(train_arguments(world, run, "--track", "wandb", steps=10)) == 0
    name = (run / track.TRACKED).read_text()
    [file] = (run / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    assert b"train/loss" in file.read_bytes()


def test_trackio(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio wants another pillow than constraints.txt has: pip install trackio")
    run = tmp_path / "run"
    code = "import sys; from l2l.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *train_arguments(world, run, "--track", "trackio", steps=10)], text=True,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "failed" not in done.stderr, done.stderr[-3000:]
    assert any(b"train/loss" in file.read_bytes() for file in (tmp_path / "trackio").rglob("l2l*.db*"))


def test_random_numbers_are_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    before = torch.get_rng_state()
    with warnings.catch_warnings(), tracking(["tensorboard"], Config(), tmp_path) as log:
        log({"step": 10, "loss": 0.5})
    assert torch.equal(before, torch.get_rng_state())
