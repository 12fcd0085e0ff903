"""How fast, and how much memory: ratios of methods in one run, on this machine.

    python benchmarks/speed.py step [--methods fixmatch,l2l] [--steps 20] [--size 96x96]
    python benchmarks/speed.py sentences [--size 96x96]
    python benchmarks/speed.py outlines

`step` times the training steps of some methods by turns, so that whatever else the machine does falls on all alike: in
the phase in which L2L learns from held-out labels (a tenth to 40 % of a run) and in the one after it; what share of a
step goes into batches and views; and, each method in a process of its own, by how much memory grows while it trains
(on a CPU: on Linux only). The first method is the measure. `sentences` times a picture with one and with twenty
sentences, from the picture to the masks. `outlines` times what these cost (`l2l.outlines`), beside bilinear
interpolation, for networks and pictures of several sizes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from l2l.benchmark_suites import SCENES
from l2l.config import Config
from l2l.priors.make import make_priors
from l2l.training.loop import Run, train, train_step
from l2l.training.prepare import prepare, read_data

PICTURES = 300


def configure(args: argparse.Namespace, folder: Path) -> Config:
    """The benchmark's settings on fewer pictures, with a simulated prior."""
    height, width = (int(side) for side in args.size.split("x"))
    config = SCENES.replace("data", scenes_count=PICTURES, height=height, width=width, rate=0.1, prior="")
    store = folder / "prior"
    if not store.exists():
        make_priors(read_data(config.data), store, source="simulated", accuracy=0.6).close()
    return config.replace("data", prior=str(store)).replace("train", device=args.device, probe_pairs=1)


def clock(device: str) -> float:
    """Seconds, once the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


class Views:
    """Counts the seconds that a run spends on batches and views."""

    def __init__(self, run: Run, device: str):
        self.seconds = 0.0
        weak = run.parts.weak

        def timed(*args: object, **named: object) -> object:
            began = clock(device)
            made = weak(*args, **named)  # type: ignore[arg-type]
            self.seconds += clock(device) - began
            return made

        object.__setattr__(run.parts, "weak", timed)


def step(args: argparse.Namespace, folder: Path) -> None:
    """Seconds a step by turns, and memory."""
    config = configure(args, folder)
    methods = args.methods.split(",")
    runs = {name: Run.start(own, prepare(own)) for name in methods for own in [config.replace("train", method=name)]}
    views = {name: Views(run, args.device) for name, run in runs.items()}
    steps = config.train.steps
    phases = {"while L2L learns": round(0.2 * steps), "after the release": round(0.7 * steps)}
    print(f"{args.device}, {torch.get_num_threads()} threads, {args.size}, batch {config.train.labelled} + "
          f"{config.train.unlabelled}, {args.steps} steps each, by turns")  # fmt: skip
    for phase, first in phases.items():
        taken: dict[str, list[float]] = {name: [] for name in methods}
        for run in runs.values():
            run.step = first
        for name in methods:  # once to warm up
            train_step(runs[name])
            views[name].seconds = 0
        for _ in range(args.steps):
            for name in methods:
                began = clock(args.device)
                train_step(runs[name])
                taken[name].append(clock(args.device) - began)
        base = statistics.median(taken[methods[0]])
        for name, seconds in taken.items():
            middle, data = statistics.median(seconds), views[name].seconds / sum(seconds)
            print(f"{phase:18s} {name:16s} {1000 * middle:7.0f} ms a step (from {1000 * min(seconds):.0f}), "
                  f"{middle / base:.2f} x {methods[0]}; batches and views {data:.1%}")  # fmt: skip
    context = multiprocessing.get_context("spawn")
    grown = {}
    for name in methods:
        with context.Pool(1) as pool:
            grown[name] = pool.apply(memory, (config.replace("train", method=name),))
    for name, size in grown.items():
        print(f"memory {name:16s} grows by {size / 2**20:.0f} MiB, {size / grown[methods[0]]:.2f} x {methods[0]}")


def memory(config: Config) -> int:
    """Bytes by which memory grows at most while a method trains for a few steps."""
    torch.set_num_threads(1)
    run = Run.start(config, prepare(config))
    cuda = config.train.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    run.step = round(0.2 * config.train.steps)
    for _ in range(4):
        train_step(run)
    return (torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")) - before


def resident(what: str) -> int:
    """Bytes of this process in memory, now (`VmRSS`) or at the peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def sentences(args: argparse.Namespace, folder: Path) -> None:
    """One picture with one and with twenty sentences."""
    from l2l.predict import Predictor

    config = configure(args, folder).replace("train", method="supervised", steps=2)
    predictor = Predictor(train(config, folder / "run"))
    asked = [sentence for sample in read_data(config.data).split("val") for sentence in sample.sentences][:20]
    taken: dict[int, list[float]] = {1: [], 20: []}
    for turn in range(args.steps + 2):
        for count, seconds in taken.items():
            began = clock(args.device)
            predictor.set_image(f"scenes:home:0:{turn}")
            predictor.segment_all(asked[:count])
            if turn > 1:
                seconds.append(clock(args.device) - began)
    one, many = (statistics.median(seconds) for seconds in taken.values())
    print(f"{args.device}, {torch.get_num_threads()} threads, {args.size}: one sentence {1000 * one:.1f} ms, twenty "
          f"{1000 * many:.1f} ms, {many / one:.2f} x")  # fmt: skip


def outlines(args: argparse.Namespace, folder: Path) -> None:
    """A picture made ready, and a mask of it, with outlines and without."""
    from l2l.outlines import Picture, upsample
    from l2l.training.pool import resize

    rng = np.random.default_rng(0)
    for seen, own in (((96, 96), (96, 96)), ((144, 96), (320, 210)), ((96, 96), (480, 640)), ((480, 480), (480, 640))):
        pixels, logits = rng.integers(0, 255, (*own, 3), dtype=np.uint8), torch.randn(seen[0] // 4, seen[1] // 4)
        small = resize(pixels, seen)
        ready = Picture(pixels, small)
        ways = {"made ready": partial(Picture, pixels, small), "a mask": partial(ready.mask, logits),
                "bilinear": partial(upsample, logits, own)}  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.steps):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - began)
        said = ", ".join(f"{name} {1000 * statistics.median(seconds):.1f} ms" for name, seconds in taken.items())
        print(f"{torch.get_num_threads()} threads, seen at {seen[0]}x{seen[1]}, picture {own[0]}x{own[1]}: {said}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("step", "sentences", "outlines"))
    parser.add_argument("--methods", default="fixmatch,l2l")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="96x96")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        {"step": step, "sentences": sentences, "outlines": outlines}[args.what](args, Path(folder))


if __name__ == "__main__":
    main()
