"""Hours of `l2l serve` under good and bad requests: does anything fail, and does anything grow?

    python benchmarks/soak.py [--minutes 60] [--rate 5] [--log results/reliability/soak.log]

Makes a small world, a run and its labels in a temporary folder, serves them as a process of their own at a free port
of loopback, and sends requests at random moments, so many a second on average. Three of four are good: sentences about
pictures (one and many, JSON and forms, RLE and PNG), the queue to review with decisions, labels, Label Studio's
protocol, health and metrics. The others are what nobody should send, or how: bodies too large with and without a
length, broken pictures, JSON without a bottom, wrong types, unknown ids, names of other hosts; clients that dribble, go
away in the middle, or take no answer. Every 10 seconds the server's memory, open files and threads are looked at (on
Linux only). The log holds what was asked, a line a minute, and a summary with each criterion; `judge` has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve import reached
from soak_requests import BAD, GOOD, NONSENSE, Clients

from l2l.cli import main as l2l
from l2l.exchange.decisions import CORRECTIONS
from l2l.exchange.labels import read_labels
from l2l.serving.app import DECODERS

LOOK = 10.0
"""Seconds between two looks at the server."""
AT_ONCE = 40
"""Requests that are open at the same time, at most."""


def make_run(folder: Path) -> tuple[Path, Path]:
    """A tiny run, as the tests make it, and what it labelled."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from tiny import make_world, stir, train_arguments

    world = make_world(folder)
    for command in (train_arguments(world, folder / "run", steps=4),
                    ["label", str(folder / "run"), "--out", str(folder / "labels")]):  # fmt: skip
        if l2l(command):
            raise SystemExit(f"l2l {command[0]} failed")
        stir(folder / "run") if command[0] == "train" else None
    return folder / "run", folder / "labels"


@contextmanager
def serving(run: Path, labels: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server as a process of its own; what it says goes to `folder/said`. Ends with SIGTERM."""
    (folder / "pictures").mkdir()
    command = [sys.executable, "-m", "l2l", "serve", str(run), "--port", "0", "--labels", str(folder / "kept"),
               "--review", str(labels), "--timeout", "100"]  # fmt: skip
    more = {"OMP_NUM_THREADS": "1", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(folder / "pictures")}
    with (folder / "said").open("w") as said:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, **more})
        try:
            try:
                _, url = reached(server)
            except SystemExit as error:
                raise SystemExit(f"{error}: {(folder / 'said').read_text()}") from error
            yield server, url
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(300)
            except subprocess.TimeoutExpired:
                server.kill()


@dataclass
class Watch:
    """What the server holds, look by look: (seconds, MiB in memory, open files, threads)."""

    pid: int
    began: float = field(default_factory=time.monotonic)
    looks: list[tuple[float, float, int, int]] = field(default_factory=list)

    def look(self) -> tuple[float, float, int, int]:
        """Once more."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        told = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
        files = len(os.listdir(f"/proc/{self.pid}/fd"))
        return time.monotonic() - self.began, int(told["VmRSS"]) / 1024, files, int(told["Threads"])

    def at_rest(self, seconds: float = 10.0, most: float = 90.0) -> int:
        """How many files are open when nobody asks for anything: when their number has not changed for some seconds."""
        found, since, end = -1, time.monotonic(), time.monotonic() + most
        while time.monotonic() < min(since + seconds, end):
            if (now := self.look()[2]) != found:
                found, since = now, time.monotonic()
            time.sleep(0.5)
        return found

    def between(self, first: float, last: float) -> list[tuple[float, float, int, int]]:
        """The looks from one moment to another, in minutes."""
        return [one for one in self.looks if 60 * first <= one[0] < 60 * last]


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the slope of (x, y) points, and its standard error."""
    n, mx, my = len(points), statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
    width = sum((x - mx) ** 2 for x, _ in points)
    grade = sum((x - mx) * (y - my) for x, y in points) / width
    rest = sum((y - my - grade * (x - mx)) ** 2 for x, y in points)
    return grade, (rest / (n - 2) / width) ** 0.5


def judge(watch: Watch, minutes: float, files: tuple[int, int], threads: int) -> list[dict[str, Any]]:
    """The criteria of memory, open files and threads: what was measured, what is allowed.

    From half an hour on: over the last three quarters the slope of the medians of each minute plus twice its standard
    error stays below 5 MiB an hour; the median of the last 10 minutes is at most 3 % above that of the minutes 10 to
    15, and the median of open files at most 2 above. Of less: the median of memory in the last third is at most 24 MiB
    above that of the one before. Always: at rest the server holds no more files than it did at rest after the warm-up,
    and it never has more threads than it began with and those that decode.

    Args:
        files: open at rest, after the warm-up and at the end. threads: before the first request.
    """
    def middle(what: int, first: float, last: float) -> float:
        return statistics.median([one[what] for one in watch.between(first, last)] or [0])

    rows: list[dict[str, Any]] = []

    def must(what: str, value: float, most: float) -> None:
        rows.append({"what": what, "value": round(value, 2), "most": round(most, 2), "held": value <= most})

    if minutes >= 30:
        start = round(minutes / 4)
        medians = [(minute / 60, middle(1, minute, minute + 1)) for minute in range(start, int(minutes))
                   if watch.between(minute, minute + 1)]  # fmt: skip
        grade, error = slope(medians)
        must(f"MiB/h, slope from minute {start} on ({grade:.2f}) plus 2 x its standard error ({error:.2f})",
             grade + 2 * error, 5)  # fmt: skip
        must("MiB, median of the last 10 minutes", middle(1, minutes - 10, minutes), 1.03 * middle(1, 10, 15))
        must("open files, median of the last 10 minutes", middle(2, minutes - 10, minutes), middle(2, 10, 15) + 2)
    else:
        third = max(one[0] for one in watch.looks) / 180
        must("MiB, median of the last third", middle(1, 2 * third, 1e9), middle(1, third, 2 * third) + 24)
    must("open files at rest", files[1], files[0])
    must("threads, most at any time", max(one[3] for one in watch.looks), threads + DECODERS)
    return rows


async def asked(clients: Clients, kind: str) -> list[str]:
    """One request; what was wrong."""
    try:
        said = await getattr(clients, kind)()
    except Exception as error:  # whatever it is, it is no answer
        said = f"{type(error).__name__} {error}"
    return [f"{kind}: {said}"] if said else []


async def ask(clients: Clients, minutes: float, rate: float, watch: Watch, log: Callable[[dict[str, Any]], None],
              every: float) -> tuple[Counter[str], list[str]]:  # fmt: skip
    """Requests at random moments; how many of each kind, and what was wrong."""
    kinds, counts, wrong = GOOD | BAD, Counter[str](), []
    open_now = asyncio.Semaphore(AT_ONCE)
    taken: list[float] = []

    async def one(kind: str) -> None:
        async with open_now:
            began = time.monotonic()
            said = await asked(clients, kind)
            if kind in GOOD:
                taken.append(time.monotonic() - began)
            counts[kind] += 1
            wrong.extend(said)

    async def looks() -> None:
        minute = 0
        while True:
            watch.looks.append(watch.look())
            await asyncio.sleep(every)
            if watch.look()[0] >= 60 * (minute + 1):
                mine = watch.between(minute, minute + 1) or watch.looks[-1:]
                minute += 1
                log({"minute": minute, "good": sum(counts[kind] for kind in GOOD),
                     "bad": sum(counts[kind] for kind in BAD), "wrong": wrong[:5],
                     "rss_mib": round(statistics.median(row[1] for row in mine), 1),
                     "files": [min(row[2] for row in mine), max(row[2] for row in mine)],
                     "threads": [min(row[3] for row in mine), max(row[3] for row in mine)],
                     "median_s": round(statistics.median(taken or [0]), 2), "longest_s": round(max(taken or [0]), 2),
                     "load": round(os.getloadavg()[0], 1)})  # fmt: skip
                taken.clear()

    watcher = asyncio.create_task(looks())
    tasks: set[asyncio.Task[None]] = set()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end and len(wrong) < 100:
        kind = clients.random.choices(list(kinds), list(kinds.values()))[0]
        task = asyncio.create_task(one(kind))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await asyncio.sleep(clients.random.expovariate(rate))
    await asyncio.gather(*tasks)
    watcher.cancel()
    await clients.http.aclose()
    return counts, wrong


async def warm_up(clients: Clients) -> list[str]:
    """The good kinds four times at once, the others once, and all nonsense there is; what was wrong."""
    said = await asyncio.gather(*(asked(clients, kind) for kind in [*GOOD] * 4 + [*BAD]))
    said += [await asked(clients, "nonsense") for _ in range(NONSENSE)]
    await clients.http.aclose()
    return [one for part in said for one in part]


def soak(
    run: Path, labels: Path, folder: Path, *, minutes: float, rate: float, seed: int = 0, every: float = LOOK,
    log: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Serve, ask, watch; returns the summary. `folder` is for what the server keeps."""
    with serving(run, labels, folder) as (server, url):
        def made(number: int) -> Clients:
            return Clients(url, read_labels(labels), folder / "pictures", number)

        watch, first = Watch(server.pid), made(seed)
        threads = watch.look()[3]
        wrong = asyncio.run(warm_up(first))
        before = watch.at_rest()
        watch.began = time.monotonic()
        clients = made(seed + 1)
        counts, more = asyncio.run(ask(clients, minutes, rate, watch, log, every))
        after = watch.at_rest()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = round(used.ru_utime + used.ru_stime, 1)
    rows = judge(watch, minutes, (before, after), threads)
    kept = len((folder / "kept" / CORRECTIONS).read_text().splitlines())
    said = (folder / "said").read_text()
    exact = {"requests with a wrong answer": len(wrong + more), "tracebacks": said.count("Traceback"),
             "labels acknowledged and not kept, or kept and not acknowledged": abs(kept - first.kept - clients.kept),
             "exit status": abs(server.returncode)}  # fmt: skip
    rows += [{"what": what, "value": value, "most": 0, "held": value == 0} for what, value in exact.items()]
    return {"minutes": minutes, "good": sum(counts[kind] for kind in GOOD), "bad": sum(counts[kind] for kind in BAD),
            "kinds": dict(sorted(counts.items())), "labels_kept": kept, "server_cpu_s": seconds, "criteria": rows,
            "wrong": (wrong + more)[:20], "held": all(row["held"] for row in rows)}  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="serve this run, rather than a tiny one made for it")
    parser.add_argument("--review", type=Path, help="with --run: what `l2l label` made of it")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=5, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, labels = (args.run, args.review) if args.run else make_run(folder)
        lines: list[str] = []

        def log(row: dict[str, Any]) -> None:
            lines.append(json.dumps(row))
            print(lines[-1], flush=True)
            if args.log:
                args.log.parent.mkdir(parents=True, exist_ok=True)
                args.log.write_text("".join(line + "\n" for line in lines))

        log({"command": f"python benchmarks/soak.py --minutes {args.minutes:g} --rate {args.rate:g} --seed {args.seed}",
             "cores": os.cpu_count(), "python": platform.python_version(), "nice": os.nice(0)})  # fmt: skip
        summary = soak(run, labels, folder, minutes=args.minutes, rate=args.rate, seed=args.seed, log=log)
        log(summary)
        raise SystemExit(not summary["held"])


if __name__ == "__main__":
    main()
