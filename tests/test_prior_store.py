from __future__ import annotations

import functools
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l.data.scenes import world_samples
from l2l.errors import InputError
from l2l.priors.prior import Prior
from l2l.priors.store import FILE, ImageDigests, PriorStore, fill, keys_of
from l2l.sample import Sample

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
shares = st.floats(0, 1)
priors = st.builds(
    lambda points, head: Prior(points=tuple(points), head=head), st.lists(st.tuples(shares, shares)), texts
)


class Counting:
    """A source that counts what it is asked, and may break down."""

    def __init__(self, name: str = "counting", *, breaks_after: int = 10**9):
        self.name, self.breaks_after = name, breaks_after
        self.asked: list[tuple[str, str]] = []

    def fingerprint(self) -> str:
        return f"{self.name}-1"

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior]:
        if len(self.asked) >= self.breaks_after:
            raise KeyboardInterrupt
        self.asked += [(sample.image, sentence) for sample, sentence in pairs]
        return [answer_to(sentence) for _, sentence in pairs]


def answer_to(sentence: str) -> Prior:
    return Prior(boxes=((0.1, 0.1, 0.9, 0.9),), scores=(len(sentence) / 1000,), head=sentence)


SAMPLES = world_samples(12, 3)
PAIRS = [(sample, sentence) for sample in SAMPLES for sentence in sample.sentences]
KEYS = keys_of(PAIRS, ImageDigests())


def filled(path: Path, *, close: bool = True) -> PriorStore:
    store = PriorStore(path, create=True)
    list(fill(store, Counting(), SAMPLES, batch=5))
    if close:
        store.close()
    return store


@given(st.dictionaries(texts, priors, max_size=5))
@settings(max_examples=15)
def test_what_is_put_can_be_got(tmp_path_factory: pytest.TempPathFactory, items: dict[str, Prior]) -> None:
    path = tmp_path_factory.mktemp("store")
    writer = PriorStore(path, create=True)
    writer.put(items.items())
    writer.put(items.items())  # again is no harm
    assert len(writer) == len(items)
    writer.close()
    reader = PriorStore(path)
    assert reader.get([*items, "not there"]) == items
    reader.close()


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    store = PriorStore(tmp_path, create=True)
    store.put((str(number), answer_to(str(number))) for number in range(1300))
    assert store.get([str(number) for number in range(1400)]).keys() == {str(number) for number in range(1300)}


def test_filling_asks_for_each_pair_once(tmp_path: Path) -> None:
    store, source = PriorStore(tmp_path / "a" / "store", create=True), Counting()
    progress = list(fill(store, source, [*SAMPLES, *SAMPLES[:5]], batch=7))
    total = len(PAIRS) + sum(len(sample.sentences) for sample in SAMPLES[:5])
    assert progress[-1] == (total, total) and [done for done, _ in progress] == sorted(done for done, _ in progress)
    asked = [(sample.image, sentence) for sample, sentence in PAIRS]
    assert sorted(source.asked) == sorted(set(asked))
    assert store.get(KEYS) == {key: answer_to(sentence) for key, (_, sentence) in zip(KEYS, PAIRS, strict=True)}
    again = Counting()
    assert list(fill(store, again, SAMPLES)) == [(len(PAIRS), len(PAIRS))] and not again.asked


def test_filling_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first, second = Counting(breaks_after=10), Counting()
    store = PriorStore(tmp_path, create=True)
    with pytest.raises(KeyboardInterrupt):
        list(fill(store, first, SAMPLES, batch=5))
    store.close()
    store = PriorStore(tmp_path, create=True)
    assert len(store) == len(first.asked) == 10
    assert next(iter(fill(store, second, SAMPLES, batch=5)))[0] >= 10
    list(fill(store, second, SAMPLES, batch=5))
    assert not set(first.asked) & set(second.asked) and len(store) == len(set(KEYS))
    assert len(first.asked) + len(second.asked) == len(set(KEYS))


def test_another_source_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    store, other = PriorStore(tmp_path, create=True), Counting("other")
    with pytest.raises(InputError, match="holds priors of counting; give other its own"):
        list(fill(store, other, SAMPLES))
    assert not other.asked and store.about() == {"name": "counting", "fingerprint": "counting-1"}


KILLED = """
import sys
from l2l.priors.prior import Prior
from l2l.priors.store import PriorStore

store = PriorStore(sys.argv[1], create=True)
for batch in range(100_000):
    prior = Prior(boxes=((0.1, 0.1, 0.9, 0.9),), scores=(0.5,), head="x" * 400)
    store.put((f"{batch}-{place}", prior) for place in range(50))
    print(batch, flush=True)
"""


@pytest.mark.parametrize("after", [0, 7, 20])
def test_a_store_survives_being_killed(tmp_path: Path, after: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(after + 1):
        committed = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)  # it is writing the next batches meanwhile
    rest = process.stdout.read().split()
    committed = int(rest[-1]) if rest and rest[-1].isdigit() else committed
    assert process.wait() == -signal.SIGKILL
    store = PriorStore(tmp_path)
    assert len(store) >= 50 * (committed + 1) and len(store) % 50 == 0  # whole batches, and all that was acknowledged
    found = store.get([f"{batch}-{place}" for batch in range(committed + 1) for place in range(50)])
    assert len(found) == 50 * (committed + 1) and all(prior.head == "x" * 400 for prior in found.values())
    store.close()
    again = PriorStore(tmp_path, create=True)
    again.put([("later", Prior())])
    assert again.get(["later"]) == {"later": Prior()}


def test_a_store_that_another_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0))
    with pytest.raises(InputError, match="another process is writing this prior store: wait for it"):
        PriorStore(tmp_path, create=True)
    other.close()


def test_no_store_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prior store here"):
        PriorStore(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot make a store"):
        PriorStore(tmp_path / "file" / "store", create=True)


def read_all(path: Path) -> None:
    store = PriorStore(path)
    store.about()
    store.get(KEYS)
    len(store)


@pytest.mark.parametrize("damage", ["empty", "text", "half", "head", "middle"])
def test_a_damaged_store_is_reported(tmp_path: Path, damage: str) -> None:
    filled(tmp_path)
    read_all(tmp_path)
    file = tmp_path / FILE
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes({
        "empty": b"", "text": b"no database\n" * 400, "half": whole[:half], "head": b"\0" * 100 + whole[100:],
        "middle": whole[:4096] + b"\xa5" * (len(whole) - 4096),
    }[damage])  # fmt: skip
    with pytest.raises(InputError) as caught:
        read_all(tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["{", "[]", '{"points": [[9, 9]]}', '{"boxes": [[0, 0, 1, 1]]}', "[" * 50_000])
def test_a_damaged_prior_is_reported(tmp_path: Path, value: str) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("UPDATE prior SET value = ? WHERE key = ?", (value, KEYS[3]))
    connection.close()
    with pytest.raises(InputError, match="damaged prior") as caught:
        read_all(tmp_path)
    assert KEYS[3] in str(caught.value) and len(str(caught.value)) < 500


def sample_at(image: Path) -> Sample:
    return Sample(id="1", image=str(image), image_id="1", size=(4, 6), sentences=("cup",), sentence_ids=("1",))


def test_keys_are_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"one")
    (tmp_path / "moved.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two")
    names = ("a.jpg", "moved.jpg", "b.jpg")
    key = {name: keys_of([(sample_at(tmp_path / name), "cup")], ImageDigests())[0] for name in names}
    assert key["a.jpg"] == key["moved.jpg"] != key["b.jpg"]
    assert keys_of([(sample_at(tmp_path / "a.jpg"), "pot")], ImageDigests())[0] != key["a.jpg"]
