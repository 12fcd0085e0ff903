"""Priors from a server on loopback that plays a model, well and badly."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from tiny import make_world

from l2l.cli import main
from l2l.data.read import read
from l2l.errors import InputError
from l2l.priors.answers import DIALECTS, write
from l2l.priors.endpoint import KEY, Endpoint
from l2l.priors.make import make_priors
from l2l.priors.store import PriorStore
from l2l.sample import Sample

pytest.importorskip("openai")
BOX = (0.25, 0.25, 0.75, 0.5)
SECRET = "sk-not-to-be-written-down"


@dataclass
class Played:
    """A server whose model answers every sentence with `BOX`, unless told otherwise."""

    reply: Callable[[str, tuple[int, int]], str]
    """(what was asked, (height, width) of the picture as it came) -> the reply's text."""
    status: Callable[[int], int] = lambda number: 200
    """Number of the request -> HTTP status."""
    delay: float = 0.0
    body: bytes | None = None
    """Sent in place of a sound answer."""
    asked: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    begun: list[float] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, request: dict, key: str) -> tuple[int, bytes]:
        with self._lock:
            number = len(self.begun)
            self.begun.append(time.monotonic())
            self.keys.add(key)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(self.delay)
        picture, text = request["messages"][0]["content"]
        packed = base64.b64decode(picture["image_url"]["url"].split(",", 1)[1])
        width, height = Image.open(io.BytesIO(packed)).size
        with self._lock:
            self.under_way -= 1
            self.asked.append(text["text"])
        status = self.status(number)
        if status != 200:
            return status, json.dumps({"error": {"message": f"status {status}"}}).encode()
        message = {"role": "assistant", "content": self.reply(text["text"], (height, width))}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"],
                 "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
        return 200, self.body if self.body is not None else json.dumps(whole).encode()


@pytest.fixture
def played() -> Iterator[Played]:
    state = Played(reply=lambda text, seen: write(DIALECTS["qwen2.5-vl"], [BOX], seen))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                status, answer = 404, b"{}"
            else:
                status, answer = state.handle(json.loads(body), self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.send_header("retry-after-ms", "5")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def endpoint(played: Played, **options: object) -> Endpoint:
    return Endpoint(**{"url": played.url, "model": "Qwen/Qwen2.5-VL-7B-Instruct", "timeout": 5.0} | options)  # type: ignore[arg-type]


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[Sample, str]]:
    samples = read(make_world(tmp_path, count=6) / "data").samples
    return [(sample, sentence) for sample in samples for sentence in sample.sentences]


def test_pixels_are_those_of_the_picture_that_was_sent(played: Played, pairs: list[tuple[Sample, str]]) -> None:
    found = endpoint(played).answer(pairs)
    assert len(found) == len(pairs) > 6
    for prior in found:
        assert prior is not None and prior.boxes[0] == pytest.approx(BOX, abs=0.02)
    assert sorted(text.split('"')[1] for text in played.asked) == sorted(sentence for _, sentence in pairs)


@pytest.mark.parametrize("bad", [429, 500, 503])
def test_what_passes_is_tried_again(played: Played, pairs: list[tuple[Sample, str]], bad: int) -> None:
    played.status = lambda number: bad if number < 3 else 200
    found = endpoint(played, concurrency=1).answer(pairs[:2])
    assert all(prior is not None and prior.boxes for prior in found) and len(played.begun) == 5


def test_a_server_that_fails_now_and_then_loses_no_pair(played: Played, tmp_path: Path) -> None:
    data = read(make_world(tmp_path, count=6) / "data")
    total = sum(len(sample.sentences) for sample in data.samples)
    played.status = lambda number: 500 if number % 3 == 0 else 200
    source = endpoint(played, retries=0)
    store = make_priors(data, tmp_path / "store", source=source)
    assert 0 < len(store) < total and len(source.missed) == total - len(store)
    store.close()
    played.status = lambda number: 200
    before = len(played.begun)
    store = make_priors(data, tmp_path / "store", source=endpoint(played))
    assert len(store) == total and len(played.begun) - before == len(source.missed)  # only what is missing
    store.close()


@pytest.mark.parametrize(("status", "word"), [(401, KEY), (403, KEY), (404, "knows no model")])
def test_what_cannot_get_better_stops_at_once(
    played: Played, pairs: list[tuple[Sample, str]], status: int, word: str
) -> None:
    played.status = lambda number: status
    with pytest.raises(InputError, match=word):
        endpoint(played, concurrency=1).answer(pairs)
    assert len(played.begun) == 1


def test_a_server_that_is_not_there(pairs: list[tuple[Sample, str]]) -> None:
    gone = Endpoint(url="http://127.0.0.1:9/v1", model="qwen3-vl", retries=0, timeout=1)
    with pytest.raises(InputError, match="none of 2 requests was answered"):
        gone.answer(pairs[:2])


@pytest.mark.parametrize("reply", ["I cannot see any shoe.", "", "[", '{"boxes": []}', '{"bbox_2d": [1e9, 0, 0, "x"]}'])
def test_a_reply_without_a_box_is_a_prior_that_says_so(
    played: Played, pairs: list[tuple[Sample, str]], reply: str
) -> None:
    played.reply = lambda text, seen: reply
    [prior] = endpoint(played).answer(pairs[:1])
    assert prior is not None and prior.empty and prior.note


NONE = [b"{}", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b'{"choices": null}', b"[1]"]


@pytest.mark.parametrize("body", NONE)
def test_an_answer_that_is_none_is_no_crash(played: Played, pairs: list[tuple[Sample, str]], body: bytes) -> None:
    played.body = body
    [prior] = endpoint(played, retries=0).answer(pairs[:1])
    assert prior is not None and prior.empty and prior.note


def test_a_slow_server_is_given_up(played: Played, pairs: list[tuple[Sample, str]]) -> None:
    played.delay = 1.0
    with pytest.raises(InputError, match="Timeout"):
        endpoint(played, timeout=0.2, retries=0).answer(pairs[:1])


def test_many_are_under_way_at_once_and_no_more_than_asked(played: Played, pairs: list[tuple[Sample, str]]) -> None:
    played.delay = 0.1
    endpoint(played, concurrency=3).answer(pairs)
    assert played.most == 3


def test_a_rate_is_kept(played: Played, pairs: list[tuple[Sample, str]]) -> None:
    endpoint(played, per_minute=600).answer(pairs[:5])
    assert min(b - a for a, b in zip(played.begun, played.begun[1:], strict=False)) > 0.05
    assert played.begun[-1] - played.begun[0] >= 0.35


def test_the_key_is_sent_and_written_nowhere(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    data = make_world(tmp_path, count=6) / "data"
    command = ["prior", str(data), "--source", "endpoint", "--url", played.url, "--model", "Qwen3-VL", "--out"]
    assert main([*command, str(tmp_path / "store")]) == 0
    assert played.keys == {f"Bearer {SECRET}"}
    told = capsys.readouterr()
    assert "priors of Qwen3-VL (endpoint)" in told.out and SECRET not in told.out + told.err
    assert not any(SECRET.encode() in one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
    store = PriorStore(tmp_path / "store")
    assert store.about()["name"] == "Qwen3-VL (endpoint)"
    store.close()


def test_another_model_or_dialect_is_another_store(played: Played) -> None:
    one = endpoint(played).fingerprint()
    assert one == endpoint(played, url="https://elsewhere.example/v1", concurrency=2).fingerprint()
    others = endpoint(played, model="qwen3-vl"), endpoint(played, dialect="plain")
    assert len({one, *(other.fingerprint() for other in others)}) == 3


@pytest.mark.parametrize(("options", "word"), [
    ({"url": ""}, "--url"), ({"model": ""}, "--model"), ({"model": "unheard-of"}, "--dialect"),
    ({"dialect": "klingon"}, "klingon"), ({"concurrency": 0}, "concurrency"), ({"timeout": 0}, "timeout"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Endpoint(**{"url": "http://127.0.0.1:9/v1", "model": "qwen3-vl"} | options)  # type: ignore[arg-type]
