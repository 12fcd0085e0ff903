"""The same answer twice: to the bit between processes of one machine, and within a stated distance between machines.

What is held elsewhere is not repeated: one process beside two is `test_processes.py`; runs that are killed at random
moments or stopped by a signal are in `test_cli.py` (l2l, supervised), runs that are cut and go on in `test_rivals.py`.

`references/` holds trajectories through the command line. A change of one must be argued in docs/LOG.md; it is made by

    python tests/make_references.py [NAME ...]
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from make_references import NAMES, REFERENCES, trace
from tiny import make_world, train_arguments

from l2l.cli import main
from l2l.config import Config, MethodName
from l2l.priors.store import FILE
from l2l.training.checkpoint import load_tensors
from l2l.training.loop import CHECKPOINT, METRICS, train

METHODS = tuple(name for name in get_args(MethodName) if name != "prior_only")  # which has nothing to train
RUNS = (*METHODS, "l2l bf16")
KILLED = ("fully_supervised", "prior_training", "dam_net", "l2l", "l2l bf16")
STEPS, SAVED, KILL_AT, LOGS = 6, 3, 5, "steps.json"
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl", "florence2", "grounding-dino")


# --- what a process of its own does ---------------------------------------------------------------------------------


def config_of(root: Path, name: str) -> Config:
    """Six steps: 1 and 2 are burn-in, until 5 SESM and the policy learn, in 6 they rest."""
    method, _, precision = name.partition(" ")
    made = Config().replace("data", data=str(root / "data"), prior=str(root / "priors"), rate=0.8, height=64, width=64)
    made = made.replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    made = made.replace("sesm", held_out=0.4, release=0.7)
    return made.replace(
        "train", method=method, steps=STEPS, labelled=3, held_out=3, unlabelled=4, burn_in=0.2, probe_pairs=4,
        probe_every=3, save_every=SAVED, precision=precision or "float32",
    )  # fmt: skip


def logged(config: Config, out: Path, *, resume: bool) -> None:
    """Train, and leave what each step said."""
    steps: list[dict[str, float]] = []

    def note(step: int, _: int, logs: dict[str, float]) -> None:
        steps.append({"step": step, **{name: value for name, value in logs.items() if name != "seconds"}})

    train(config, out, resume=resume, progress=note)
    (out / LOGS).write_text(json.dumps(steps))


def killed(config: Config, out: Path) -> None:
    """The same in a process that is killed after a step, two steps after its checkpoint."""
    process = os.fork()
    if process == 0:
        try:
            train(config, out, progress=lambda step, *_: step == KILL_AT and os.kill(os.getpid(), signal.SIGKILL))
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert load_tensors(out / CHECKPOINT)[1]["step"] == SAVED


def every_method(root: Path, how: str) -> None:
    """All runs one after another, `straight`, `reversed`, or each `killed` and resumed; and the labels of one."""
    make_world(root, count=20)
    names: Iterable[str] = {"straight": RUNS, "reversed": RUNS[::-1], "killed": KILLED}[how]
    runs = {name: config_of(root, name) for name in names}
    if how == "killed":  # before anything trains here: forks come first
        for name, config in runs.items():
            killed(config, root / name)
    for name, config in runs.items():
        logged(config, root / name, resume=how == "killed")
    assert main(["label", str(root / "l2l"), "--out", str(root / "labels")]) == 0


def pretrained(root: Path, how: str) -> None:
    """All that comes from transformers, with torchvision out of reach (`without`) or with one that notes its use: every
    family that points, SAM 2 for proposals, a Swin as encoder; training, labels, a prediction."""
    if how == "without":
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # as if it were not installed
    import transformers
    from test_backbones import stirred, vision_config
    from test_mllm import write_model as write_mllm
    from test_sam import write_model as write_sam

    import l2l
    from l2l.priors import grounding_dino

    assert transformers.utils.is_torchvision_available() == (how == "with")
    grounding_dino.SHORT, grounding_dino.LONG = 64, 107  # type: ignore[misc]
    make_world(root, count=3)
    for kind in FAMILIES:
        model = write_mllm(kind, root / kind)
        command = ["prior", str(root / "data"), "--source", "mllm", "--model", str(model), "--batch", "3", "--out"]
        assert main([*command, str(root / f"priors {kind}")]) == 0
    torch.manual_seed(0)
    stirred(transformers.AutoModel.from_config(vision_config("swin"))).save_pretrained(root / "swin")
    sam = write_sam("sam2", root / "sam2")
    make_world(root / "more", count=8)
    assert main(train_arguments(root / "more", root / "run", steps=2, model_backbone=root / "swin", data_sam=sam,
                                data_sam_points=2, train_burn_in=0, rple_guard="false")) == 0  # fmt: skip
    assert main(["label", str(root / "run"), "--out", str(root / "labels")]) == 0
    picture = next(iter(sorted((root / "data" / "images").iterdir())))
    np.save(root / "mask.npy", l2l.predict(root / "run", picture, "the red star", box=(10, 10, 60, 60)).mask)
    if how == "with":
        shutil.copy(os.environ["MET"], root / "met.txt")
        transformers.image_utils.pil_to_tensor(None)  # that is noted, were it called


FAKE = {
    "__init__": """
import os, sys
__version__ = "0.28.0"
def note(what):
    with open(os.environ["MET"], "a") as file:
        file.write(what + "\\n")
def asked(name):
    if not name.startswith("__"):
        note(f"asked for {name}")
    raise AttributeError(f"nobody may ask torchvision for {name}")
__getattr__, frame = asked, sys._getframe()
while frame.f_globals["__name__"] == __name__ or "importlib" in frame.f_code.co_filename:
    frame = frame.f_back
note("imported by " + frame.f_globals["__name__"])
""",
    "io": """
import enum
from torchvision import asked as __getattr__, note
ImageReadMode = enum.Enum("ImageReadMode", "RGB")
def decode_image(*_, **__):
    note("called decode_image")
""",
    "transforms/__init__": """
import enum
from torchvision import asked as __getattr__
InterpolationMode = enum.Enum("InterpolationMode", "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS")
""",
    "transforms/functional": """
from torchvision import asked as __getattr__, note
def pil_to_tensor(*_, **__):
    note("called pil_to_tensor")
""",
}
"""Stands where torchvision would: has a version and the names that transformers imports, and notes who imports it, what
else it is asked for, and any call."""


def fake_torchvision(folder: Path) -> Path:
    """A folder for `PYTHONPATH` that has it."""
    for name, text in FAKE.items():
        file = folder / "torchvision" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    told = folder / "torchvision-0.28.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    return folder


# --- processes ------------------------------------------------------------------------------------------------------


def processes(root: Path, what: str, ways: dict[str, dict[str, str]]) -> dict[str, Path]:
    """One process per way, side by side, each with a world and a cache of its own; their folders."""
    source = str(Path(__file__).parents[1] / "src")
    begun = {}
    for how, env in ways.items():
        path = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), source, os.environ.get("PYTHONPATH")]))
        mine = os.environ | {"OMP_NUM_THREADS": "1", "L2L_CACHE": str(root / f"cache {how}")} | env
        (root / how).mkdir()
        with (root / f"{how}.log").open("wb") as log:
            begun[how] = subprocess.Popen([sys.executable, __file__, what, str(root / how), how], stdout=log,
                                          stderr=subprocess.STDOUT, env=mine | {"PYTHONPATH": path})  # fmt: skip
    for how, process in begun.items():
        assert process.wait(900) == 0, (root / f"{how}.log").read_text()[-3000:]
    return {how: root / how for how in ways}


def same_run(one: Path, other: Path) -> None:
    """All weights, the optimiser's state, the policy's and the guard's memory, and what was logged, bit for bit."""
    (a, told), (b, also) = (load_tensors(run / CHECKPOINT) for run in (one, other))
    assert told["step"] == also["step"] and list(a) == list(b) and any(name.startswith("optimiser.") for name in a)
    for name, value in a.items():
        assert value.dtype == b[name].dtype and value.numpy().tobytes() == b[name].numpy().tobytes(), name
    assert (one / METRICS).read_bytes() == (other / METRICS).read_bytes()


def rows(store: Path) -> list[tuple[str, str]]:
    """What a prior store holds."""
    return sqlite3.connect(store / FILE).execute("SELECT key, value FROM prior ORDER BY key").fetchall()


def labels(root: Path) -> str:
    """The labels, wherever they lie."""
    return (root / "labels" / "labels.jsonl").read_text().replace(str(root), "")


def another_process_has_the_same_bits(three: dict[str, Path], name: str) -> None:
    """It hashes otherwise, trained the others before in another order, lies elsewhere and has no cache in common."""
    one, other = three["straight"] / name, three["reversed"] / name
    same_run(one, other)
    assert (one / LOGS).read_bytes() == (other / LOGS).read_bytes()


def a_run_killed_after_a_step_has_the_same_bits(three: dict[str, Path], name: str) -> None:
    one, other = three["straight"] / name, three["killed"] / name
    same_run(one, other)
    taken = json.loads((other / LOGS).read_text())
    assert taken == json.loads((one / LOGS).read_text())[SAVED:] and taken[0]["step"] == 4  # two of them again


def l2l_went_through_all_its_phases(three: dict[str, Path]) -> None:
    steps = json.loads((three["straight"] / "l2l" / LOGS).read_text())
    assert [one["step"] for one in steps if "loss_u" in one] == [3, 4, 5, 6]
    assert [one["step"] for one in steps if "loss_fused" in one and "reward" in one] == [1, 2, 3, 4, 5]
    rest = [json.loads((three["straight"] / name / LOGS).read_text())[-1]["loss"] for name in RUNS]
    assert len(set(rest)) == len(RUNS)  # no two methods are the same by mistake


def worlds_priors_and_labels_are_the_same_bytes(three: dict[str, Path]) -> None:
    files = [
        {path.relative_to(root): path.read_bytes() for path in sorted((root / "data").rglob("*")) if path.is_file()}
        for root in three.values()
    ]
    assert len(files[0]) > 20 and files[0] == files[1] == files[2]
    stored = [rows(root / "priors") for root in three.values()]
    assert len(stored[0]) > 20 and stored[0] == stored[1] == stored[2]
    told = [labels(root) for root in three.values()]
    assert told[0].count("\n") > 5 and told[0] == told[1] == told[2]


def test_every_method_has_the_same_bits_twice_and_resumed(tmp_path: Path) -> None:
    """Three processes, each with another seed of Python's hashes. (One test: all is compared at once.)"""
    seeds = {"straight": "0", "reversed": "4242", "killed": "7"}
    three = processes(tmp_path, "every_method", {how: {"PYTHONHASHSEED": seed} for how, seed in seeds.items()})
    l2l_went_through_all_its_phases(three)
    worlds_priors_and_labels_are_the_same_bytes(three)
    for name in RUNS:
        another_process_has_the_same_bits(three, name)
    for name in KILLED:
        a_run_killed_after_a_step_has_the_same_bits(three, name)


# --- torchvision ----------------------------------------------------------------------------------------------------


def torchvision_is_not_used(two: dict[str, Path]) -> None:
    """Nothing here imports it. Of transformers one module does, with any model at all, where it is installed: for names
    that it needs in its own processors, which are not used."""
    package = Path(__file__).parents[1] / "src" / "l2l"
    own = re.compile(r"^\s*(import|from)\s+torchvision|import_module\(.torchvision", re.MULTILINE)
    assert not [path for path in package.rglob("*.py") if own.search(path.read_text(encoding="utf-8"))]
    assert set((two["with"] / "met.txt").read_text().splitlines()) == {"imported by transformers.image_utils"}
    assert (two["with"].parent / "met").read_text().endswith("called pil_to_tensor\n")


def priors_do_not_depend_on_torchvision(two: dict[str, Path], kind: str) -> None:
    without, with_ = (rows(root / f"priors {kind}") for root in two.values())
    assert without and without == with_


def trajectories_and_predictions_do_not_depend_on_torchvision(two: dict[str, Path]) -> None:
    same_run(two["without"] / "run", two["with"] / "run")
    assert labels(two["without"]) == labels(two["with"])
    assert np.array_equal(*(np.load(root / "mask.npy") for root in two.values()))


def test_nothing_depends_on_torchvision(tmp_path: Path) -> None:
    """Pretrained parts without torchvision and with one that notes its use."""
    if find_spec("transformers") is None:
        pytest.skip("no transformers here")
    (tmp_path / "met").touch()
    fake = {"PYTHONPATH": str(fake_torchvision(tmp_path / "fake")), "MET": str(tmp_path / "met")}
    two = processes(tmp_path, "pretrained", {"without": {}, "with": fake})
    torchvision_is_not_used(two)
    for kind in FAMILIES:
        priors_do_not_depend_on_torchvision(two, kind)
    trajectories_and_predictions_do_not_depend_on_torchvision(two)


# --- references -----------------------------------------------------------------------------------------------------


def apart(found: Any, known: Any, near: Callable[[str, float], float], where: str = "") -> list[str]:
    """Where two references differ by more than `near(place, value)`, in words."""
    if isinstance(known, dict):
        if set(known) != set(found):
            return [f"{where}: {sorted(set(known) ^ set(found))}"]
        return [line for name in known for line in apart(found[name], known[name], near, f"{where}/{name}")]
    if isinstance(known, list):
        if len(known) != len(found):
            return [f"{where}: {len(found)} for {len(known)}"]
        return [line for at, one in enumerate(known) for line in apart(found[at], one, near, f"{where}/{at}")]
    if isinstance(known, float) and math.isfinite(known):
        return [f"{where}: {found} for {known}"] if not abs(found - known) <= near(where, known) else []
    return [] if found == known or (known != known and found != found) else [f"{where}: {found} for {known}"]


NEAR = {"/first": 1e-4, "/steps": 1e-2, "/labels": 1e-2, "/mean": 1e-2, "/mIoU": 2e-2, "/probes": 5e-2}


def near(where: str, known: float) -> float:
    """How far a trajectory may be from its reference: a share of the value, or of 0.1 where that is larger.

    Another processor rounds otherwise, and each step makes that larger. Weights that start off by one unit in the last
    place, up or down at random, ended within 5e-4 of the logged values of l2l, 3e-4 of its scores and 2e-2 of a probe
    (a rank among few cells); 20 times that, and 2.5 times for the probes, is allowed.
    """
    return next(share for start, share in NEAR.items() if where.startswith(start)) * max(abs(known), 0.1)


def test_trajectories_are_those_of_the_references(tmp_path: Path) -> None:
    for name, value in trace(tmp_path, NAMES).items():
        known = json.loads((REFERENCES / f"{name}.json").read_text(encoding="utf-8"))
        assert apart(json.loads(json.dumps(value)), known, near) == [], name


def test_a_reference_is_missed_by_what_it_says() -> None:
    known = {"step": 10, "loss": [1.0, 2.0], "name": "a", "nothing": math.nan}
    assert apart(known, known, lambda *_: 0.0) == []
    for other in ({"step": 11}, {"loss": [1.0, 2.2]}, {"loss": [1.0]}, {"name": "b"}, {"more": 1}):
        assert len(apart(known | other, known, lambda *_: 0.1)) == 1
    assert apart(known | {"loss": [1.05, 2.0]}, known, lambda *_: 0.1) == []


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"every_method": every_method, "pretrained": pretrained}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
