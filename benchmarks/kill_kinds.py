"""The commands that `kill.py` kills, what must be the same in the end, and how their last write can be torn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SMALL = {
    "model.channels": "8,12,16,20", "model.depths": "1,1,1,1", "model.width": "8", "model.text_width": "16",
    "train.labelled": "2", "train.held_out": "2", "train.unlabelled": "2", "train.probe_pairs": "4",
    "train.precision": "float32", "train.save_every": "2", "train.probe_every": "4", "rple.samples": "2",
}  # fmt: skip
UNFINISHED = ".draft", ".part", ".tmp", ".lock", "-wal", "-shm", "-journal"


def train_arguments(world: Path, out: Path, *more: str, steps: int) -> list[str]:
    """`l2l train` of a tiny network."""
    chosen = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    given = ["--data", str(world / "data"), "--prior", str(world / "priors"), "--rate", "0.4", "--size", "32x32"]
    return ["train", *given, "--out", str(out), "--steps", str(steps), *chosen, *more]


def grid(out: Path, workers: int) -> int:
    """A benchmark of three cells; returns how many failed."""
    from l2l.benchmark import benchmark
    from l2l.benchmark_suites import Cell, Suite
    from l2l.config import Config

    tiny = Config().replace("data", data="scenes", scenes_count=20, prior="simulated:accuracy=0.8,errors=random,seed=0",
                            rate=0.4, height=32, width=32)  # fmt: skip
    tiny = tiny.replace("model", channels=(8, 12, 16, 20), depths=(1, 1, 1, 1), width=8, text_width=16)
    tiny = tiny.replace("train", steps=6, labelled=2, held_out=2, unlabelled=2, probe_pairs=4, save_every=2,
                        probe_every=4, precision="float32", burn_in=0.25)  # fmt: skip
    cells = tuple(Cell("tiny", method, "40 %", 0, tiny.replace("train", method=method))
                  for method in ("l2l", "supervised", "fixmatch"))  # fmt: skip
    return benchmark([Suite("tiny", "Tiny", "Is anything lost?", "labels", cells)], out, workers=workers)


@dataclass(frozen=True)
class Kind:
    """One kind of command."""

    name: str
    argv: Callable[[Path], list[str]]
    """Its words, for the folder that it writes to."""
    made: Callable[[Path], dict[str, str]]
    """What must be the same in the end: a digest of each thing."""
    torn: Callable[[Path, random.Random], str] = lambda out, rng: ""
    """Tears the last write further; says how."""
    workers: bool = False
    """Its workers can be killed alone."""


def seen(out: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file in a folder."""
    found = {}
    for folder, _, names in os.walk(out):
        for name in names:
            with contextlib.suppress(OSError):
                told = os.stat(os.path.join(folder, name))
                found[os.path.relpath(os.path.join(folder, name), out)] = told.st_size, told.st_mtime_ns
    return found


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def files(*patterns: str) -> Callable[[Path], dict[str, str]]:
    """The bytes of all files of these names."""
    return lambda out: {str(path.relative_to(out)): digest(path.read_bytes())
                        for pattern in patterns for path in out.glob(pattern)}  # fmt: skip


def rows(out: Path) -> dict[str, str]:
    """The rows of a prior store, and whether SQLite finds it sound."""
    file = f"{(out / 'priors.sqlite').resolve().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(file, uri=True)) as store:
        found = {f"prior {key}": digest(value.encode()) for key, value in store.execute("SELECT key, value FROM prior")}
        told = {f"about {name}": str(value) for name, value in store.execute("SELECT name, value FROM about")}
        return found | told | {"sound": str(store.execute("PRAGMA integrity_check").fetchall())}


def cells(out: Path) -> dict[str, str]:
    """What the cells of a benchmark say, but for seconds and the machine."""
    found = {}
    for path in (out / "cells").glob("*.json"):
        told = json.loads(path.read_text())
        del told["seconds"], told["machine"]
        found[path.name] = digest(json.dumps(told).encode())
    return found | {"failed": str(len(list((out / "failed").glob("*"))) if (out / "failed").exists() else 0)}


def tear_lines(path: Path, rng: random.Random, keep: int) -> str:
    """Cut off the last bytes of a file of lines, but none of the first `keep`; or let half a line follow."""
    if not path.exists() or path.stat().st_size <= keep:
        return ""
    size = path.stat().st_size
    if rng.random() < 0.5:
        cut = rng.randint(1, min(60, size - keep))
        os.truncate(path, size - cut)
        return f"{path.name}: last {cut} bytes cut"
    with path.open("ab") as file:
        file.write(rng.choice([b'{"step": 1, "lo', b'{"id": "', b"\0" * 40, b"\xff\xfe{"]))
    return f"{path.name}: half a line more"


def tear_metrics(out: Path, rng: random.Random) -> str:
    """What was logged before the checkpoint is on the disk before it; what came later may be torn."""
    path, step = out / "metrics.jsonl", 0
    if not path.exists():
        return ""
    if (out / "checkpoint.safetensors").exists():
        from safetensors import safe_open

        with safe_open(out / "checkpoint.safetensors", "np") as file:
            step = json.loads(file.metadata()["l2l"])["step"]
    keep = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n") and json.loads(line)["step"] <= step:
            keep += len(line)
    return tear_lines(path, rng, keep)


def tear_store(out: Path, rng: random.Random) -> str:
    """The journal of a prior store loses its end: SQLite forgets the writes of which it was a part."""
    path = out / "priors.sqlite-wal"
    if not path.exists() or path.stat().st_size < 100:
        return ""
    cut = rng.randint(1, min(5000, path.stat().st_size - 32))
    os.truncate(path, path.stat().st_size - cut)
    return f"{path.name}: last {cut} bytes cut"


def half_read(out: Path) -> list[str]:
    """What is there and not whole, though its name says so: each file is read as its reader does."""
    from safetensors import safe_open

    wrong = []
    for name in seen(out):
        path = out / name
        if name.endswith(UNFINISHED) or "locks/" in name:
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np") as file:
                    json.loads(file.metadata()["l2l"])["step"]
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.name.startswith(("labels-", "priors-")) and path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_bytes().splitlines()]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a find
            wrong.append(f"{name} is not whole: {type(error).__name__} {error}")
    return wrong


def kinds(world: Path) -> dict[str, Kind]:
    """All but `serve`."""
    run = ("checkpoint.safetensors", "metrics.jsonl", "config.json", "split.json", "about.json")
    supervised = "--resume", "--method", "supervised"
    label, shards = ["label", str(world / "run"), "--no-prior"], ["--shards", str(world / "shards")]
    return {one.name: one for one in (
        Kind("train", lambda out: train_arguments(world, out, "--resume", steps=12), files(*run), tear_metrics),
        Kind("train supervised", lambda out: train_arguments(world, out, *supervised, steps=30), files(*run),
             tear_metrics),
        Kind("prior", lambda out: ["prior", "scenes", "--count", "300", "--source", "simulated", "--out", str(out)],
             rows, tear_store),
        Kind("prior --shards", lambda out: ["prior", *shards, "--out", str(out)], files("*.json", "*.jsonl")),
        Kind("label", lambda out: [*label, "--all", "--out", str(out)], files("labels.jsonl", "about.json"),
             lambda out, rng: tear_lines(out / "labels.jsonl", rng, 0)),
        Kind("label --shards", lambda out: [*label, "--all", *shards, "--out", str(out)], files("*.json", "*.jsonl")),
        Kind("benchmark", lambda out: ["grid", str(out), "1"], cells),
        Kind("benchmark, workers", lambda out: ["grid", str(out), "2"], cells, workers=True),
    )}  # fmt: skip
