"""What a GPU does with it: throughput, memory, and how much of the device's ceilings is reached; bf16 and compile.

    python benchmarks/gpu.py [--size 480x480] [--batch 16] [--backbone DIR --text DIR] [--variants float32,bf16]
    python benchmarks/gpu.py --device cpu --size 64x64 --batch 4 --steps 1      # tries the script, nothing more

The ceilings are measured first: the largest rate of a product of square matrices in the variant's precision, and of
copying memory. Then, for `fixmatch` and `l2l` (while it learns from held-out labels, its dearest phase) and for each
variant: pairs a second, peak memory, and the share of the matrix ceiling that the passes over the network reach, by the
operations that torch counts in them (`torch.utils.flop_counter`); inference too. Backbones are folders of transformers
models, with whatever weights; without, the compact network. Where there is no GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from l2l.benchmark_suites import SCENES
from l2l.config import Config
from l2l.priors.make import make_priors
from l2l.training.loop import Run, train_step
from l2l.training.pool import normalise
from l2l.training.prepare import prepare, read_data

PICTURES = 300
METHODS = ("fixmatch", "l2l")
VARIANTS = {
    "float32": ("train.precision=float32",),
    "bf16": ("train.precision=bf16",),
    "compile": ("train.precision=bf16", "train.compile=true"),
}


def configure(args: argparse.Namespace, folder: Path) -> Config:
    """Drawn scenes at the size asked for, half of each batch labelled, with a simulated prior."""
    height, width = (int(side) for side in args.size.split("x"))
    config = SCENES.replace("data", scenes_count=PICTURES, height=height, width=width, rate=0.2, prior="")
    make_priors(read_data(config.data), folder / "prior", source="simulated", accuracy=0.6).close()
    config = config.replace("data", prior=str(folder / "prior"))
    if args.backbone or args.text:
        config = config.replace("model", backbone=args.backbone, text=args.text, text_width=256, start="")
    half = max(1, args.batch // 2)
    config = config.replace("train", labelled=half, unlabelled=half, held_out=half, device=args.device, probe_pairs=1)
    return config.override(*args.set)


def seconds(work: Callable[[], object], device: str, turns: int) -> float:
    """Median time of one turn, after two to warm up."""
    taken = []
    for turn in range(turns + 2):
        began = _now(device)
        work()
        if turn > 1:
            taken.append(_now(device) - began)
    return statistics.median(taken)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def ceilings(device: str) -> dict[str, float]:
    """Operations a second of matrix products in float32 (as torch does them) and bf16, and bytes a second copied."""
    side, size = (8192, 2**30) if device.startswith("cuda") else (256, 2**24)
    found = {}
    for name, kind in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        found[name] = 2 * side**3 / seconds(lambda a=a, b=b: a @ b, device, 10)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["memory"] = 2 * size / seconds(lambda: target.copy_(source), device, 10)
    return found


def operations(run: Run) -> int:
    """Floating point operations in the network's passes of one step, forwards and backwards."""
    with FlopCounterMode(display=False) as counter:
        train_step(run)
    return counter.get_total_flops()


def measure(config: Config, name: str, method: str, args: argparse.Namespace, most: dict[str, float]) -> str:
    """A line of the table."""
    config = config.replace("train", method=method).override(*VARIANTS[name])
    cuda = args.device.startswith("cuda")
    plain = Run.start(config.replace("train", compile=False), prepare(config))
    plain.step = first = round(0.2 * config.train.steps)
    count = operations(plain)
    del plain
    run = Run.start(config, prepare(config))
    run.step = first
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    took = seconds(lambda: train_step(run), args.device, args.steps)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:6.2f} GiB" if cuda else ""
    batch = run.parts.weak(torch.arange(args.batch), "labelled", 0)
    teacher = run.parts.teacher

    def infer() -> None:
        with torch.inference_mode(), run.parts.autocast():
            teacher(normalise(batch.image), batch.tokens, batch.proposals)

    asked = seconds(infer, args.device, args.steps)
    ceiling = most["float32" if name == "float32" else "bf16"]
    pairs = config.train.labelled + config.train.unlabelled
    return (f"{name:8s} {method:9s} {1000 * took:8.1f} ms a step, {pairs / took:8.1f} pairs/s, {memory} "
            f"{count / took / ceiling:6.1%} of the matrix ceiling; inference {args.batch / asked:8.1f} pairs/s"
            )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="480x480")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--backbone", default="", help="folder of a vision model")
    parser.add_argument("--text", default="", help="folder of a text model with its tokenizer")
    parser.add_argument("--variants", default="float32,bf16,compile")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here that torch can use: nothing was measured", file=sys.stderr)
        return 1
    most = ceilings(args.device)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{name}, torch {torch.__version__}, {args.size}, {args.batch} pairs a step; ceilings: matrices "
          f"{most['float32'] / 1e12:.1f} TFLOP/s in float32, {most['bf16'] / 1e12:.1f} in bf16, memory "
          f"{most['memory'] / 1e9:.0f} GB/s")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = configure(args, Path(folder))
        for variant in args.variants.split(","):
            for method in METHODS:
                print(measure(config, variant, method, args, most), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
