"""One cell of the benchmark: places for its data, its training, its measures, and the JSON that keeps them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l.benchmark_suites import Cell
from l2l.config import Config
from l2l.data.durable import write_durably
from l2l.errors import InputError

if TYPE_CHECKING:
    from l2l.evaluate import Evaluation
    from l2l.priors.prior import Source
    from l2l.sample import Sample

ROOT = Path("../shared/data")
SHOWN_LOGS = 50
"""Logs are kept every so many steps."""
CODE = ("data", "labelling", "methods", "model", "priors", "proposals", "training")
Progress = Callable[[int, int, dict[str, float]], None]


def cell_file(out: Path, key: str) -> Path:
    """Where a cell's results are kept."""
    return out / "cells" / f"{key}.json"


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; yields whether it is ours. The system frees it when its process dies, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(f"{os.getpid()}\n")  # for people: who holds it, or held it last
        file.flush()
        yield True


def missing_data(config: Config, root: Path) -> str:
    """What to do about data that a configuration names and that is not there; empty if all is well."""
    name = config.data.data
    if name == "scenes":
        return ""
    if name != "fashion":
        return f"the benchmark knows the data sets scenes and fashion, not {name}"
    if not (root / name).is_dir():
        return f"no folder {name} in {root}: put the data set there, or name the folder that holds it with --root"
    return ""


def resolve(config: Config, root: Path, out: Path, say: Callable[[str], None] = print) -> Config:
    """The configuration with real places. A prior store that is not there yet is made, under `out`/work/priors.

    Args:
        root: the folder that holds `fashion/`. out: the benchmark's folder.

    Raises:
        InputError: if the data is not there, or there is no such prior.
    """
    if why := missing_data(config, root):
        raise InputError(why)
    data, folder = config.data, (root / config.data.data).resolve()
    placed = config
    if data.data != "scenes":
        placed = placed.replace("data", data=str(folder))
        if data.unlabelled == "own":
            placed = placed.replace("data", unlabelled=str(folder / "unlabelled.jsonl"))
    if data.prior == "own":
        if not (folder / "priors.jsonl").is_file():
            raise InputError(f"the data set {data.data} has no priors.jsonl of its own")
        placed = placed.replace("data", prior=str(folder / "priors.jsonl"))
    elif data.prior:
        placed = placed.replace("data", prior=str(_store(placed, data.prior, out, say).resolve()))
    return placed


def _store(config: Config, name: str, out: Path, say: Callable[[str], None]) -> Path:
    """The prior store of a data set, made once: whoever comes second waits."""
    from l2l.priors.store import PriorStore, fill
    from l2l.training.prepare import read_data

    data = config.data
    about = (data.data, data.scenes_world, data.scenes_count, data.scenes_seed, source_of(name, []).fingerprint())
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=6).hexdigest()
    store = out / "work" / "priors" / f"{Path(data.data).name}-{name.partition(':')[0]}-{digest}"
    if store.is_dir():
        return store
    with locked(store.with_suffix(".lock"), wait=True):
        if store.is_dir():
            return store
        samples = read_data(data).samples
        say(f"priors: asking {name} about {len(samples)} referents of {Path(data.data).name}")
        part = store.with_suffix(".part")  # of a process that was killed: what it has is not asked again
        made = PriorStore(part, create=True)
        for _ in fill(made, source_of(name, samples), samples):
            pass
        made.close()
        os.replace(part, store)
    return store


def source_of(name: str, samples: Sequence[Sample]) -> Source:
    """The frozen model that `data.prior` names. Raises `InputError` if there is none, or an option is unknown."""
    from l2l.priors.grounder import Grounder
    from l2l.priors.simulated import Simulated

    kind, _, text = name.partition(":")
    if name == "grounder":
        return Grounder()
    if kind != "simulated":
        raise InputError(f"no prior {name!r}; there are grounder, own and simulated:accuracy=0.5,errors=random,seed=0")
    defaults: dict[str, Any] = {one.name: one.default for one in fields(Simulated) if not one.name.startswith("_")}
    options: dict[str, Any] = {}
    for option, _, value in (part.partition("=") for part in filter(None, text.split(","))):
        if option not in defaults or option == "samples":
            raise InputError(f"prior {name!r}: a simulated prior has no {option}")
        try:
            options[option] = type(defaults[option])(value)
        except ValueError as error:
            raise InputError(f"prior {name!r}: {error}") from error
    return Simulated(samples, **options)


def run_cell(
    cell: Cell, out: Path, *, root: Path = ROOT, device: str = "cpu", keep: bool = False,
    progress: Progress | None = None, say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, measure on `val`, write `out`/cells/KEY.json; goes on from the checkpoint of a run that was cut off.

    Args:
        root: the folder that holds `fashion/`. keep: leave the run in `out`/work/runs/KEY.
        progress: called with (step, steps, last logs).

    Returns:
        What the file holds.

    Raises:
        InputError: for missing data, a prior there is not, or a training that failed.
    """
    from l2l.training.loop import CONFIG, METRICS, train

    config = resolve(cell.config, root, out, say).replace("train", device=device)
    run = out / "work" / "runs" / cell.key
    state = run / "code.txt"
    if (run / CONFIG).exists() and Config.load(run / CONFIG).hash() != config.hash():
        shutil.rmtree(run)  # begun when data or priors lay elsewhere
    elif run.exists() and not (state.exists() and state.read_text(encoding="ascii") == code_digest()):
        shutil.rmtree(run)  # begun by another state of the code: half of each would be neither
    run.mkdir(parents=True, exist_ok=True)
    write_durably(state, code_digest().encode())
    stopwatch = Stopwatch(run / "clock.json", config.train.save_every, progress)
    train(config, run, resume=True, progress=stopwatch)
    began = time.perf_counter()
    measured = _measure(run, config)
    logs, probes, events = read_log(run / METRICS)
    result = {
        "key": cell.key, "config": cell.config.to_json(), **measured, "probes": probes, "logs": logs, "events": events,
        "seconds": {"train": round(stopwatch.seconds, 2), "per_step": _short(stopwatch.seconds / config.train.steps),
                    "evaluate": round(time.perf_counter() - began, 2)},
        "machine": _machine(config),
    }  # fmt: skip
    path = cell_file(out, cell.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(result, ensure_ascii=False) + "\n").encode())
    if not keep:
        shutil.rmtree(run)
    return result


class Stopwatch:
    """Seconds of training over all pieces of a run, kept beside its checkpoint, and passes progress on."""

    def __init__(self, path: Path, every: int, progress: Progress | None):
        self.path, self.every, self.progress = path, every, progress
        self.seconds = float(json.loads(path.read_text(encoding="ascii"))) if path.exists() else 0.0
        self._last: float | None = None

    def __call__(self, step: int, steps: int, logs: dict[str, float]) -> None:
        now = time.perf_counter()
        self.seconds += logs["seconds"] if self._last is None else now - self._last  # of the first step: its own
        self._last = now
        if step % self.every == 0 or step == steps:
            write_durably(self.path, str(self.seconds).encode())
        if self.progress:
            self.progress(step, steps, logs)


def _measure(run: Path, config: Config) -> dict[str, Any]:
    """`scores` with the prior, without it and of the prior alone, `calibration` of the expected IoU with the prior,
    without it, and of rho; `data`, what was found."""
    from l2l.evaluate import evaluate
    from l2l.training.loop import ABOUT

    found: dict[str, Evaluation] = {}
    if config.train.method != "prior_only":
        found["no_prior"] = evaluate(run, no_prior=True, save=False)[0]
    if config.data.prior:
        for one in evaluate(run, save=False):
            found["prior_alone" if one.method == "prior alone" else "prior"] = one
    data = config.data
    kinds = _kinds(data.scenes_count, data.scenes_seed, data.scenes_world) if data.data == "scenes" else {}
    about = json.loads((run / ABOUT).read_text(encoding="utf-8"))
    names = ("data", "fingerprint", "split_hash", "labelled_images", "images", "labelled_refs", "refs", "pairs",
             "pairs_with_prior", "prior", "prior_simulated")  # fmt: skip
    scores_mean = {how: one.calibration.to_json() for how, one in found.items() if how != "prior_alone"}
    if "prior" in found and (rho := found["prior"].rho_calibration):
        scores_mean["rho"] = rho.to_json()
    return {
        "scores": {how: one.scores.to_json() | _by_kind(one, kinds) for how, one in found.items()},
        "calibration": scores_mean,
        "data": {name: about[name] for name in names},
    }


@lru_cache(maxsize=4)
def _kinds(count: int, seed: int, world: str) -> dict[str, str]:
    """Kind of each sentence of drawn scenes, by id."""
    from l2l.data.read import read
    from l2l.data.scene_sentences import kind_of

    samples = read("scenes", scenes_count=count, scenes_seed=seed, scenes_world=world).samples
    pairs = (pair for sample in samples for pair in sample.pairs())
    return {key: kind_of(sentence) for key, sentence in pairs}


def _by_kind(one: Evaluation, kinds: dict[str, str]) -> dict[str, Any]:
    """mIoU by kind of sentence, where kinds are known."""
    ious: dict[str, list[float]] = {}
    for pair in one.pairs if kinds else ():
        ious.setdefault(kinds[pair.id], []).append(pair.iou)
    return {"kinds": {kind: {"mIoU": sum(own) / len(own), "n": len(own)} for kind, own in sorted(ious.items())}}


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(logs every `SHOWN_LOGS` steps and the last, all probes, all events) of a `metrics.jsonl`."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    probes = [{"step": one["step"], **_shorten(one["probe"])} for one in lines if "probe" in one]
    events = [one for one in lines if "event" in one]
    logs = [one for one in lines if "probe" not in one and "event" not in one]
    last = len(logs) - 1
    return [_shorten(one) for at, one in enumerate(logs) if one["step"] % SHOWN_LOGS == 0 or at == last], probes, events


def _shorten(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _short(value) if isinstance(value, float) else value for name, value in values.items()}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _machine(config: Config) -> dict[str, Any]:
    """What the numbers were made on; no names, no places."""
    import torch

    from l2l.training.prepare import choose_precision

    device = torch.device(config.train.device)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": device.type, "kind": kind, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "precision": str(choose_precision(config)).removeprefix("torch."),
        "code": code_digest(),
    }  # fmt: skip


@lru_cache(maxsize=1)
def code_digest() -> str:
    """8 hex digits of everything that a training runs through, as it was when this process first asked."""
    package = Path(__file__).parent
    files = [path for folder in CODE for path in (package / folder).rglob("*.py")]
    about = hashlib.blake2b(digest_size=4)
    for path in sorted([*files, package / "evaluate.py", package / "metrics.py"]):
        about.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return about.hexdigest()
