"""Under load: hours of requests, pools of 100,000 pairs, stores of a million priors; here the short versions.

The long ones are `benchmarks/soak.py`, `pool.py` and `store.py`; their logs are in `results/reliability`.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from l2l.data.cache import cached, cached_parts
from l2l.data.folder import read_pairs
from l2l.data.read import fingerprint
from l2l.data.shards import write_shards
from l2l.errors import InputError
from l2l.label import _origin
from l2l.priors.prior import Prior
from l2l.priors.store import PriorStore, fill
from l2l.proposals.bank import PriorBank
from l2l.rle import Rle
from l2l.sample import Sample
from l2l.training.loop import CHECKPOINT
from l2l.training.pool import TOGETHER, load_images

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(name: str) -> Any:
    """A module of `benchmarks`."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy held at most, beyond what they held before."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny run, and what it labelled."""
    pytest.importorskip("httpx")
    pytest.importorskip("fastapi")
    run, labels = benchmark("soak").make_run(tmp_path_factory.mktemp("soak"))
    return run, labels


# The server.


def test_a_short_soak(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = benchmark("soak")
    monkeypatch.delitem(soak.BAD, "deaf")  # takes 40 s
    found = soak.soak(*made, tmp_path, minutes=0.25, rate=6, every=0.5)
    assert found["held"], json.dumps(found, indent=1)
    assert found["good"] > 3 and found["labels_kept"] > 3


def test_the_soak_s_criteria_can_fail(tmp_path: Path) -> None:
    soak = benchmark("soak")

    def judged(memory: Callable[[float], float], files: tuple[int, int] = (9, 9), threads: int = 5) -> set[str]:
        watch = soak.Watch(0)
        watch.looks = [(10.0 * look, memory(look / 360), 12, threads) for look in range(360)]
        return {row["what"].partition(",")[0] for row in soak.judge(watch, 60, files, 2) if not row["held"]}

    def noise(hour: float) -> float:
        return 400 + 3 * np.sin(700 * hour)

    assert judged(noise) == set()
    assert judged(lambda hour: noise(hour) + 8 * hour) == {"MiB/h"}
    assert judged(lambda hour: noise(hour) + 40 * hour) == {"MiB/h", "MiB"}
    assert judged(noise, files=(9, 10)) == {"open files at rest"} and judged(noise, threads=9) == {"threads"}


def test_requests_leave_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("multipart")
    from test_serving import CONFIG, Fake, client, png, post, text

    image = png(240, 240)
    task = {"id": 5, "data": {"image": "data:image/png;base64," + text(image), "say": "left"}}
    told = {"image": text(image), "sentence": "left", "verdict": "accept", "id": "a",
            "mask": Rle.encode(np.ones((240, 240), bool)).to_coco()}  # fmt: skip

    with client(Fake(), labels=tmp_path) as http:
        def ask() -> None:
            for _ in range(4):
                asked = {"image": text(image), "sentences": ["left", "nothing"], "format": "png"}
                assert http.post("/predict", json=asked).status_code == 200
                assert http.post("/predict", files={"image": image}, data={"sentence": "left"}).status_code == 200
                assert http.post("/label", json=told).status_code == 200
                studio = {"tasks": [task], "label_config": CONFIG}
                assert http.post("/label-studio/predict", json=studio).status_code == 200
                assert http.get("/metrics").status_code == 200
                for value in ({}, {**told, "image": "?"}, {**told, "id": ""}, [1]):
                    assert post(http, "/label", value).status_code == 422

        ask()
        gc.collect()
        tracemalloc.start()
        try:
            ask()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            ask()
            ask()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert grown < 100_000, grown  # one picture has 172,800 bytes


def test_all_threads_of_the_server_share_one_heap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    from l2l.serving import server

    asked: list[tuple[int, int]] = []

    class Glibc:
        def __init__(self, _: None) -> None: ...

        def mallopt(self, what: int, value: int) -> None:
            asked.append((what, value))

    with pytest.raises(InputError, match="no run here"):
        monkeypatch.setattr(server.ctypes, "CDLL", Glibc)
        server.serve(tmp_path)
    assert asked == [(-8, 1)]
    monkeypatch.setattr(server.ctypes, "CDLL", object)  # a system without
    server._one_heap()


# Large pools.


def picture(path: Path, shade: int) -> str:
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return str(path)


def sample(number: int, image: str, **more: Any) -> Sample:
    return Sample(id=str(number), image=image, image_id=image, size=(8, 8), sentences=(f"thing {number}",),
                  sentence_ids=(str(number),), **more)  # fmt: skip


def test_a_table_of_pictures_is_made_part_by_part(tmp_path: Path) -> None:
    samples = [sample(number, picture(tmp_path / f"{number}.png", number % 256)) for number in range(8 * TOGETHER)]
    table, rows = [], {}

    def work() -> None:
        found, names = load_images(samples, (96, 96))
        table.append(found)
        rows.update(names)

    whole = len(samples) * 3 * 96 * 96
    assert peak(work) < 0.6 * whole
    assert [int(table[0][rows[one.image]][0, 5, 5]) for one in samples] == [n % 256 for n in range(len(samples))]


def test_parts_are_the_whole_and_no_half_is_kept(own_cache: Path) -> None:
    values = np.arange(7 * 2 * 3, dtype=np.int16).reshape(7, 2, 3)
    assert (cached("under-load-whole", lambda: values).numpy() == values).all()
    parts = cached_parts("under-load-parts", values.shape, np.int16, lambda: (values[i : i + 3] for i in (0, 3, 6)))
    assert (parts.numpy() == values).all()
    files = [own_cache / f"under-load-{name}.npy" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()

    def cut() -> Any:
        yield values[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_parts("under-load-cut", values.shape, np.int16, cut)
    assert not list(own_cache.glob("under-load-cut*"))


def test_names_of_data_and_priors_are_what_they_were(tmp_path: Path) -> None:
    samples = [sample(n, "a.png", targets=(Rle.encode(np.eye(8) > 0),) if n % 2 else None) for n in (3, 1, 2)]
    lines = [json.dumps([one.id, one.image_id, one.split, one.size, list(one.pairs()),
                         None if one.targets is None else [t.to_coco() for t in one.targets]]) for one in samples]
    assert fingerprint(samples) == hashlib.blake2b("\n".join(sorted(lines)).encode(), digest_size=8).hexdigest()

    class Pool:
        ids, sentences = ["1"], ["a"]
        soft, score = torch.arange(5000 * 6).to(torch.uint8).view(5000, 2, 3), torch.rand(5000)

    class Data:
        name = "d"

    (tmp_path / CHECKPOINT).write_bytes(b"x")
    found = _origin(tmp_path, {"hash": "h", "step": 1}, Data(), Pool(), PriorBank((), "p", False))
    plain = hashlib.blake2b(Pool.soft.numpy().tobytes() + Pool.score.numpy().tobytes(), digest_size=8)
    assert found["prior_hash"] == plain.hexdigest()


def test_a_list_is_read_line_by_line(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 9)
    line = json.dumps({"image": "a.png", "expression": "thing", "more": "x" * 20_000})
    ends = [b"\n", b"\r\n", b"\r", b"\n\n"]
    whole = b"".join(line.encode() + ends[number % 4] for number in range(200))
    (tmp_path / "pairs.jsonl").write_bytes(whole)
    found: list[Sample] = []
    assert peak(lambda: found.extend(read_pairs(tmp_path / "pairs.jsonl"))) < len(whole) / 2
    kept = [number for number, text in enumerate(whole.splitlines(), 1) if text]
    assert [one.provenance for one in found] == [f"pairs.jsonl, line {number}" for number in kept]


class Says:
    """A source that says the same of everything."""

    name = "says"

    def fingerprint(self) -> str:
        return "1"

    def answer(self, pairs: Any) -> list[Prior]:
        return [Prior(boxes=((0.1, 0.1, 0.5, 0.5),), scores=(0.5,)) for _ in pairs]


def test_asking_once_more_reads_no_prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(tmp_path / "a.png", 9)
    samples = [sample(number, image) for number in range(1203)]
    store = PriorStore(tmp_path / "store", create=True)
    assert list(fill(store, Says(), samples[:1000], batch=500))[-1] == (1000, 1000)
    monkeypatch.setattr(store, "get", lambda _: pytest.fail("priors were read"))
    assert next(fill(store, Says(), samples)) == (1000, 1203)
    assert list(fill(store, Says(), samples))[-1] == (1203, 1203) and len(store) == 1203
    store.close()


def test_memory_does_not_grow_with_the_shards(made: tuple[Path, Path], tmp_path: Path) -> None:
    import l2l
    from l2l.scale.label_shards import label_shards

    data = l2l.read(made[0].parent / "data")
    write_shards(data, tmp_path / "many", per_shard=6)
    files = sorted((tmp_path / "many").glob("*.tar"))
    assert len(files) >= 8
    for folder, count in (("few", 2), ("warm", 1)):
        (tmp_path / folder).mkdir()
        for file in files[:count]:
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())

    def work(name: str) -> Callable[[], object]:
        return lambda: label_shards(made[0], tmp_path / name, tmp_path / f"{name}-labels", no_prior=True,
                                    everything=True)  # fmt: skip

    work("warm")()
    few = peak(work("few"))
    assert peak(work("many")) < 1.3 * few


def test_the_pool_s_criteria_can_fail() -> None:
    judge = benchmark("pool").judge

    def rows(mib: float, seconds: float) -> list[dict[str, Any]]:
        return [{"step": "shard labels", "pairs": 100, "own_mib": 300.0, "cpu_s": 1.0},
                {"step": "shard labels", "pairs": 800, "own_mib": 300 + mib, "cpu_s": 8 * seconds}]  # fmt: skip

    assert [judge(rows(*given))[0]["held"] for given in ((9, 1.1), (40, 1.1), (9, 1.6))] == [True, False, False]


# Large stores.


def test_a_large_store_opens_at_once_and_reads_as_fast_as_a_small_one(tmp_path: Path) -> None:
    store = benchmark("store")
    read = {}
    for count in (1_000, 20_000):
        store.write(tmp_path / str(count), count)
        opened = min(store.open_it(tmp_path / str(count), count, 0)["cpu_s"] for _ in range(3))
        assert opened < 0.1
        read[count] = max(store.batches(tmp_path / str(count), count, 60)["priors_per_cpu_s"] for _ in range(3))
    assert read[20_000] > read[1_000] / 4  # a table without an index reads 20 times slower
    assert read[20_000] > 1300  # ten times what 32 pairs a step of 0.25 s ask for
    began = time.process_time()
    with closing(PriorStore(tmp_path / "20000")) as held:
        assert len(held.known([store.key_of(number) for number in range(20_500)])) == 20_000
    assert time.process_time() - began < 2
