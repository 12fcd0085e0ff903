"""A large pool of synthetic pairs through `l2l prior`, `l2l data shard` and `l2l label`: flat, linear?

    python benchmarks/pool.py [--pairs 100000] [--parts 8,4,2,1] [--steps prior,shard,...] [--log FILE]

Makes pools of an eighth, a quarter, a half and all of the pairs (`--parts`): pictures of 64 x 64 pixels with four
rectangles, ten pairs on each, every pair with its true mask. For each pool: a simulated prior into a store, the same
once more, shards of 1,000 pairs, labels of the shards, and labels of the pool in one piece, by the smallest network
there is, at 32 x 32, so that the time is the machinery's. Each step is a process of its own; `peak_mib` is the most
memory it had, `own_mib` the most that is not a mapped file (looked at every quarter of a second), `cpu_s` its processor
time. On Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from l2l.cli import main as l2l
from l2l.rle import Rle

SIDE, PAIRS_ON_ONE, PER_SHARD = 64, 10, 1000
COLOURS = {"red": (220, 40, 40), "green": (50, 190, 60), "blue": (60, 80, 220), "yellow": (230, 210, 60)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
SMALL = {
    "model.channels": "8,8,8,8", "model.depths": "1,1,1,1", "model.width": "8", "model.text_width": "8",
    "model.text_depth": "1", "train.labelled": "2", "train.held_out": "2", "train.unlabelled": "2",
    "train.probe_pairs": "2", "train.precision": "float32",
}  # fmt: skip
FLAT = {"shard labels": 32.0}
"""Steps whose own memory must not grow with the pool: at most so many MiB more for all pairs than for an eighth."""
LINEAR = 1.3
"""Processor time of a pair of the whole pool, at most, against that of an eighth."""


def make_pool(folder: Path, pairs: int, seed: int = 0) -> None:
    """A folder with `metadata.jsonl`."""
    draw = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as file:
        for first in range(0, pairs, PAIRS_ON_ONE):
            pixels = np.full((SIDE, SIDE, 3), draw.randrange(60, 200), np.uint8)
            pixels[::3] += 20
            found = []
            for place, name in enumerate(PLACES):
                colour = draw.choice(list(COLOURS))
                y, x = 32 * (place // 2) + draw.randrange(2, 8), 32 * (place % 2) + draw.randrange(2, 8)
                mask = np.zeros((SIDE, SIDE), bool)
                mask[y : y + draw.randrange(10, 22), x : x + draw.randrange(10, 22)] = True
                pixels[mask] = COLOURS[colour]
                found.append((f"the {colour} box at the {name}", Rle.encode(mask).to_coco()))
            Image.fromarray(pixels).save(folder / "images" / f"{first}.png")
            for number in range(first, min(first + PAIRS_ON_ONE, pairs)):
                sentence, mask = found[number % len(found)]
                file.write(json.dumps({"id": f"p{number}", "file_name": f"images/{first}.png", "mask": mask,
                                       "sentence": f"{sentence}, {number % PAIRS_ON_ONE}"}) + "\n")  # fmt: skip


def status(pid: int, what: str) -> float:
    """MiB of a process, by a line of its `/proc/PID/status`; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what + ":")), 0.0)
    except OSError:
        return 0.0


def measured(command: Sequence[str], cache: Path) -> dict[str, float]:
    """`l2l` with these arguments in a fork of this process, which has imported all that is heavy."""
    sys.stdout.flush()
    began, own = time.perf_counter(), 0.0
    if not (pid := os.fork()):
        code = 1
        with contextlib.suppress(BaseException), contextlib.redirect_stderr(io.StringIO()) as said:
            os.environ["L2L_CACHE"] = str(cache)
            code = l2l(list(command))
        if code:
            os.write(2, said.getvalue()[-2000:].encode())
        sys.stdout.flush()
        os._exit(code)
    while True:
        own = max(own, status(pid, "RssAnon"))
        done, code, used = os.wait4(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.25)
    if code:
        raise SystemExit(f"l2l {' '.join(command[:2])} failed")
    return {"s": round(time.perf_counter() - began, 1), "cpu_s": round(used.ru_utime + used.ru_stime, 2),
            "peak_mib": round(used.ru_maxrss / 1024, 1), "own_mib": round(own, 1)}  # fmt: skip


def steps(folder: Path, run: Path) -> dict[str, list[str]]:
    """What is measured, with the arguments of `l2l`."""
    data, store, shards = (str(folder / name) for name in ("data", "priors", "shards"))
    return {
        "prior": ["prior", data, "--source", "simulated", "--out", store],
        "prior once more": ["prior", data, "--source", "simulated", "--out", store],
        "shard": ["data", "shard", data, "--out", shards, "--per-shard", str(PER_SHARD)],
        "shard labels": ["label", str(run), "--shards", shards, "--prior", store, "--all", "--out",
                         str(folder / "shard-labels")],
        "labels": ["label", str(run), "--data", data, "--prior", store, "--all", "--out", str(folder / "labels")],
    }  # fmt: skip


def make_run(folder: Path) -> Path:
    """The smallest run, on the smallest pool."""
    make_pool(folder / "data", 200)
    settings = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    data, run = str(folder / "data"), folder / "run"
    measured(["train", "--data", data, "--method", "supervised", "--rate", "0.5", "--size", "32x32", "--steps", "2",
              "--out", str(run), *settings], folder / "cache")  # fmt: skip
    return run


def judge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each step: how memory and time grow from the smallest pool to the largest."""
    sizes = sorted({row["pairs"] for row in rows})
    found = []
    for step in dict.fromkeys(row["step"] for row in rows):
        few, many = (next(row for row in rows if (row["step"], row["pairs"]) == (step, size))
                     for size in (sizes[0], sizes[-1]))  # fmt: skip
        more = many["own_mib"] - few["own_mib"]
        each = many["cpu_s"] / many["pairs"], few["cpu_s"] / few["pairs"]
        most = FLAT.get(step)
        found.append({
            "step": step, "from_pairs": few["pairs"], "to_pairs": many["pairs"], "own_mib_more": round(more, 1),
            "kb_a_pair": round(1024 * more / (many["pairs"] - few["pairs"]), 2), "most_mib_more": most,
            "cpu_s_per_1000": [round(1000 * one, 3) for one in each[::-1]], "time_ratio": round(each[0] / each[1], 2),
            "held": each[0] <= LINEAR * each[1] and (most is None or more <= most),
        })  # fmt: skip
    return found


def measure(sizes: Sequence[int], chosen: Sequence[str], folder: Path, log: Any) -> list[dict[str, Any]]:
    """The chosen steps for all sizes; one row each."""
    rows = []
    run = make_run(folder / "small")
    for pairs in sizes:
        here = folder / str(pairs)
        make_pool(here / "data", pairs)
        for step, command in steps(here, run).items():
            if step not in chosen:
                continue
            rows.append({"pairs": pairs, "step": step, **measured(command, here / "cache" / step.replace(" ", "-"))})
            log(rows[-1])
        for kind, found in (("shard-labels", "labels-*.jsonl"), ("labels", "labels.jsonl")):
            lines = sum(len(path.read_bytes().splitlines()) for path in (here / kind).glob(found))
            assert lines == pairs or not (here / kind).exists(), f"{lines} labels of {pairs} pairs"
    return rows


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--parts", default="8,4,2,1", help="what the pairs are divided by")
    parser.add_argument("--steps", default=",".join(steps(Path(), Path())))
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []

    def log(row: dict[str, Any]) -> None:
        lines.append(json.dumps(row))
        print(lines[-1], file=sys.stderr, flush=True)
        if args.log:
            args.log.parent.mkdir(parents=True, exist_ok=True)
            args.log.write_text("".join(line + "\n" for line in lines))

    import l2l.label  # noqa: F401  # before the forks
    import l2l.scale.label_shards  # noqa: F401

    command = f"python benchmarks/pool.py --pairs {args.pairs} --parts {args.parts} --steps '{args.steps}'"
    log({"command": command, "cores": os.cpu_count(), "nice": os.nice(0),
         "python": platform.python_version(), "torch": torch.__version__,
         "start_mib": round(status(os.getpid(), "RssAnon"), 1)})  # fmt: skip
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        sizes = [args.pairs // int(part) for part in args.parts.split(",")]
        rows = measure(sizes, args.steps.split(","), Path(name), log)
    verdict = judge(rows) if len(sizes) > 1 else []
    for row in verdict:
        log(row)
    raise SystemExit(not all(row["held"] for row in verdict))


if __name__ == "__main__":
    main()
