"""One local cluster of two processes; a worker is killed while it has a shard in hand."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sharded import SHARDS, files_of, make_shards

from l2l.errors import BadRecords
from l2l.sample import Sample
from l2l.scale import label_shards as of_labels
from l2l.scale.label_shards import LabelJob, label_shards
from l2l.scale.one_shard import Line, Work

# Not importorskip: Ray reads its switches when it is imported, and those are set by what is tested here.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no ray")


@dataclass(frozen=True, kw_only=True)
class Waits(LabelJob):
    """The same job, but whoever gets the third shard first says who it is, and waits for its end."""

    told: str

    def load(self) -> Work:
        work = super().load()

        def wait(
            shard: Path, samples: list[Sample], known: Mapping[str, Line], bad: BadRecords
        ) -> tuple[list[Line], dict[str, float]]:
            if shard.stem.endswith("2") and not Path(self.told).exists():
                Path(f"{self.told}.part").write_text(str(os.getpid()))
                os.replace(f"{self.told}.part", self.told)
                time.sleep(900)
            return work(shard, samples, known, bad)

        return wait


def kill(told: Path, killed: list[int]) -> None:
    """Wait for a process id in a file, then kill that process."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if told.exists():
            killed.append(int(told.read_text()))
            os.kill(killed[0], signal.SIGKILL)
            return
        time.sleep(0.05)


def listening(pids: set[int]) -> set[str]:
    """Addresses, as Linux writes them, at which some processes listen; none where there is no /proc."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(file))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            parts = line.split()
            if parts[3] == "0A" and f"socket:[{parts[9]}]" in sockets:
                found.add(parts[1].partition(":")[0])
    return found


def family() -> set[int]:
    """The processes below this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers have to find `Waits`
    run, shards = make_shards(tmp_path)
    alone = label_shards(run, shards, tmp_path / "local", no_prior=True)
    assert alone["shards"] >= SHARDS

    told, killed, seen, addresses = tmp_path / "pid", [], [], set()
    monkeypatch.setattr(of_labels, "LabelJob", partial(Waits, told=str(told)))

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        addresses.update(listening(family()))

    killer = threading.Thread(target=kill, args=(told, killed), daemon=True)
    killer.start()
    about = label_shards(run, shards, tmp_path / "ray", no_prior=True, engine="ray", workers=2, progress=progress)
    killer.join()
    assert killed and about == alone
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
    assert seen == [(done, alone["shards"]) for done in range(1, alone["shards"] + 1)]
    import ray

    assert not ray.is_initialized()
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert addresses <= loopback

    again: Any = label_shards(run, shards, tmp_path / "ray", no_prior=True)
    assert again["done"] == 0 and again["kept"] == alone["shards"]
