from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import make_world, stir, train_arguments

import l2l
from l2l.cli import main
from l2l.errors import InputError
from l2l.predict import Prediction, Predictor, tight_box
from l2l.rle import Rle

pytest.importorskip("fastapi")
pytest.importorskip("multipart")
httpx = pytest.importorskip("httpx")

from fastapi.testclient import TestClient  # noqa: E402

from l2l.exchange import brush  # noqa: E402
from l2l.exchange.decisions import CORRECTIONS  # noqa: E402
from l2l.exchange.label_studio import CONFIG as EXPORTED  # noqa: E402
from l2l.exchange.label_studio import NOTHING, REJECT, corrections_of  # noqa: E402
from l2l.serving.app import About, create_app  # noqa: E402
from l2l.serving.labels import METADATA, LabelFolder  # noqa: E402
from l2l.serving.limits import Limits  # noqa: E402
from l2l.serving.studio_pictures import StudioPictures  # noqa: E402

HERE = "http://127.0.0.1"
CONFIG = """<View><Text name="what" value="$say"/><Image name="img" value="$image"/>
<BrushLabels name="brush" toName="img"><Label value="Target"/></BrushLabels></View>"""


class Fake:
    """Answers with the box's pixels, or the left half; `nothing` means nothing; counts what it is asked."""

    def __init__(self) -> None:
        self.pictures = 0
        self.together: list[int] = []
        self.open = threading.Event()
        self.open.set()

    def set_image(self, image: np.ndarray) -> None:
        self.pictures += 1
        self.size = image.shape[:2]

    def segment_all(self, sentences: Any, boxes: Any = None) -> list[Prediction]:
        self.open.wait(20)
        self.together.append(len(sentences))
        if "broken" in sentences:
            raise RuntimeError("/secret/path of the network")
        found = []
        for sentence, box in zip(sentences, boxes, strict=True):
            mask = np.zeros(self.size, bool)
            x0, y0, x1, y1 = (0, 0, self.size[1] // 2, self.size[0]) if box is None else map(int, box)
            mask[y0:y1, x0:x1] = sentence != "nothing"
            found.append(Prediction(mask, 0.75, tight_box(mask)))
        return found


    def segment_many(self, pictures: Any, sentences: Any, boxes: Any) -> list[list[Prediction]]:
        found = []
        for picture, *asked in zip(pictures, sentences, boxes, strict=True):
            self.set_image(picture)
            found.append(self.segment_all(*asked))
        return found


ABOUT = About("run", "0123abcd", "l2l", 7, "run-7-89abcdef")


def client(fake: Fake, *, labels: Path | None = None, token: str = "", **limits: Any) -> TestClient:
    folder = LabelFolder(labels) if labels else None
    app = create_app(fake, ABOUT, limits=Limits(**limits), labels=folder, token=token)
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


def png(height: int = 20, width: int = 30, value: int = 90, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(out, format="PNG", **options)
    return out.getvalue()


def post(http: Any, path: str, value: Any) -> Any:
    """As `http.post(path, json=value)`, but sends also what no client would."""
    return http.post(path, content=json.dumps(value), headers={"content-type": "application/json"})


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels, and that holds none."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(reply: Any, status: int, said: str = "") -> None:
    """A clear JSON error without anything of this machine."""
    assert reply.status_code == status, (reply.status_code, reply.text)
    told = reply.json()
    assert set(told) == {"error", "hint"} and told["error"] and told["hint"]
    assert said in told["error"], told
    leaks = ("Traceback", "/work", "/tmp", "site-packages", ".py", "0x", "/secret")
    assert not any(word in reply.text for word in leaks), reply.text


@pytest.fixture
def fake() -> Fake:
    return Fake()


def test_predict_as_json_and_as_a_form(fake: Fake) -> None:
    with client(fake) as http:
        asked = {"image": text(png()), "sentences": ["left", "nothing", "box"], "boxes": [None, None, [3, 4, 9, 10]]}
        reply = http.post("/predict", json=asked)
        assert reply.status_code == 200, reply.text
        told = reply.json()
        assert told["size"] == [20, 30] and told["run"] == ABOUT.hash
        left, nothing, boxed = told["answers"]
        assert left["box"] == [0, 0, 15, 20] and left["area"] == 300 and left["score"] == 0.75 and not left["nothing"]
        assert Rle.from_coco(left["mask"]).decode()[:, :15].all()
        assert nothing["nothing"] and nothing["box"] is None and nothing["area"] == 0
        assert boxed["box"] == [3, 4, 9, 10]
        assert fake.pictures == 1 and fake.together == [3]
        form = http.post("/predict", files={"image": png()}, data={
            "sentence": ["left", "nothing", "box"], "boxes": "[null, null, [3, 4, 9, 10]]"})  # fmt: skip
        assert form.json() == told
        one = http.post("/predict", json={"image": "data:image/png;base64," + text(png()), "sentence": "left",
                                          "format": "png", "run": "run"}).json()["answers"]  # fmt: skip
        with Image.open(io.BytesIO(base64.b64decode(one[0]["mask"]))) as mask:
            assert np.array_equal(np.asarray(mask) > 0, Rle.from_coco(left["mask"]).decode())


def test_exif_turns_picture_and_answer(fake: Fake) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with client(fake) as http:
        reply = http.post("/predict", json={"image": text(png(20, 30, exif=exif)), "sentence": "left"})
        assert reply.json()["size"] == [30, 20]


BAD_JSON: list[tuple[Any, int, str]] = [
    ({"sentence": "a"}, 422, "image"),
    ({"image": "?!", "sentence": "a"}, 422, "not base64"),
    ({"image": "", "sentence": "a"}, 422, "empty picture"),
    ({"image": text(b"hello, not a picture"), "sentence": "a"}, 415, "format"),
    ({"image": text(png()[:60]), "sentence": "a"}, 422, "damaged"),
    ({"image": text(bomb(40_000)), "sentence": "a"}, 413, "pixels"),
    ({"image": text(bomb(6_000)), "sentence": "a"}, 413, "pixels"),
    ({"image": text(png())}, 422, "sentence"),
    ({"image": text(png()), "sentence": "a", "sentences": ["b"]}, 422, "either"),
    ({"image": text(png()), "sentence": " \t"}, 422, "empty sentence"),
    ({"image": text(png()), "sentences": []}, 422, "no sentence"),
    ({"image": text(png()), "sentences": ["a"] * 65}, 413, "sentences"),
    ({"image": text(png()), "sentence": "a" * 513}, 413, "characters"),
    ({"image": text(png()), "sentence": "\ud800"}, 422, "no text"),
    ({"image": text(png()), "sentence": 3}, 422, "sentence"),
    ({"image": text(png()), "sentence": "a", "boxes": []}, 422, "0 boxes for 1"),
    ({"image": text(png()), "sentence": "a", "boxes": [[1, 2, 3]]}, 422, "4 numbers"),
    ({"image": text(png()), "sentence": "a", "boxes": [[5, 5, 5, 9]]}, 422, "without area"),
    ({"image": text(png()), "sentence": "a", "boxes": [[50, 50, 90, 90]]}, 422, "outside"),
    ({"image": text(png()), "sentence": "a", "boxes": [[0, 0, 1, "x"]]}, 422, "boxes.0"),
    ({"image": text(png()), "sentence": "a", "boxes": [[0, 0, 1, 10**400]]}, 422, "boxes"),
    ({"image": text(png()), "sentence": "a", "format": "gif"}, 422, "format"),
    ({"image": text(png()), "sentence": "a", "/tmp/x": 1}, 422, "not known"),
    ({"image": text(png()), "sentence": "a", "run": "another"}, 404, "not here"),
    ({"tasks": []}, 422, "Label Studio"),
    ([1], 422, "no JSON object"),
]


def test_misuse_is_told_in_one_line_and_does_no_harm(fake: Fake) -> None:
    with client(fake) as http:
        for value, status, said in BAD_JSON:
            refused(post(http, "/predict", value), status, said)
        head = {"content-type": "application/json"}
        start = json.dumps({"image": text(png()), "sentence": "a"})[:-1]
        for box in ("[[NaN,0,1,1]]", "[[0,0,Infinity,1]]"):
            refused(http.post("/predict", content=start + ',"boxes":' + box + "}", headers=head), 422, "NaN")
        refused(http.post("/predict", content=start + ',"boxes":[[0,0,1e999,1]]}', headers=head), 422, "finite")
        for body in (b"", b"{", b"\xff\xfe", b"[" * 200_000, b"9" * 10_000):
            refused(http.post("/predict", content=body, headers=head), 400, "not JSON")
        refused(http.post("/predict", content=b"x", headers={"content-type": "text/plain"}), 415)
        refused(http.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400)
        refused(http.post("/predict", content=b"x", headers={"content-type": "multipart/form-data; boundary=a"}), 400)
        refused(http.post("/predict", data={"sentence": "a"}, files={"other": png()}), 422)
        refused(http.post("/predict", data={"sentence": "a", "image": "text"}, files={"x": b""}), 422)
        refused(http.post("/predict", data={"sentence": ["a"] * 90}, files={"image": png()}), 413)
        refused(http.get("/predict"), 405)
        refused(http.get("/nowhere"), 404)
        refused(http.post("/label", json={}), 403, "no labels")
        assert fake.pictures == 0
        good = http.post("/predict", json={"image": text(png()), "sentence": "left"})
        assert good.status_code == 200
        shown = http.get("/metrics").text
        assert 'l2l_requests_total{endpoint="/predict",status="200"} 1' in shown
        assert 'l2l_errors_total{kind="json"} 5' in shown and 'l2l_errors_total{kind="pixels"} 2' in shown
        assert 'l2l_request_seconds_bucket{endpoint="/predict",le="+Inf"}' in shown and "l2l_queue_length 0" in shown
        assert "l2l_batch_sentences_count 1" in shown and "nowhere" not in shown


def test_a_bomb_is_not_decoded(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2l.serving.pictures.load", lambda *_, **__: pytest.fail("it was decoded"))
    with client(fake, pixels=500) as http:
        refused(http.post("/predict", json={"image": text(png()), "sentence": "a"}), 413, "more than 500 pixels")


def test_a_fault_of_the_network_hits_only_who_caused_it(fake: Fake) -> None:
    with client(fake) as http:
        refused(http.post("/predict", json={"image": text(png()), "sentence": "broken"}), 500)
        assert http.post("/predict", json={"image": text(png()), "sentence": "left"}).status_code == 200
        assert 'l2l_errors_total{kind="internal"} 1' in http.get("/metrics").text


def test_hosts_origins_and_token(fake: Fake) -> None:
    with client(fake, token="s\u00e9cret") as http:
        assert http.get("/health").json()["status"] == "UP"
        for given in ({}, {"authorization": "Bearer x"}, {"authorization": "secret"}, {"authorization": "Basic ??"}):
            reply = http.get("/metrics", headers=given)
            refused(reply, 401)
            assert reply.headers["www-authenticate"]
        basic = base64.b64encode("me:s\u00e9cret".encode()).decode()
        assert http.get("/metrics", headers={"authorization": f"Basic {basic}"}).status_code == 200
    with client(fake, token="secret") as http:
        known = {"authorization": "Bearer secret"}
        reply = http.get("/metrics", headers=known)
        assert reply.status_code == 200 and "access-control-allow-origin" not in reply.headers
        refused(http.get("/health", headers={"host": "evil.example"}), 421)
        refused(http.get("/metrics", headers={**known, "origin": "http://evil.example"}), 403)
        refused(http.get("/metrics", headers={**known, "sec-fetch-site": "cross-site"}), 403)
        assert http.get("/metrics", headers={**known, "origin": HERE}).status_code == 200
        assert http.get("/health", headers={"host": "[::1]:80"}).status_code == 200
        refused(http.options("/predict", headers={**known, "origin": "http://evil.example"}), 403)


def test_docs(fake: Fake) -> None:
    with client(fake) as http:
        assert http.get("/docs").status_code == 200
        paths = http.get("/openapi.json").json()["paths"]
        assert set(paths["/predict"]["post"]["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        assert {"/label", "/health", "/metrics", "/label-studio/predict", "/label-studio/webhook"} <= set(paths)


def test_a_body_that_is_too_large(fake: Fake) -> None:
    with client(fake, body_bytes=1000) as http:
        refused(http.post("/predict", content=b"x" * 1001), 413)
        refused(http.post("/predict", content=(b"x" * 300 for _ in range(9))), 413)  # no length is given


def test_slow_clients_are_let_go(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    from l2l.serving import server

    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    app = create_app(fake, ABOUT, limits=Limits(body_seconds=0.5))
    with server._listen("127.0.0.1", 0) as listener:
        ours = uvicorn.Server(uvicorn.Config(app, http=server.Protocol, ws="none", log_level="warning"))
        thread = threading.Thread(target=ours.run, kwargs={"sockets": [listener]})
        thread.start()
        while not ours.started:
            time.sleep(0.05)
        port = listener.getsockname()[1]
        try:
            start = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            for sent, told in ((b"", b""), (start, b""), (start + b"Content-Length: 9\r\n\r\nab", b"HTTP/1.1 408")):
                with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
                    slow.sendall(sent)
                    try:
                        reply = b"".join(iter(lambda slow=slow: slow.recv(65536), b""))
                    except ConnectionResetError:
                        reply = b""
                    assert reply[:12] == told
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:  # a kept connection is not slow
                for _ in range(3):
                    assert http.get("/health").status_code == 200
                    time.sleep(0.2)
                assert 'l2l_errors_total{kind="slow"} 1' in http.get("/metrics").text
        finally:
            ours.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def test_waiting_requests_are_taken_together(fake: Fake) -> None:
    app = create_app(fake, ABOUT, limits=Limits(waiting=6, seconds=20))

    async def go() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=HERE) as http:
            fake.open.clear()
            def ask(content: bytes, sentence: str) -> Any:
                return asyncio.create_task(http.post("/predict", json={"image": text(content), "sentence": sentence}))

            first = ask(png(value=1), "left")
            await asyncio.sleep(0.3)  # the network has it
            rest = [ask(png(value=2), "left") for _ in range(3)] + [ask(png(value=3), "broken"), ask(png(value=3), "a")]
            await asyncio.sleep(0.3)
            late = await ask(png(), "left")
            refused(late, 503)
            assert late.headers["retry-after"] == "1"
            assert "l2l_queue_length 5" in (await http.get("/metrics")).text
            fake.open.set()
            return await asyncio.gather(first, *rest)

    assert [reply.status_code for reply in asyncio.run(go())] == [200, 200, 200, 200, 500, 200]
    assert fake.together[:2] == [1, 3]  # three requests, one picture
    app.state.service.batcher.close()


def test_who_waits_too_long_is_told_and_forgotten(fake: Fake) -> None:
    with client(fake, seconds=0.3) as http:
        fake.open.clear()
        began = time.perf_counter()
        refused(http.post("/predict", json={"image": text(png()), "sentence": "a"}), 504)
        refused(http.post("/predict", json={"image": text(png()), "sentence": "b"}), 504)
        assert time.perf_counter() - began < 5
        fake.open.set()
        time.sleep(0.2)
        assert fake.together == [1]  # the second was not answered in vain
        assert http.post("/predict", json={"image": text(png()), "sentence": "a"}).status_code == 200


def test_labels_are_kept_and_can_be_trained_on(fake: Fake, tmp_path: Path) -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:12] = True
    rle, drawn = Rle.encode(mask).to_coco(), io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(drawn, format="PNG")
    told = {"image": text(png()), "sentence": "the box", "mask": rle, "verdict": "accept"}
    with client(fake, labels=tmp_path / "kept") as http:
        assert http.post("/label", json={**told, "id": "r1_0"}).json() == {"id": "r1_0"}
        assert http.post("/label", json={**told, "id": 17}).json() == {"id": 17}
        made = http.post("/label", files={"image": png(), "mask": drawn.getvalue()},
                         data={"sentence": "a form", "verdict": "accept"}).json()["id"]  # fmt: skip
        assert http.post("/label", files={"image": png()}, data={
            "sentence": "RLE in a form", "verdict": "accept", "mask": json.dumps(rle)}).status_code == 200  # fmt: skip
        assert http.post("/label", json={**told, "mask": text(drawn.getvalue()), "id": "wrong"}).status_code == 200
        reject = {name: value for name, value in told.items() if name != "mask"} | {"verdict": "reject"}
        assert http.post("/label", json={**reject, "id": "wrong"}).status_code == 200
        empty = Rle.encode(np.zeros((20, 30), bool)).to_coco()
        assert http.post("/label", json={**told, "id": "none", "mask": empty}).status_code == 200
        for change, status, said in (
            ({"verdict": "perhaps"}, 422, "verdict"), ({"mask": None}, 422, "needs the mask"),
            ({"mask": {"size": [20, 31], "counts": rle["counts"]}}, 422, "another size"),
            ({"mask": {"size": [20, 30], "counts": "zz"}}, 422, "mask"), ({"mask": {}}, 422, "mask"),
            ({"mask": {"size": [20, 30], "counts": [1, float("1e300")]}}, 422, "mask"),
            ({"mask": text(png(9, 9))}, 422, "another size"), ({"mask": text(b"GIF89a")}, 415, "no PNG"),
            ({"mask": text(bomb(20_000))}, 422, "mask"), ({"id": ""}, 422, "id"), ({"id": "\udfff"}, 422, "id"),
            ({"image": text(png()[:-30])}, 422, "damaged"), ({"sentence": ""}, 422, "empty sentence"),
        ):  # fmt: skip
            refused(post(http, "/label", {**told, **change}), status, said)
    lines = [json.loads(line) for line in (tmp_path / "kept" / CORRECTIONS).read_text().splitlines()]
    assert [line["id"] for line in lines][:3] == ["r1_0", 17, made] and len(lines) == 7
    assert lines[0]["mask"] == lines[2]["mask"] == rle and lines[0]["run"] == ABOUT.hash
    samples = {sample.id: sample for sample in l2l.read(tmp_path / "kept").samples}
    assert set(samples) == {"r1_0", "17", made, lines[3]["id"], "none"}  # the last word on `wrong` was reject
    assert samples["none"].targets == () and samples["r1_0"].targets == (Rle.from_coco(rle),)


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    folder = LabelFolder(tmp_path)
    folder.add(sentence="a", verdict="reject", mask=None, picture=None, key="1")
    with (tmp_path / CORRECTIONS).open("ab") as file:
        file.write(b'{"id": "2", "sent' + b"x" * 70_000)
    folder.add(sentence="b", verdict="reject", mask=None, picture=None, key="3")
    (tmp_path / CORRECTIONS).open("ab").write(b"{")
    LabelFolder(tmp_path)
    assert [json.loads(line)["id"] for line in (tmp_path / CORRECTIONS).read_text().splitlines()] == ["1", "3"]
    (tmp_path / CORRECTIONS).write_text("{}\n")
    with pytest.raises(InputError, match="no line of ours"):
        LabelFolder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        LabelFolder(tmp_path / "file")


def test_a_full_disk_is_told(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device", "/tmp/secret")

    with client(fake, labels=tmp_path) as http:
        told = {"image": text(png()), "sentence": "a", "verdict": "reject"}
        with monkeypatch.context() as changed:
            changed.setattr("l2l.serving.labels.os.fsync", full)
            refused(http.post("/label", json=told), 507)
        assert (tmp_path / CORRECTIONS).read_bytes() == b""
        assert http.post("/label", json=told).status_code == 200


def test_brush_masks_are_those_of_label_studio() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((17, 23)) > 0.5, np.zeros((9, 9), bool), np.ones((300, 400), bool), np.eye(40, 61, 3, bool)]
    for mask in masks:
        assert np.array_equal(brush.decode(brush.encode(mask), mask.shape), mask)
    for rle in (brush.encode(masks[0])[:-9], [], [256], ["a"], brush.encode(np.ones((3, 3), bool))):
        with pytest.raises(InputError, match="brush RLE"):
            brush.decode(rle, (17, 23))
    theirs = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in masks:
        assert brush.encode(mask) == theirs.mask2rle(mask.astype(np.uint8) * 255)
    rgba = rng.integers(0, 2, (12, 10, 4)).astype(np.uint8) * 255  # literal stretches too
    assert np.array_equal(brush.decode(theirs.encode_rle(rgba.ravel()), (12, 10)), rgba[..., 3] != 0)


def test_label_studio(fake: Fake, tmp_path: Path) -> None:
    address = "data:image/png;base64," + text(png())
    task = {"id": 5, "data": {"image": address, "say": "left"}}
    asked = {"tasks": [task], "label_config": CONFIG, "project": "3.17", "model_version": None, "params": {}}
    with client(fake, labels=tmp_path) as http:
        assert http.get("/label-studio/health").json()["status"] == http.get("/label-studio").json()["status"] == "UP"
        setup = {"project": "3.17", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x"}
        assert http.post("/label-studio/setup", json=setup).json() == {"model_version": ABOUT.version}
        (found,) = http.post("/label-studio/predict", json=asked).json()["results"]
        (region,) = found["result"]
        assert found["score"] == region["score"] == 0.75 and found["model_version"] == ABOUT.version
        assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "img", "brushlabels")
        assert (region["original_width"], region["original_height"]) == (30, 20)
        assert region["value"]["format"] == "rle" and region["value"]["brushlabels"] == ["Target"]
        assert brush.decode(region["value"]["rle"], (20, 30))[:, :15].all()
        pointed = {"result": [{"type": "rectanglelabels", "value": {"x": 10, "y": 10, "width": 50, "height": 50}}]}
        (drawn,) = http.post("/label-studio/predict", json={**asked, "params": {"context": pointed}}).json()["results"]
        assert tight_box(brush.decode(drawn["result"][0]["value"]["rle"], (20, 30))) == (3, 2, 18, 12)
        lost = {"id": 6, "data": {"image": "http://10.0.0.1/secret.png", "say": "a"}}
        good, bad = http.post("/label-studio/predict", json={**asked, "tasks": [task, lost]}).json()["results"]
        assert good["result"] and not bad["result"] and "not asked" in bad["error"]
        nothing = {**asked, "tasks": [{"data": {"image": address, "say": "nothing"}}]}
        assert http.post("/label-studio/predict", json=nothing).json()["results"][0]["result"] == []

        event = {"action": "ANNOTATION_CREATED", "project": {"id": 3, "label_config": CONFIG}, "task": task,
                 "annotation": {"id": 9, "result": [region]}}  # fmt: skip
        assert http.post("/label-studio/webhook", json=event).json() == {"status": "ok", "ids": ["ls-3-5"]}
        mended = {**region, "value": {"format": "rle", "rle": brush.encode(np.eye(20, 30, dtype=bool))}}
        later = {**event, "action": "ANNOTATION_UPDATED", "annotation": {"id": 9, "result": [mended]}}
        assert http.post("/label-studio/webhook", json=later).status_code == 201
        for change in (
            {"task": {"id": 7, "data": {"image": address, "say": "empty", "id": "mine"}}, "annotation": {"result": []}},
            {"task": {**task, "id": 8}, "annotation": {"result": [], "was_cancelled": True}},
            {"task": {"id": 9, "data": {"image": "/data/upload/x.png", "say": "a"}}},
            {"task": {"id": 10, "data": {"image": address, "sentences": ["left", "right"]}}},
        ):
            reply = http.post("/label-studio/webhook", json={**event, **change})
            assert reply.status_code == 201, reply.text
        assert http.post("/label-studio/webhook", json={"action": "TASKS_CREATED"}).json() == {"status": "ignored"}
        for change, said in (
            ({"task": None}, "no JSON object"), ({"project": {}}, "labelling interface"),
            ({"project": {"label_config": "<!DOCTYPE a><View/>"}}, "DOCTYPE"),
            ({"project": {"label_config": "<View>"}}, "no XML"), ({"project": {"label_config": "<View/>"}}, "no brush"),
            ({"annotation": {"result": [{**region, "original_width": 31}]}}, "another size"),
            ({"annotation": {"result": [{**region, "original_width": True}]}}, "without its picture's size"),
            ({"annotation": {"result": [{**region, "value": {"rle": [1, 2]}}]}}, "brush RLE"),
            ({"annotation": {"result": [{**region, "value": None}]}}, "brush RLE"),
        ):
            refused(http.post("/label-studio/webhook", json={**event, **change}), 422, said)
        refused(http.post("/label-studio/predict", json={**asked, "tasks": "x"}), 422)
        refused(http.post("/label-studio/predict", json={**asked, "tasks": [task] * 65}), 413)
    lines = [json.loads(line) for line in (tmp_path / CORRECTIONS).read_text().splitlines()]
    assert [line["id"] for line in lines] == ["ls-3-5", "ls-3-5", "mine", "ls-3-8", "ls-3-9", "ls-3-10_0", "ls-3-10_1"]
    assert lines[0]["label_studio"] == {"project": 3, "task": 5, "annotation": 9}
    assert lines[3]["verdict"] == "reject" and lines[4]["address"] == "/data/upload/x.png"
    kept = {sample.id: sample for sample in l2l.read(tmp_path).samples}
    assert set(kept) == {"ls-3-5", "mine", "ls-3-10_0", "ls-3-10_1"} and kept["mine"].targets == ()
    (target,) = kept["ls-3-5"].targets or ()
    assert np.array_equal(target.decode(), np.eye(20, 30, dtype=bool))
    assert len((tmp_path / METADATA).read_text().splitlines()) == 4


DRAWN = list(bytes.fromhex(
    "00000600391bfed3008c172d8046fd1af4687194461b93c023198cd23508dae3698d323418d1e31fc960118746511"
    "9b467718df03e3000"
))  # fmt: skip
"""A stroke that was drawn in Label Studio 1.23.2, on a picture of 16 x 24."""


def told_by_label_studio(result: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What Label Studio 1.23.2 sent as a webhook in a project of `l2l export`, less what nobody reads."""
    size = {"original_width": 24, "original_height": 16, "image_rotation": 0, "to_name": "image", "origin": "manual"}
    data = {"image": "data:image/png;base64," + text(png(16, 24)), "sentence": "the red ring", "sentence_id": "s0",
            "file_name": "small.png"}  # fmt: skip
    annotation = {"id": 7, "result": [{**size, **one} for one in result], "was_cancelled": False, "task": 38,
                  "project": 2, "prediction": {}, "updated_at": "2026-11-27T12:53:20.438376Z", **more}  # fmt: skip
    return {"action": "ANNOTATION_CREATED", "annotation": annotation, "task": {"id": 38, "data": data, "project": 2},
            "project": {"id": 2, "title": "small", "label_config": EXPORTED}}  # fmt: skip


def test_what_label_studio_sends_of_exported_tasks(fake: Fake, tmp_path: Path) -> None:
    """The webhook makes of an annotation what `l2l import` makes of it in an export."""
    stroke = {"value": {"format": "rle", "rle": DRAWN, "brushlabels": ["referent"]}, "id": "c1meB_zt4i",
              "from_name": "brush", "type": "brushlabels"}  # fmt: skip
    corners = [[26.99822380106572, 20.071047957371228], [80.81705150976909, 25.044404973357015],
               [67.49555950266429, 60.03552397868561]]  # fmt: skip
    outline = {"value": {"points": corners, "closed": True, "polygonlabels": ["referent"]}, "id": "lhkBJA6R5w",
               "from_name": "polygon", "type": "polygonlabels"}  # fmt: skip
    erased = {**stroke, "value": {**stroke["value"], "rle": brush.encode(np.zeros((16, 24), bool))}}
    reject, nothing = ({"value": {"choices": [said]}, "id": "QG_X8LA_dm", "from_name": "verdict", "type": "choices"}
                       for said in (REJECT, NOTHING))  # fmt: skip
    events = [told_by_label_studio(*one) for one in ([[stroke]], [[outline]], [[stroke, outline]], [[stroke, reject]],
              [[nothing]], [[]], [[erased]], [[erased, nothing]])]  # fmt: skip
    events.append(told_by_label_studio([stroke, outline], was_cancelled=True))
    with client(fake, labels=tmp_path) as http:
        for event in events:
            reply = http.post("/label-studio/webhook", json=event)
            assert reply.status_code == 201 and reply.json()["ids"] == ["s0"], reply.text
        turned = told_by_label_studio([{**stroke, "image_rotation": 90}])
        refused(http.post("/label-studio/webhook", json=turned), 422, "rotated")
    kept = [json.loads(line) for line in (tmp_path / CORRECTIONS).read_text().splitlines()]
    exported = [{**event["task"], "annotations": [event["annotation"]]} for event in events]
    for line, one in zip(kept, corrections_of(exported, "export.json"), strict=True):
        assert line["verdict"] == ("reject" if one.rejected else "accept")
        if not one.rejected:
            mask = np.zeros((16, 24), bool) if one.mask is None else one.mask.decode()
            assert np.array_equal(Rle.from_coco(line["mask"]).decode(), mask)
    assert [line["verdict"][0] for line in kept] == list("aaararrar")
    areas = [Rle.from_coco(line["mask"]).area() for line in kept if line["mask"]]
    assert areas[0] == 20 and areas[3:] == [0, 0] and max(areas[:2]) < areas[2] < sum(areas[:2])


def test_a_prediction_says_that_nothing_is_meant(fake: Fake) -> None:
    """... where the interface asks for it: an empty annotation would be a rejection there."""
    task = {"id": 1, "data": {"image": "data:image/png;base64," + text(png()), "sentence": "nothing"}}
    with client(fake) as http:
        asked = {"tasks": [task], "label_config": EXPORTED}
        (made,) = http.post("/label-studio/predict", json=asked).json()["results"]
    (region,) = made["result"]
    assert (region["from_name"], region["to_name"], region["type"]) == ("verdict", "image", "choices")
    assert region["value"] == {"choices": [NOTHING]}


def test_where_label_studio_s_pictures_may_be(tmp_path: Path) -> None:
    from l2l.serving.refusal import Refusal

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "files" / "link.png").symlink_to(tmp_path / "secret.png")
    pictures = StudioPictures(Limits(), {"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(tmp_path / "files"),
                                         "LABEL_STUDIO_URL": "http://127.0.0.1:9"})  # fmt: skip
    assert pictures.get("/data/local-files/?d=a.png").size == (20, 30)
    outside = ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", "%00")
    for address in (*(f"/data/local-files/?d={name}" for name in outside), "file:///etc/passwd", "//evil/a.png",
                    "http://127.0.0.1:10/a.png", "http://[", "s3://b/a.png", "data:image/png,x"):  # fmt: skip
        with pytest.raises(Refusal) as told:
            pictures.get(address)
        assert str(tmp_path) not in told.value.error + told.value.hint
    with pytest.raises(Refusal, match="cannot be got"):
        pictures.get("/data/upload/a.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose masks have something in them."""
    world = make_world(tmp_path_factory.mktemp("world"))
    assert main(train_arguments(world, world / "run", steps=4)) == 0
    return stir(world / "run")


def test_many_pictures_together_are_answered_as_each_by_itself(run: Path) -> None:
    predictor = Predictor(run)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((40, 70), (64, 64), (33, 90))]
    sentences = [["the red star", "left circle"], ["the big blue square below the star"], ["a disc", "star", "ring"]]
    for boxes in ([[None, None], [None], [None] * 3], [[None, (4, 4, 30, 30)], [None], [(1, 2, 60, 30), None, None]]):
        found = predictor.segment_many(pictures, sentences, boxes, batch=4)
        for picture, texts, given, answers in zip(pictures, sentences, boxes, found, strict=True):
            predictor.set_image(picture)
            for one, other in zip(predictor.segment_all(texts, given), answers, strict=True):
                assert one.mask.shape == other.mask.shape == picture.shape[:2]
                assert (one.mask == other.mask).mean() > 0.99 and one.score == pytest.approx(other.score, abs=1e-4)
    predictor.segment_many(pictures[:1], [["star"]], [[None]])
    with pytest.raises(InputError, match="set_image first"):
        predictor.segment("star")
    with pytest.raises(InputError, match="empty sentence"):
        predictor.segment_many(pictures[:1], [[" "]], [[None]])


@pytest.fixture
def server(run: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A real process at a free port of loopback."""
    command = [sys.executable, "-m", "l2l", "serve", str(run), "--port", "0", "--labels", str(tmp_path / "labels")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr and process.stderr.read()
        url = line.split("; ")[1].split(",")[0]
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield process, url, tmp_path / "labels"
    finally:
        process.kill()
        process.wait()


def test_sixteen_clients_and_a_slow_one(server: tuple[subprocess.Popen[str], str, Path], run: Path) -> None:
    process, url, labels = server
    samples = l2l.read(run.parent / "data").split("val")
    predictor = Predictor(run)
    expected = {}
    for sample in samples[:4]:
        predictor.set_image(sample.image)
        expected[sample.id] = predictor.segment(sample.sentences[0])

    async def one(number: int) -> list[tuple[bool, int]]:
        seen = []
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for turn in range(4):
                sample = samples[(number + turn) % 4]
                content = Path(sample.image).read_bytes()
                if number % 4 == 3:  # a bad client
                    value, status, _ = BAD_JSON[(number + turn) % len(BAD_JSON)]
                    reply = await post(http, "/predict", value)
                    seen.append((reply.status_code == status, reply.status_code))
                    continue
                reply = await http.post("/predict", files={"image": content}, data={"sentence": sample.sentences[0]})
                wanted = expected[sample.id]
                good = reply.status_code == 200
                if good:
                    (found,) = reply.json()["answers"]
                    same = Rle.from_coco(found["mask"]).decode() == wanted.mask
                    good = same.mean() > 0.99 and abs(found["score"] - wanted.score) < 1e-3
                    told = {"sentence": sample.sentences[0], "verdict": "accept", "mask": json.dumps(found["mask"]),
                            "id": f"{number}-{turn}"}  # fmt: skip
                    good &= (await http.post("/label", files={"image": content}, data=told)).status_code == 200
                seen.append((good, reply.status_code))
        return seen

    async def all_of_them() -> list[list[tuple[bool, int]]]:
        return await asyncio.gather(*(one(number) for number in range(16)))

    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n")
        seen = [one for mine in asyncio.run(all_of_them()) for one in mine]
    assert all(good for good, _ in seen), seen
    ids = [json.loads(line)["id"] for line in (labels / CORRECTIONS).read_text().splitlines()]
    assert sorted(ids) == sorted(f"{number}-{turn}" for number in range(16) for turn in range(4) if number % 4 != 3)
    shown = httpx.get(f"{url}/metrics").text
    assert 'l2l_requests_total{endpoint="/predict",status="200"} 48' in shown
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert len((labels / METADATA).read_text().splitlines()) == 48
    assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_sigterm_finishes_what_has_begun(server: tuple[subprocess.Popen[str], str, Path], run: Path) -> None:
    process, url, _ = server
    content = Path(l2l.read(run.parent / "data").split("val")[0].image).read_bytes()
    body = json.dumps({"image": text(content), "sentences": ["the star", "left circle"] * 16}).encode()
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as begun:
        begun.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                      b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100])  # fmt: skip
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        begun.sendall(body[100:])
        reply = b"".join(iter(lambda: begun.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 200"), reply[:300]
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    "more, said",
    [(["--port", "70000"], "--port"), (["--queue", "0"], "waiting"), (["--timeout", "nan"], "seconds"),
     (["--device", "none"], "device none")],
)  # fmt: skip
def test_bad_options(run: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from l2l.cli import main as command

    assert command(["serve", str(run), *more]) == 2
    assert said in capsys.readouterr().err
    assert command(["serve", str(run.parent)]) == 2
    assert "no run here" in capsys.readouterr().err
