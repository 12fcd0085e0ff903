"""Nothing lost: kill -9, a scheduler's SIGTERM, a full or unwritable disk, a last write that was torn.

A few of each; `benchmarks/kill.py`, whose parts are used here, does many. Commands are children of a process that has
imported everything, so that a kill costs no seconds.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from kill import Command, make_world, trial, undisturbed  # noqa: E402
from kill_kinds import Kind, kinds, train_arguments  # noqa: E402
from kill_served import kept, requests, served, start  # noqa: E402

from l2l.benchmark import benchmark  # noqa: E402
from l2l.benchmark_cell import cell_file  # noqa: E402
from l2l.benchmark_page import write_page  # noqa: E402
from l2l.cli import main  # noqa: E402
from l2l.data.durable import append, sync, write_durably, write_whole  # noqa: E402
from l2l.data.scenes import world_samples  # noqa: E402
from l2l.errors import InputError  # noqa: E402
from l2l.exchange.decisions import read_decisions  # noqa: E402
from l2l.priors.simulated import Simulated  # noqa: E402
from l2l.priors.store import FILE, ImageDigests, PriorStore, fill, keys_of  # noqa: E402
from l2l.serving.labels import LabelFolder  # noqa: E402
from l2l.training.checkpoint import save_tensors  # noqa: E402
from l2l.training.loop import ABOUT, CHECKPOINT, CONFIG, METRICS, SPLIT  # noqa: E402

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="moments are told by /proc")
NAMES = ("train", "prior", "prior --shards", "label", "label --shards")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), count=40)


class Whole:
    """Runs that nobody disturbed, made when they are first asked for: folder, and what `undisturbed` says."""

    def __init__(self, world: Path, root: Path):
        self.kinds, self.root, self.cache = kinds(world), root, root / "cache"
        self._made: dict[str, tuple[dict[str, str], float, int]] = {}

    def __getitem__(self, name: str) -> tuple[Kind, tuple[dict[str, str], float, int]]:
        if name not in self._made:
            self._made[name] = undisturbed(self.kinds[name], self.root / name, self.cache)
        return self.kinds[name], self._made[name]

    def copy(self, name: str, to: Path) -> Path:
        """What it left, to be damaged."""
        assert self[name]
        return Path(shutil.copytree(self.root / name / "out", to / "out"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(world, tmp_path_factory.mktemp("whole"))


def errors(one: Command) -> list[str]:
    """What it said went wrong; never a traceback."""
    said = one.said.read_text()
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("l2l: ")]


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMES, "benchmark", "benchmark, workers"])
def test_killed_anywhere_it_ends_the_same(whole: Whole, tmp_path: Path, name: str) -> None:
    kind, normal = whole.kinds[name], whole[name.partition(",")[0]][1]  # two workers make what one makes
    kills = 1 if name.startswith("benchmark") else 2
    told = trial(kind, tmp_path / "trial", random.Random(f"{name} 1"), normal, kills, whole.cache)
    assert told.kills == kills and told.same, told


def test_what_a_server_acknowledged_is_kept_once(world: Path, tmp_path: Path) -> None:
    told = served(world, tmp_path, random.Random(1), 3, each=5)
    assert told.kills == 3 and told.same, told


@pytest.mark.parametrize("name", ["label", "prior"])
def test_sigterm_is_told_and_gone_on_from(whole: Whole, tmp_path: Path, name: str) -> None:
    kind, (expected, _, _) = whole[name]
    out = tmp_path / "out"
    one = Command(kind.argv(out), tmp_path, cache=whole.cache)
    while not list(out.glob("*")) and one.running:
        time.sleep(0.001)
    one.end(signal.SIGTERM)
    assert one.wait() == 143
    assert errors(one) == ["l2l: ended by SIGTERM; the same command goes on where this one stopped"]
    assert Command(kind.argv(out), tmp_path, cache=whole.cache).wait() == 0 and kind.made(out) == expected


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most", "file"), [
    ("train", 60_000, CHECKPOINT), ("train", 5_000, ".npy"), ("prior", 30_000, FILE), ("label", 5_000, "labels.jsonl"),
    ("label --shards", 3_000, ".png"), ("prior --shards", 3_000, ".png"),
])  # fmt: skip
def test_no_room_is_one_line_and_nothing_is_lost(
    whole: Whole, tmp_path: Path, name: str, most: int, file: str
) -> None:
    """Files may not grow beyond `most` bytes, as on a full disk: the kernel refuses the write."""
    kind, (expected, _, _) = whole[name]
    out, cache = tmp_path / "out", tmp_path / "cache" if file == ".npy" else whole.cache
    one = Command(kind.argv(out), tmp_path, cache=cache, most=most)
    code, said = one.wait(), errors(one)
    if "--shards" in name:
        assert code in (1, 2) and any(file in line and "File too large" in line for line in said), said
    else:
        assert code == 2 and len(said) == 1 and file in said[0], said
        how = "--resume" if name == "train" else "the same command goes on"
        assert "nothing that was written before is lost: make room" in said[0] and how in said[0], said
    assert not list(out.glob("*.draft")) and not list(out.glob(".*.part")) and not list(cache.glob("**/*.part"))
    one = Command(kind.argv(out), tmp_path, cache=cache)
    assert one.wait() == 0, one.said.read_text()
    assert kind.made(out) == expected


def test_a_server_without_room_keeps_what_it_acknowledged(world: Path, tmp_path: Path) -> None:
    import httpx

    asks = [ask for ask in requests(world / "labels", random.Random(0), 30) if ask["path"] == "/label"]
    one, url = start(world, tmp_path, most=20_000)
    acknowledged = 0
    with httpx.Client(base_url=url, timeout=100) as http:
        for number in range(200):
            told = {**asks[0]["json"], "id": f"said-{number}", "sentence": "a long one " * 20}
            reply = http.post("/label", json=told)
            if reply.status_code != 200:
                break
            acknowledged += 1
    assert reply.status_code == 507 and set(reply.json()) == {"error", "hint"} and acknowledged > 5
    assert [line["id"] for line in kept(tmp_path / "kept")] == [f"said-{number}" for number in range(acknowledged)]
    one.end()
    one.wait()
    one, url = start(world, tmp_path)
    assert httpx.post(f"{url}/label", json=told, timeout=100).status_code == 200
    one.end()
    one.wait()
    assert [line["id"] for line in kept(tmp_path / "kept")] == [f"said-{number}" for number in range(acknowledged + 1)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_device_is_named(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "ab", buffering=0) as file, pytest.raises(OSError, match="/dev/full"):
        append(file, b"a line\n")
    with open("/dev/full", "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["data", "check", str(world / "data")]) == 2
        monkeypatch.undo()
    said = "l2l: error: the output: No space left on device; nothing that was written before is lost: make room\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("write", [write_durably, write_whole])
def test_a_file_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file.json"
    write(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write(path, b"new")
    assert caught.value.filename == str(path) and path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]
    with (tmp_path / "lines").open("ab", buffering=0) as file, pytest.raises(OSError, match="lines"):
        sync(file)


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch
    import torch

    path = tmp_path / CHECKPOINT
    save_tensors(path, {"a": torch.zeros(4)}, {"step": 1})
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError) as caught:
        save_tensors(path, {"a": torch.ones(4)}, {"step": 2})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path)) and path.read_bytes() == before


def test_a_full_store_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    samples = world_samples(60, 0)
    store, source = PriorStore(tmp_path, create=True), Simulated(samples, accuracy=0.7, seed=0)
    list(fill(store, source, samples[:20]))
    before, pages = len(store), store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(OSError) as caught:
        list(fill(store, source, samples))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / FILE))
    store._db.execute("PRAGMA max_page_count=100000")
    assert len(store) == before
    list(fill(store, source, samples))
    pairs = [(one, sentence) for one in samples for sentence in one.sentences]
    assert len(store) == len(set(keys_of(pairs, ImageDigests()))) > before
    store.close()


# --- nowhere to write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["below a file", "/proc", "read-only"])
def test_where_nothing_can_be_written(
    whole: Whole, tmp_path: Path, name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    match place:
        case "below a file":
            (tmp_path / "file").write_text("")
            out = tmp_path / "file" / "out"
        case "/proc":
            out = Path("/proc/nowhere")
        case _:
            if os.geteuid() == 0:
                pytest.skip("root writes everywhere")
            (tmp_path / "locked").mkdir(mode=0o500)
            out = tmp_path / "locked" / "out"
    assert main(whole.kinds[name].argv(out)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("l2l: ")]
    assert len(said) == 1 and said[0].startswith("l2l: error: ") and str(out.parent) in said[0], said


# --- the last write was torn ------------------------------------------------------------------------------------------


def test_a_torn_log_or_checkpoint_of_training(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, (expected, _, _) = whole["train"]
    out = tmp_path / "out"
    one = Command(kind.argv(out), tmp_path, cache=whole.cache)
    while one.running and not ((out / CHECKPOINT).exists() and b"probe" in (out / METRICS).read_bytes()):
        time.sleep(0.001)
    one.end()
    one.wait()
    with (out / METRICS).open("ab") as file:
        file.write(b'{"step": 2, "loss": 0.5}\xff\0{"st')
    file = out / CHECKPOINT
    file.write_bytes(file.read_bytes()[:-100])
    capsys.readouterr()
    assert main(kind.argv(out)) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "once it is removed, l2l train --resume makes it anew" in said
    file.unlink()
    assert Command(kind.argv(out), tmp_path, cache=whole.cache).wait() == 0
    assert kind.made(out) == expected


@pytest.mark.parametrize("file", [CONFIG, SPLIT, ABOUT])
def test_half_of_what_describes_a_run_is_never_believed(
    whole: Whole, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole.copy("train", tmp_path)
    (out / file).write_bytes((out / file).read_bytes()[:-20])
    assert main(["evaluate", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(out / file) in said[0], said


@pytest.mark.parametrize("damage", ["cut", "more", "gone"])
def test_a_torn_journal_of_priors(tmp_path: Path, damage: str) -> None:
    samples = world_samples(200, 0)
    source = Simulated(samples, accuracy=0.7, seed=0)
    store = PriorStore(tmp_path / "a", create=True)
    steps = fill(store, source, samples)
    done = [next(steps)[0] for _ in range(4)][-1]
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with its journal, as a kill leaves it
    journal = tmp_path / "b" / f"{FILE}-wal"
    whole = journal.read_bytes()
    match damage:
        case "cut":
            journal.write_bytes(whole[:-700])
        case "more":
            journal.write_bytes(whole + os.urandom(3000))
        case _:
            (tmp_path / "b" / f"{FILE}-shm").unlink()
    torn = PriorStore(tmp_path / "b", create=True)
    assert len(torn) == (done - 64 if damage == "cut" else done) and torn.left() > 0
    for _ in steps:
        pass
    for _ in fill(torn, source, samples):
        pass
    keys = [row[0] for row in store._db.execute("SELECT key FROM prior")]
    assert torn.get(keys) == store.get(keys) and len(torn) == len(keys) and torn.left() == store.left() == 0
    torn.close(), store.close()


def test_a_store_that_lacks_pairs_is_not_taken_for_a_whole_one(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "priors", tmp_path / "priors")
    store = PriorStore(tmp_path / "priors", create=True)
    store.expect(7)
    store.close()
    argv = train_arguments(world, tmp_path / "run", "--prior", str(tmp_path / "priors"), steps=1)
    one = Command(argv, tmp_path, cache=world / "cache")
    assert one.wait() == 0
    assert "the prior store lacks 7 pairs; the l2l prior that made it goes on with them" in one.said.read_text()


@pytest.mark.parametrize("damage", [-1, -30, b'{"id": "', b"\0" * 50, b"\xff\xfe"])
def test_torn_labels(whole: Whole, tmp_path: Path, damage: int | bytes) -> None:
    kind, (expected, _, _) = whole["label"]
    file = whole.copy("label", tmp_path) / "labels.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:damage] if isinstance(damage, int) else content + damage)
    assert Command(kind.argv(file.parent), tmp_path, cache=whole.cache).wait() == 0
    assert kind.made(file.parent) == expected


def test_labels_that_lack_pairs_are_not_taken_for_all(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = whole.copy("label", tmp_path)
    assert main(["rank", str(out)]) == 0 and not capsys.readouterr().err
    about = json.loads((out / ABOUT).read_text())
    (out / ABOUT).write_text(json.dumps({**about, "finished": False}))
    assert main(["rank", str(out)]) == 0
    assert capsys.readouterr().err == f"l2l: {out} lacks pairs; the same l2l label goes on with them\n"


@pytest.mark.parametrize("name", ["label", "prior"])
@pytest.mark.parametrize("end", ["jsonl", "receipt.json"])
def test_a_torn_shard_is_done_again(whole: Whole, tmp_path: Path, name: str, end: str) -> None:
    kind, (expected, _, _) = whole[f"{name} --shards"]
    out = whole.copy(f"{name} --shards", tmp_path)
    file = out / f"{name}s-pairs-000001.{end}"
    file.write_bytes(file.read_bytes()[:-9])
    assert Command(kind.argv(out), tmp_path, cache=whole.cache).wait() == 0
    assert kind.made(out) == expected


def test_half_a_cell_is_refused_and_made_again(tmp_path: Path) -> None:
    from test_benchmark import cell, tiny

    suite = tiny(cell("prior_only", method="prior_only"))
    assert benchmark([suite], tmp_path, say=lambda line: None) == 0
    file = cell_file(tmp_path, suite.cells[0].key)
    before = json.loads(file.read_bytes())
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="remove it to have it made again"):
        write_page([suite], tmp_path)
    file.unlink()
    assert benchmark([suite], tmp_path, say=lambda line: None) == 0
    assert json.loads(file.read_bytes())["scores"] == before["scores"]


@pytest.mark.parametrize("more", [b'{"id": "b", "verdict": "acc', b"{", b"\0" * 9])
def test_half_a_decision_is_no_decision(tmp_path: Path, more: bytes) -> None:
    LabelFolder(tmp_path).add(sentence="cup", verdict="reject", mask=None, picture=None, key="a")
    with (tmp_path / "corrections.jsonl").open("ab") as file:
        file.write(more)
    assert [one.id for one in read_decisions(tmp_path)] == ["a"]
    folder = LabelFolder(tmp_path)
    folder.add(sentence="pot", verdict="reject", mask=None, picture=None, key="b")
    assert folder.verdicts() == {"a": "reject", "b": "reject"} and len(kept(tmp_path)) == 2


def test_a_label_that_is_sent_again_is_one_label(tmp_path: Path) -> None:
    folder = LabelFolder(tmp_path)
    keys = [folder.add(sentence=one, verdict="reject", mask=None, picture=None) for one in ("cup", "cup", "pot")]
    assert keys[0] == keys[1] != keys[2] and len(folder.verdicts()) == 2
