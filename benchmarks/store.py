"""A prior store with a million priors: how long to open it, and how many priors a second come out of it.

    python benchmarks/store.py [--priors 1000000] [--batches 1000] [--log results/reliability/store.log]

Writes the store through `PriorStore.put` in a temporary folder (one box a prior, a small mask besides in each
twentieth), then, each in a process of its own: opens it and looks a pair up, as a training does at its start; counts;
asks for batches of 32 random keys; and for a stretch of keys at once, as `read_priors` does. Each with a cold page
cache (the file's pages are given back with `posix_fadvise`; `mib_from_disk` says how much was then read) and a warm
one. `s` is seconds of the clock; `cpu_s` is processor time, which is what counts where other work runs beside.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from l2l.priors.prior import Prior
from l2l.priors.store import FILE, PriorStore
from l2l.rle import Rle

CHUNK, BATCH = 20_000, 32
STRETCH = 20_000


def key_of(number: int) -> str:
    """What `l2l.sample.pair_key` gives: 32 hex digits, in no order."""
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).hexdigest()


def prior_of(number: int) -> Prior:
    """A box somewhere; in each twentieth a mask of 16 x 16 as well."""
    x, y = (number * 7 % 60) / 100, (number * 13 % 60) / 100
    mask = None
    if number % 20 == 0:
        drawn = np.zeros((16, 16), bool)
        drawn[int(16 * y) :, int(16 * x) :] = True
        mask = Rle.encode(drawn)
    return Prior(boxes=((x, y, x + 0.3, y + 0.35),), scores=(round(0.5 + (number % 45) / 100, 2),), mask=mask)


def write(folder: Path, count: int) -> dict[str, Any]:
    """Fill a store; the keys of a chunk in their order, which SQLite likes."""
    began, used = time.perf_counter(), time.process_time()
    store = PriorStore(folder, create=True)
    for start in range(0, count, CHUNK):
        keys = sorted((key_of(number), number) for number in range(start, min(start + CHUNK, count)))
        store.put((key, prior_of(number)) for key, number in keys)
    store.close()
    return _row("write", began, used, count) | {"mib": round((folder / FILE).stat().st_size / 2**20, 1)}


def open_it(folder: Path, count: int, _: int) -> dict[str, Any]:
    """Open the store, ask whose it is, and look up one pair that is there and one that is not."""
    began, used = time.perf_counter(), time.process_time()
    store = PriorStore(folder)
    store.about()
    found = store.get([key_of(count // 2), key_of(count)])
    row = _row("open", began, used)
    assert list(found) == [key_of(count // 2)]
    return row


def count_it(folder: Path, count: int, _: int) -> dict[str, Any]:
    """Open and count."""
    began, used = time.perf_counter(), time.process_time()
    assert len(PriorStore(folder)) == count
    return _row("open and count", began, used)


def batches(folder: Path, count: int, many: int) -> dict[str, Any]:
    """Batches of random keys."""
    draw = random.Random(0)
    asked = [[key_of(draw.randrange(count)) for _ in range(BATCH)] for _ in range(many)]
    store = PriorStore(folder)
    began, used = time.perf_counter(), time.process_time()
    for keys in asked:
        assert len(store.get(keys)) == len(set(keys))
    return _row(f"batches of {BATCH}", began, used, many * BATCH)


def stretch(folder: Path, count: int, _: int) -> dict[str, Any]:
    """Many keys in one call."""
    keys = [key_of(number * 31 % count) for number in range(min(STRETCH, count))]
    store = PriorStore(folder)
    began, used = time.perf_counter(), time.process_time()
    assert len(store.get(keys)) == len(set(keys))
    return _row(f"{len(keys)} in one call", began, used, len(keys))


def _row(what: str, began: float, used: float, priors: int = 0) -> dict[str, Any]:
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    row = {"what": what, "s": round(seconds, 4), "cpu_s": round(cpu, 4)}
    if priors:
        row |= {"priors_per_s": round(priors / seconds), "priors_per_cpu_s": round(priors / cpu)}
    return row


def alone(work: Callable[[Path, int, int], dict[str, Any]], folder: Path, count: int, many: int, *, cold: bool
          ) -> dict[str, Any]:  # fmt: skip
    """Once, in a process that has not seen the store."""
    if cold:
        number = os.open(folder / FILE, os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        row, read = pool.apply(_measured, (work, folder, count, many))
    return row | {"cache": "cold" if cold else "warm", "mib_from_disk": round(read / 2**20, 2)}


def _measured(work: Callable[..., dict[str, Any]], *args: Any) -> tuple[dict[str, Any], int]:
    before = _from_disk()
    return work(*args), _from_disk() - before


def _from_disk() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--priors", type=int, default=1_000_000)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    lines = [json.dumps({"command": f"python benchmarks/store.py --priors {args.priors} --batches {args.batches}",
                         "load": round(os.getloadavg()[0], 1), "nice": os.nice(0)})]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines.append(json.dumps(write(folder, args.priors)))
        print(*lines, sep="\n", flush=True)
        for work in (open_it, count_it, batches, stretch):
            for cold in (True, False):
                lines.append(json.dumps(alone(work, folder, args.priors, args.batches, cold=cold)))
                print(lines[-1], flush=True)
    if args.log:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        args.log.write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
