"""Kill -9 at random moments, go on, compare with a run that nobody disturbed: is anything lost?

    python benchmarks/kill.py --kills 60 --seed 0 --out results/reliability/kill.log

Commands: `train` (L2L and supervised), `prior`, `prior --shards`, `label`, `label --shards`, `benchmark` (the whole of
it, or one of its workers alone) and `serve` (`kill_served`), each on a world that takes it seconds. A process and all
that it started are killed

- at a moment of its processor time, drawn from what the undisturbed run took,
- at a write: the folder is watched, and the n-th new, renamed or grown file is its end (n drawn too),
- as a scheduler does it: SIGTERM, and KILL after a grace.

After some kills the last write is torn further, as a power cut would: bytes behind the last synced ones are cut off, or
half a line follows. After each kill all readers are asked: what is there is whole, or they say in one line that it is
not. Then the same command is given once more, until it is done, and killed again on the way now and then. At the end
what is there must be, byte for byte, what the undisturbed run left (of a prior store its rows, of a cell all but
seconds). Commands are children of a process that has imported everything already. One JSON line a trial; exit status 1
if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from kill_kinds import Kind, grid, half_read, kinds, seen, train_arguments

WARM = ("l2l.cli", "l2l.training.loop", "l2l.methods.l2l", "l2l.methods.supervised", "l2l.label", "l2l.data.scenes",
        "l2l.priors.make", "l2l.priors.simulated", "l2l.priors.grounder", "l2l.scale.label_shards",
        "l2l.exchange.labels", "l2l.scale.prior_shards", "l2l.benchmark", "l2l.evaluate", "l2l.serving.server",
        "torch.optim.adamw")  # fmt: skip
LONG = 900.0
"""Seconds after which a command hangs."""
context: Any = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(list(WARM))


def work(argv: Sequence[str], said: str, cache: str, most: int) -> None:
    """What a child does: one command in a process group of its own, its words in a file."""
    os.setpgid(0, 0)
    words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 1), os.dup2(words, 2)
    os.environ |= {"L2L_CACHE": cache, "OMP_NUM_THREADS": "1"}
    import torch

    from l2l.cli import main

    torch.set_num_threads(1)
    if most:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    code = grid(Path(argv[1]), int(argv[2])) if argv[0] == "grid" else main(argv)
    sys.stdout.flush()
    raise SystemExit(code)


class Command:
    """A command that runs, in a child.

    Args:
        argv: as for `l2l`; or `grid OUT WORKERS`. cache: L2L_CACHE. most: bytes of a file at most, 0 for no limit.
    """

    live: ClassVar[list[Command]] = []

    def __init__(self, argv: Sequence[str], folder: Path, *, cache: Path, most: int = 0):
        self.said = folder / "said"
        self.process = context.Process(target=work, args=(list(argv), str(self.said), str(cache), most))
        self.process.start()
        self.pid: int = self.process.pid
        self.live[:] = [*(one for one in self.live if one.running), self]

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def took(self) -> float:
        """Seconds of processor time so far; children that ended are among it."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            told = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, told[11:15])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def children(self) -> list[int]:
        """Its workers."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                if parent == self.pid and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                    found.append(int(stat.parent.name))
        return found

    def end(self, number: int = signal.SIGKILL) -> None:
        """A signal for it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # so early that it has no group yet
                os.kill(self.pid, number)

    def wait(self, seconds: float = LONG) -> int:
        """Its exit code; -9 if it was killed. One that hangs is ended."""
        self.process.join(seconds)
        if self.running:
            self.end()
            self.process.join()
            raise SystemExit(f"a command hangs: {self.said.read_text()[-2000:]}")
        return int(self.process.exitcode)


def changes(out: Path, running: Callable[[], bool], wait: float = 0.001) -> Iterator[None]:
    """One item for each change in a folder, as soon as it is seen."""
    before = seen(out)
    while running():
        now = seen(out)
        if now != before:
            before = now
            yield
        else:
            time.sleep(wait)


@dataclass
class Trial:
    """One folder, from nothing to the end; its fields are the line in the log."""

    command: str
    moments: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    kills: int = 0
    resumed: int = 0
    same: bool = False
    wrong: list[str] = field(default_factory=list)


def make_world(folder: Path, count: int = 60) -> Path:
    """Data, priors, a run and shards for all the others."""
    data = str(folder / "data")
    for argv in (["data", "scenes", data, "--count", str(count), "--seed", "3"],
                 ["prior", data, "--source", "simulated", "--accuracy", "0.8", "--out", str(folder / "priors")],
                 train_arguments(folder, folder / "run", steps=2),
                 ["data", "shard", data, "--out", str(folder / "shards"), "--per-shard", "25"],
                 ["label", str(folder / "run"), "--out", str(folder / "labels")]):  # fmt: skip
        one = Command(argv, folder, cache=folder / "cache")
        if one.wait():
            raise SystemExit((folder / "said").read_text())
    return folder


def undisturbed(kind: Kind, folder: Path, cache: Path) -> tuple[dict[str, str], float, int]:
    """What the command makes, its seconds of processor time, and the changes in its folder that can be seen."""
    folder.mkdir()
    one, count, took = Command(kind.argv(folder / "out"), folder, cache=cache), 0, 0.0
    for _ in changes(folder / "out", lambda: one.running):
        count, took = count + 1, max(took, one.took())
    if one.wait():
        raise SystemExit(f"{kind.name} fails undisturbed: {one.said.read_text()[-2000:]}")
    return kind.made(folder / "out"), took, count


def disturb(one: Command, kind: Kind, out: Path, how: str, share: float, took: float, count: int) -> str:
    """Kill at the moment that `how` and `share` of the undisturbed run name; returns it, or nothing if it was over."""
    if how == "write":
        number = 1 + int(share * count)
        for at, _ in enumerate(changes(out, lambda: one.running), 1):
            if at == number:
                one.end()
                return f"write {number} of about {count}"
        return ""
    if how == "worker":
        number = 1 + int(share * count)
        for at, _ in enumerate(changes(out, lambda: one.running), 1):
            if at >= number and (found := one.children()):
                os.kill(found[number % len(found)], signal.SIGKILL)
                return f"one of {len(found)} workers, write {at} of about {count}"
        return ""
    while one.running and one.took() < share * took:
        time.sleep(0.005)
    if not one.running:
        return ""
    if how == "term":
        one.end(signal.SIGTERM)
        one.process.join(0.02 + share)
    one.end()
    return f"{'TERM, then KILL' if how == 'term' else 'KILL'} after {share * took:.2f} of {took:.2f} s"


def trial(kind: Kind, folder: Path, rng: random.Random, normal: tuple[dict[str, str], float, int], kills: int,
          cache: Path) -> Trial:  # fmt: skip
    """Kill it `kills` times, each time going on, then let it end, and compare."""
    expected, took, count = normal
    folder.mkdir()
    out, told = folder / "out", Trial(kind.name)
    for _ in range(12 + kills):
        one = Command(kind.argv(out), folder, cache=cache)
        if told.kills < kills:
            how = "worker" if kind.workers else rng.choice(["moment"] * 3 + ["write"] * 3 + ["term"])
            moment = disturb(one, kind, out, how, rng.random() * 0.95, took, count)
            code = one.wait()
            if moment and (code in (-signal.SIGKILL, -signal.SIGTERM, 143) or how == "worker"):
                told.kills += 1
                told.moments.append(moment)
                told.there.append(f"{len(seen(out))} files, {sum(size for size, _ in seen(out).values())} bytes")
                told.wrong += half_read(out) if out.exists() else []
                if rng.random() < 0.4 and (how := kind.torn(out, rng)):
                    told.torn.append(how)
                continue
        else:
            code = one.wait()
        told.resumed += 1
        made = kind.made(out) if code == 0 else {}
        if code:
            told.wrong.append(f"it ended with {code}: {one.said.read_text()[-500:]}")
        elif told.kills < kills:  # it was over before its time: once more, from nothing
            shutil.rmtree(out)
            continue
        elif made.keys() < expected.keys() and kind.workers and told.resumed < 3:  # what a dead worker had is left
            continue
        told.wrong += [f"{name} is {'another' if name in made else 'lost'}"
                       for name, value in expected.items() if made.get(name) != value]  # fmt: skip
        told.wrong += [f"{name} is one too many" for name in made.keys() - expected.keys()]
        break
    else:
        told.wrong.append("it never ended")
    if "Traceback" in (said := one.said.read_text()) and not kind.workers:
        told.wrong.append(f"a traceback: {said[-800:]}")
    told.same = not told.wrong
    return told


def main() -> int:
    """The campaign; returns 1 if anything was lost."""
    from kill_served import served

    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--kills", type=int, default=60)
    about.add_argument("--seed", type=int, default=0)
    about.add_argument("--out", type=Path, default=Path("results/reliability/kill.log"))
    about.add_argument("--only", help="kinds whose name begins with it")
    about.add_argument("--world", type=Path, help="a new folder for the world, or one that another call made and left")
    asked = about.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rng, trials, began = random.Random(asked.seed), list[Trial](), time.monotonic()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="l2l-kill-") as scratch, asked.out.open("w") as log:
        root = Path(scratch)
        world = asked.world or root / "world"
        if not world.exists():
            world.mkdir(parents=True)
            make_world(world)
        names = [name for name in (*kinds(world), "serve") if name.startswith(asked.only or "")]
        normal: dict[str, Any] = {}

        def note(line: dict[str, Any]) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(json.dumps(line), flush=True)

        while sum(one.kills for one in trials) < asked.kills:
            name = names[len(trials) % len(names)]
            folder, kills = root / f"trial-{len(trials)}", 1 if "benchmark" in name else rng.choice([2, 3, 4])
            if name == "serve":
                folder.mkdir()
                told = served(world, folder, random.Random(f"{asked.seed} {len(trials)}"), kills + 2)
            else:
                kind, cache = kinds(world)[name], folder / "cache"
                if name not in normal:
                    normal[name] = undisturbed(kind, root / f"whole-{len(trials)}", root / "whole-cache")
                    note({"undisturbed": name, "seconds": round(normal[name][1], 2), "changes": normal[name][2]})
                told = trial(kind, folder, random.Random(f"{asked.seed} {len(trials)}"), normal[name], kills, cache)
            trials.append(told)
            note(told.__dict__)
            shutil.rmtree(folder, ignore_errors=True)
        lost = [one for one in trials if not one.same]
        note({"trials": len(trials), "kills": dict(Counter(one.command for one in trials for _ in range(one.kills))),
              "all": sum(one.kills for one in trials), "torn": sum(len(one.torn) for one in trials), "lost": len(lost),
              "seed": asked.seed, "seconds": round(time.monotonic() - began), "cores": os.cpu_count(),
              "machine": platform.machine(), "python": platform.python_version()})  # fmt: skip
    return 1 if lost else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    finally:
        for one in Command.live:
            one.end()
