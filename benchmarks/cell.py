"""One cell of the benchmark with settings of its own, outside the benchmark's folder: to tell parts apart.

    python benchmarks/cell.py OUT SUITE ROW COLUMN SEED [--root ../shared/data] [--set A.B=C]

As in `python benchmarks/cell.py runs/one fashion l2l "5 %" 0 --set rple.candidates=1`. Prints val mIoU with the prior
and without it. Goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from l2l.benchmark_cell import ROOT, resolve
from l2l.benchmark_suites import SUITES
from l2l.errors import InputError
from l2l.evaluate import evaluate
from l2l.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("suite")
    parser.add_argument("row")
    parser.add_argument("column")
    parser.add_argument("seed", type=int)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = (args.suite, args.row, args.column, args.seed)
    cells = [one for suite in SUITES for one in suite.cells if (one.suite, one.row, one.column, one.seed) == wanted]
    if not cells:
        raise InputError(f"no cell {wanted}; `l2l benchmark --list` has them all")
    config = resolve(cells[0].config.override(*args.set), args.root, Path("results/benchmark"))
    run = train(config, args.out, resume=True)
    with_prior = evaluate(run, save=False)[0]
    without = evaluate(run, no_prior=True, save=False)[0]
    print(*wanted, *args.set, f"val mIoU {100 * with_prior.scores.miou:.2f} / {100 * without.scores.miou:.2f}")


if __name__ == "__main__":
    main()
