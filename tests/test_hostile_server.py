"""The server under hostile clients: size, time, names, tokens, addresses; and what its answers never say."""

from __future__ import annotations

import argparse
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("multipart")
httpx = pytest.importorskip("httpx")

from test_serving import ABOUT, CONFIG, Fake, client, png, post, refused, text  # noqa: E402

from l2l.errors import InputError  # noqa: E402
from l2l.exchange import brush  # noqa: E402
from l2l.exchange.decisions import CORRECTIONS  # noqa: E402
from l2l.serving.app import create_app  # noqa: E402
from l2l.serving.guard import OPEN  # noqa: E402
from l2l.serving.labels import LabelFolder  # noqa: E402
from l2l.serving.limits import Limits  # noqa: E402
from l2l.serving.studio_pictures import StudioPictures  # noqa: E402

DEEP = 100_000
TOKEN = "a secret"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """A real server on loopback; yields its port."""
    import uvicorn

    from l2l.serving import server

    with server._listen("127.0.0.1", 0) as listener:
        ours = uvicorn.Server(uvicorn.Config(app, http=server.Protocol, ws="none", log_level="critical"))
        thread = threading.Thread(target=ours.run, kwargs={"sockets": [listener]})
        thread.start()
        while not ours.started:
            time.sleep(0.02)
        try:
            yield listener.getsockname()[1]
        finally:
            ours.should_exit = True
            thread.join(30)


def told(port: int, *pieces: bytes, pause: float = 0.0, most: float = 20.0) -> bytes:
    """What comes back for bytes sent in pieces, until the server closes."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=most) as line:
        try:
            for piece in pieces:
                line.sendall(piece)
                time.sleep(pause)
            line.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while part := line.recv(65536):
                found += part
        except OSError:
            pass
    return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_chunks_without_a_length_are_counted(fake: Fake) -> None:
    with listening(create_app(fake, ABOUT, limits=Limits(body_bytes=10_000))) as port:
        chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n"
        reply = told(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 12)
        assert reply.startswith(b"HTTP/1.1 413") and b"connection: close" in reply.lower()
        reply = told(port, HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n")
        assert reply[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 413")
        reply = told(port, HEAD + b"Content-Length: -5\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 400")
        assert told(port, HEAD + b"X: " + b"a" * 200_000 + b"\r\n\r\n")[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
        assert fake.pictures == 0
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_who_dribbles_is_let_go_and_others_are_served(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2l.serving import server

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.6)
    with listening(create_app(fake, ABOUT, limits=Limits(body_seconds=0.6))) as port:
        replies: list[bytes] = []
        slow = [
            [b"P", *[b"O"] * 30],  # a head that never ends, a byte at a time
            [HEAD, *[b"X-A: b\r\n"] * 30],
            [HEAD + b"Content-Length: 1000\r\n\r\n", *[b"x"] * 30],
            [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 30],
        ]
        crowd = [threading.Thread(target=lambda pieces=pieces: replies.append(told(port, *pieces, pause=0.1)))
                 for pieces in slow * 3]  # fmt: skip
        began = time.perf_counter()
        for one in crowd:
            one.start()
        asked = {"image": text(png()), "sentence": "left"}
        good = httpx.post(f"http://127.0.0.1:{port}/predict", json=asked, timeout=20)
        assert good.status_code == 200
        for one in crowd:
            one.join(20)
        assert time.perf_counter() - began < 15
        assert {reply[:12] for reply in replies} <= {b"", b"HTTP/1.1 408", b"HTTP/1.1 400"}
        assert sum(reply.startswith(b"HTTP/1.1 408") for reply in replies) >= 1


ASKED = ("/predict", "/label", "/metrics", "/docs", "/openapi.json", "/label-studio", "/label-studio/",
         "/label-studio/setup", "/label-studio/predict", "/label-studio/webhook", "/review/queue", "/review/item/0",
         "/review/picture/0", "/nowhere", "/health/", "/HEALTH", "/health%00")  # fmt: skip


def test_every_address_but_the_open_ones_wants_the_token(fake: Fake) -> None:
    with client(fake, token=TOKEN) as http:
        for path in OPEN:
            assert http.get(path).status_code in (200, 404)
        basic = base64.b64encode(f":{TOKEN}".encode()).decode()
        for path in ASKED:
            for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS"):
                assert http.request(method, path).status_code == 401, (method, path)
                assert http.request(method, path + "?token=a+secret").status_code == 401
            for known in (f"Bearer {TOKEN}", f"Basic {basic}"):
                assert http.get(path, headers={"authorization": known}).status_code != 401
        for wrong in ("", "Bearer", "Bearer ", "Bearer a", f"Bearer {TOKEN}x", f"Token {TOKEN}", TOKEN, "Basic",
                      "Basic " + base64.b64encode(TOKEN.encode()).decode(), "Basic \xff"):  # fmt: skip
            given = {"authorization": wrong.encode("latin-1")}
            assert http.get("/metrics", headers=given).status_code == 401, wrong
    assert not {"/predict", "/label", "/metrics", "/review/queue"} & set(OPEN)


def test_the_token_is_compared_in_constant_time(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr("l2l.serving.guard.hmac.compare_digest", lambda a, b: seen.append((a, b)) or real(a, b))
    with client(fake, token=TOKEN) as http:
        http.get("/metrics", headers={"authorization": "Bearer x"})
    assert seen == [(b"x", TOKEN.encode())]


def options(*given: str) -> argparse.Namespace:
    from l2l.serving.commands import serve_options

    parser = argparse.ArgumentParser()
    serve_options(parser)
    return parser.parse_args(["run", *given])


def test_loopback_unless_told_otherwise_and_a_token_from_either_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from l2l.serving import commands, server

    assert options().host == "127.0.0.1" and options().token is None
    with pytest.raises(InputError, match="not empty"):
        commands.serve(options("--token", " "))
    given: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def made(*_: Any, **more: Any) -> None:
        given.update(more)
        raise Stop

    monkeypatch.setattr(server, "open_run", lambda *_, **__: (None, ABOUT))
    monkeypatch.setattr(server, "create_app", made)
    cases = (((), "", ""), ((), "e", "e"), (("--token", "t"), "e", "t"), (("--token", "t"), "", "t"))
    for asked, known, expected in cases:
        monkeypatch.setenv("L2L_TOKEN", known)
        with pytest.raises(Stop):
            commands.serve(options(*asked))
        assert given["token"] == expected and given["hosts"] == ("127.0.0.1",)


HOSTS = ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8321",
         "127.0.0.1@evil.example", "")  # fmt: skip


def test_names_that_were_moved_here(fake: Fake) -> None:
    with client(fake) as http:
        for host in HOSTS:
            refused(http.get("/health", headers={"host": host}), 421)
            refused(http.post("/predict", headers={"host": host}, content=b"{}"), 421)
        for host in ("127.0.0.1", "127.0.0.1:8321", "localhost", "LOCALHOST:1", "[::1]:8321", "10.0.0.7"):
            assert http.get("/health", headers={"host": host}).status_code == 200
        for origin in (
            "null",
            "http://evil.example",
            "http://127.0.0.1.evil.example",
            "https://127.0.0.1:9",
            "file://",
        ):
            refused(http.get("/health", headers={"origin": origin}), 403)


LEAKS = ("Traceback", 'File "', "site-packages", ".py", "/secret", "/tmp", str(Path(__file__).parents[1]), "0x")


def test_an_internal_error_says_nothing_of_this_machine(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("/secret/path.py: no such thing at 0x7f00")

    with client(fake, labels=tmp_path / "kept") as http:
        asked = {"image": text(png()), "sentence": "left"}
        task = {"data": {"image": "data:image/png;base64," + text(png()), "say": "left"}, "id": 1}
        sent = [("/predict", asked), ("/label", {**asked, "verdict": "reject"}),
                ("/label-studio/predict", {"tasks": [task], "label_config": CONFIG}),
                ("/label-studio/webhook", {"action": "ANNOTATION_CREATED", "project": {"label_config": CONFIG},
                                           "task": task, "annotation": {"result": []}})]  # fmt: skip
        monkeypatch.setattr("l2l.serving.pictures.load", broken)
        monkeypatch.setattr("l2l.serving.labels.write_durably", broken)
        monkeypatch.setattr("l2l.serving.studio_pictures.picture", broken)
        for path, value in sent:
            refused(post(http, path, value), 500)
        monkeypatch.setattr("l2l.serving.metrics.Metrics.text", broken)
        refused(http.get("/metrics"), 500)
        monkeypatch.undo()  # the server still has to stop


def test_no_answer_to_noise_says_anything_of_this_machine(fake: Fake, tmp_path: Path) -> None:
    bodies = [b"", b"\xff" * 50, b"[" * DEEP, b'{"a":' * DEEP, b"9" * 10_000,
              b'{"tasks": ' + b"[" * 900 + b"]" * 900 + b"}",
              b'{"image": 1e999}', b'{"tasks": [{}], "label_config": "<a>"}', b'{"action": "ANNOTATION_CREATED"}',
              json.dumps({"tasks": [{}], "label_config": "<a>" * DEEP}).encode(),
              json.dumps({"tasks": [{}], "label_config": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}).encode(),
              ]  # fmt: skip
    paths = ("/predict", "/label", "/label-studio/setup", "/label-studio/predict", "/label-studio/webhook", "/nowhere",
             "/review/item/..%2f..%2fetc", "/page.js/../../x", "/%2e%2e/%2e%2e/etc/passwd", "/predict%00")  # fmt: skip
    with client(fake, labels=tmp_path / "kept") as http:
        for path in paths:
            for body in bodies:
                began = time.process_time()
                reply = http.post(path, content=body, headers={"content-type": "application/json"})
                assert time.process_time() - began < 5
                assert reply.status_code < 500, (path, body[:40], reply.text)
                assert not any(word in reply.text for word in LEAKS), reply.text
        for body in (b"--a\r\n" * 20_000, b"--a\r\nContent-Disposition: form-data; name=" + b"b" * 500_000,
                     b"--a\r\n" + b"X: y\r\n" * 50_000, b"\r\n" * 200_000):  # fmt: skip
            began = time.process_time()
            reply = http.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=a"})
            assert reply.status_code in (400, 413, 422) and not any(word in reply.text for word in LEAKS)
            assert time.process_time() - began < 5


def test_strokes_without_end(fake: Fake, tmp_path: Path) -> None:
    drawn = {"from_name": "brush", "original_width": 30, "original_height": 20,
             "value": {"rle": brush.encode(np.ones((20, 30), bool))}}  # fmt: skip
    told_ = {"action": "ANNOTATION_CREATED", "project": {"label_config": CONFIG, "id": "\ud800" * 9},
             "task": {"id": "x" * 1000, "data": {"image": "data:image/png;base64," + text(png()), "say": "left",
                                                 "id": "a\x00"}},
             "annotation": {"result": [drawn] * 65, "id": 10**300}}  # fmt: skip
    with client(fake, labels=tmp_path, pixels=600) as http:
        refused(post(http, "/label-studio/webhook", told_), 413, "strokes")
        told_["annotation"]["result"] = [drawn] * 3
        reply = post(http, "/label-studio/webhook", told_)
        assert reply.status_code == 201 and reply.json()["ids"] == ["ls-0-0"]  # ids that cannot be kept are made up
        large = {**drawn, "original_width": 32_767, "original_height": 32_767}
        told_["annotation"]["result"] = [large]
        refused(post(http, "/label-studio/webhook", told_), 422)
        for key in ("", "a\x00", "x" * 257, 10**300):
            asked = {"image": text(png()), "sentence": "it", "verdict": "reject", "id": key}
            refused(post(http, "/label", asked), 422)
    assert LabelFolder(tmp_path).verdicts() == {"ls-0-0": "accept"}


def test_a_label_folder_of_a_stranger(tmp_path: Path) -> None:
    whole = {"id": "a", "verdict": "accept", "file_name": "images/a.png", "sentence": "it",
             "mask": {"size": [4, 6], "counts": [24]}}  # fmt: skip
    for line in ("[" * DEEP, "[]", "7", '{"id": 1}', json.dumps(whole | {"file_name": "../../a.png"}),
                 json.dumps(whole | {"mask": 5}), json.dumps(whole | {"sentence": 5})):  # fmt: skip
        (tmp_path / CORRECTIONS).write_text(line + "\n")
        with pytest.raises(InputError, match="line 1"):
            LabelFolder(tmp_path)


ELSEWHERE = (
    "http://169.254.169.254/latest/meta-data", "http://evil.example/a.png", "//evil.example/a.png", "file:///etc/passwd",
    "ftp://studio.example/a.png", "gopher://studio.example/", "http://studio.example@evil.example/a.png",
    "http://studio.example:80@evil.example/", "http://studio.example.evil.example/", "http://evil.example#@studio.example/",
    "http://evil.example\\@studio.example/", "https://studio.example/a.png", "http://studio.example:81/a.png",
    "http://[::1]/a.png", "http://127.0.0.1:22/", "\\\\evil.example\\a", "data:text/html,x",
    "/data/local-files/?d=../secret.png", "/data/local-files/?d=/etc/passwd", "/data/local-files/?d=a%00.png",
    "/data/local-files/?d=link.png", "/data/local-files/?d=", "http://studio.example:x/", "http://[",
)  # fmt: skip


@pytest.mark.parametrize("address", ELSEWHERE)
def test_pictures_elsewhere_are_not_asked_for(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2l.serving.refusal import Refusal

    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    asked: list[str] = []
    studio = StudioPictures(Limits(), {"LABEL_STUDIO_URL": "http://studio.example",
                                       "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root)})  # fmt: skip
    monkeypatch.setattr(studio, "_ask", lambda url: asked.append(url) or png())
    with pytest.raises(Refusal) as caught:
        studio.get(address)
    assert not asked and str(tmp_path) not in caught.value.error + caught.value.hint
