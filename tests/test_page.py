"""The pages of `l2l serve`: what they are given, and, where there is Chromium, what they do."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import re
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import l2l
from l2l.exchange.labels import read_labels
from l2l.rle import Rle

pytest.importorskip("fastapi")
pytest.importorskip("multipart")
httpx = pytest.importorskip("httpx")

from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402

from l2l.exchange.decisions import CORRECTIONS  # noqa: E402
from l2l.predict import Prediction, tight_box  # noqa: E402
from l2l.serving.app import About, create_app  # noqa: E402
from l2l.serving.labels import LabelFolder  # noqa: E402
from l2l.serving.limits import Limits  # noqa: E402
from l2l.serving.review import SIDE, Queue  # noqa: E402

HERE = "http://127.0.0.1"
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CHROMIUM = shutil.which("chromium")


class Halves:
    """Answers with the left half; `nothing` means nothing."""

    def set_image(self, image: np.ndarray) -> None:
        self.size = image.shape[:2]

    def segment_all(self, sentences: Any, boxes: Any = None) -> list[Prediction]:
        masks = [np.zeros(self.size, bool) for _ in sentences]
        for number, (mask, sentence) in enumerate(zip(masks, sentences, strict=True)):
            mask[number * 9 :, : self.size[1] // (2 + number)] = sentence != "nothing"
        return [Prediction(mask, 0.75, tight_box(mask)) for mask in masks]

    def segment_many(self, pictures: Any, sentences: Any, boxes: Any) -> list[list[Prediction]]:
        raise NotImplementedError  # one client never sends two pictures at once


def picture(height: int, width: int, shade: int) -> Image.Image:
    """Stripes under a disc."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, np.full((height, width), shade)], axis=2)
    pixels[(rows - height / 2) ** 2 + (columns - width / 2) ** 2 < (min(height, width) / 4) ** 2] = (240, 220, 90)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """What `l2l label` writes: five pairs, about a small, a turned, and a huge picture."""
    folder = tmp_path / "labelled"
    (folder / "pictures").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(120, 180, 90).save(folder / "pictures" / "small.png")
    picture(120, 180, 140).save(folder / "pictures" / "turned.jpg", exif=exif)
    picture(60, SIDE + 500, 200).save(folder / "pictures" / "huge.png")
    lines = []
    for key, name, size, sentence, score in (
        ("sure", "small.png", (120, 180), "the yellow disc", 0.9), ("odd", "small.png", (120, 180), SCRIPT, 0.2),
        ("tie", "turned.jpg", (180, 120), "a disc that was turned", 0.5),
        ("wide", "huge.png", (60, SIDE + 500), "wide", 0.5),
        ("gone", "missing.png", (9, 9), "a picture that is gone", 0.7),
    ):  # fmt: skip
        mask = np.zeros(size, bool)
        mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = key != "sure"
        lines.append({"id": key, "image": str(folder / "pictures" / name), "sentence": sentence, "score": score,
                      "segmentation": Rle.encode(mask).to_coco()})  # fmt: skip
    (folder / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def application(labels: Path | None, kept: Path | None, token: str = "", **limits: Any) -> FastAPI:
    queue = Queue(read_labels(labels)) if labels else None
    folder = LabelFolder(kept) if kept else None
    return create_app(Halves(), About("run", "0123abcd", "l2l", 7, "run-7"), limits=Limits(**limits), labels=folder,
                      review=queue, token=token)  # fmt: skip


def client(labels: Path | None, kept: Path | None, token: str = "", **limits: Any) -> TestClient:
    app = application(labels, kept, token, **limits)
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


def refused(reply: Any, status: int, said: str = "") -> None:
    assert reply.status_code == status, (reply.status_code, reply.text)
    told = reply.json()
    assert set(told) == {"error", "hint"} and told["error"] and told["hint"] and said in told["error"], told
    assert not any(word in reply.text for word in ("Traceback", "/tmp", ".png", ".jpg", ".py"))


def from_png(text: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(text))) as file:
        return np.asarray(file) > 0


def png_of(mask: np.ndarray) -> str:
    """As a browser's canvas gives it: with a channel of opacity."""
    out = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).convert("RGBA").save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_pages_are_whole_and_bring_nothing_from_elsewhere(labels: Path, tmp_path: Path) -> None:
    with client(labels, tmp_path / "kept", token="secret") as http:
        for path, media in (("/", "html"), ("/review", "html"), ("/page.js", "javascript"), ("/page.css", "css"),
                            ("/try.js", "javascript"), ("/review.js", "javascript")):  # fmt: skip
            reply = http.get(path)  # pages hold nothing secret: they ask for the token themselves
            assert reply.status_code == 200 and media in reply.headers["content-type"]
            policy = reply.headers["content-security-policy"]
            assert "default-src 'self'; img-src 'self' data: blob:" in policy and "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy and reply.headers["x-content-type-options"] == "nosniff"
            assert not re.search(r"https?:|//[a-z]+\.|@import|innerHTML|insertAdjacent|\.write\(|eval\(", reply.text)
            assert media != "html" or not re.search(r"style=|\son[a-z]+=|<style|<script>", reply.text)
        for path in ("/review/queue", "/review/item/0", "/review/picture/0"):
            refused(http.get(path), 401)
            assert http.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
        refused(http.get("/review", headers={"host": "evil.example"}), 421)
        refused(http.get("/", headers={"sec-fetch-site": "cross-site"}), 403)
        told = {"id": "odd", "verdict": "reject"}
        foreign = {"authorization": "Bearer secret", "origin": "http://evil.example"}
        refused(http.post("/review/item/0", json=told, headers=foreign), 403)
        refused(http.post("/review/item/0", json=told), 401)


def test_every_id_the_script_asks_for_is_in_its_page() -> None:
    folder = files("l2l") / "serving" / "page"
    for name in ("try", "review"):
        page = (folder / f"{name}.html").read_text(encoding="utf-8")
        script = "".join((folder / f"{part}.js").read_text(encoding="utf-8") for part in ("page", name))
        assert page.index("/page.js") < page.index(f"/{name}.js")
        known, wanted = set(re.findall(r'id="([\w-]+)"', page)), set(re.findall(r'\$\("([\w-]+)"\)', script))
        assert len(wanted) > 10 and wanted <= known, (name, wanted - known)
        buttons = re.search(r"const buttons = \{(.*?)\}", script, re.DOTALL)
        for key in re.findall(r"(\w+):", buttons[1]) if buttons else ():
            assert f'<button type="button" id="{key}"' in page, key


def test_without_review_there_is_none(tmp_path: Path) -> None:
    with client(None, tmp_path) as http:
        assert http.get("/").status_code == 200 and http.get("/health").json()["review"] is False
        for path in ("/review", "/review/queue", "/review/item/0"):
            refused(http.get(path), 404)


def test_the_queue_begins_with_the_least_sure(labels: Path, tmp_path: Path) -> None:
    with client(labels, tmp_path / "kept") as http:
        reply = http.get("/review/queue")
        assert reply.headers["cache-control"] == "no-store" and http.get("/health").json()["review"] is True
        pairs = reply.json()["pairs"]
        assert [one["id"] for one in pairs] == ["odd", "tie", "wide", "gone", "sure"]
        assert [one["number"] for one in pairs] == [0, 1, 2, 3, 4] and {one["decided"] for one in pairs} == {None}
        assert pairs[0]["sentence"] == SCRIPT and reply.headers["content-type"] == "application/json"
        assert "pictures" not in reply.text  # no place of the machine

        item = http.get("/review/item/1").json()
        assert item["size"] == [180, 120] and item["score"] == 0.5 and item["picture"] == "/review/picture/1"
        assert np.array_equal(from_png(item["mask"]), read_labels(labels)[2].mask.decode()) and not item["nothing"]
        assert http.get("/review/item/4").json()["nothing"]
        for number, size, media in ((0, (180, 120), "png"), (1, (120, 180), "jpeg"), (2, (SIDE, 48), "jpeg")):
            reply = http.get(f"/review/picture/{number}")
            assert reply.headers["content-type"] == f"image/{media}"
            with Image.open(io.BytesIO(reply.content)) as shown:
                assert shown.size == size and shown.getexif().get(0x0112, 1) == 1
        assert http.get("/review/picture/0").content == (labels / "pictures" / "small.png").read_bytes()
        refused(http.get("/review/picture/3"), 404, "not there")
        refused(http.post("/review/item/3", json={"id": "gone", "verdict": "reject"}), 404, "not there")
        metrics = http.get("/metrics").text
        assert 'endpoint="/review/picture/",status="200"} 4' in metrics and "/review/picture/0" not in metrics


def test_no_number_climbs_out(labels: Path, tmp_path: Path) -> None:
    with client(labels, tmp_path / "kept") as http:
        for number in ("-1", "1.0", "x", "%00", "1e1", "\u0661", "..%5c..", "9999999999", " 1", "0x1", "..;"):
            for path in ("item", "picture"):
                refused(http.get(f"/review/{path}/{number}"), 422, "no number")
        for path in ("item/5", "item/999999999", "picture/5", "picture/..%2f..%2fetc%2fpasswd", "picture/", "item",
                     "picture/%2e%2e/%2e%2e/pyproject.toml", "picture//etc/passwd"):  # fmt: skip
            refused(http.get(f"/review/{path}"), 404)
        refused(http.get("/page.js/../labels.py"), 404)


def test_what_is_decided_survives_a_restart(labels: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    painted = np.eye(180, 120, dtype=bool)
    with client(labels, kept) as http:
        reply = http.post("/review/item/0", json={"id": "odd", "verdict": "reject"})
        assert reply.json() == {"id": "odd"}
        told = {"id": "tie", "verdict": "accept", "mask": png_of(painted)}
        assert http.post("/review/item/1", json=told).status_code == 200
        assert http.post("/review/item/4", json={"id": "sure", "verdict": "accept"}).status_code == 200
        before = (kept / CORRECTIONS).read_bytes()
        for number, value, status, said in (
            (1, {"id": "odd", "verdict": "accept"}, 409, "another pair"), (1, {"id": "tie"}, 422, "verdict"),
            (1, {"id": "tie", "verdict": "maybe"}, 422, "verdict"), (1, [], 422, "object"),
            (1, {"id": "tie", "verdict": "accept", "path": "/etc"}, 422, "not known"),
            (1, {"id": "tie", "verdict": "accept", "mask": "?"}, 422, "base64"),
            (1, {"id": "tie", "verdict": "accept", "mask": ""}, 415, "PNG"),
            (1, {"id": "tie", "verdict": "accept", "mask": png_of(painted.T)}, 422, "another size"),
            (77, {"id": "tie", "verdict": "accept"}, 404, "number"),
        ):  # fmt: skip
            refused(http.post(f"/review/item/{number}", json=value), status, said)
        refused(http.post("/review/item/1", content=b"{", headers={"content-type": "application/json"}), 400)
        refused(http.post("/review/item/1", data={"id": "tie"}), 415)
        assert (kept / CORRECTIONS).read_bytes() == before
        assert 'l2l_labels_total{verdict="accept"} 2' in http.get("/metrics").text
    with client(labels, kept) as http:
        decided = {one["id"]: one["decided"] for one in http.get("/review/queue").json()["pairs"]}
        assert decided == {"odd": "reject", "tie": "accept", "wide": None, "gone": None, "sure": "accept"}
        item = http.get("/review/item/1").json()
        assert item["decided"] == "accept" and np.array_equal(from_png(item["mask"]), painted)
        http.post("/review/item/0", json={"id": "odd", "verdict": "accept"})  # the last word counts
        http.post("/review/item/1", json={"id": "tie", "verdict": "accept"})  # as the page shows it: repainted
        assert http.get("/review/queue").json()["pairs"][0]["decided"] == "accept"
    found = {sample.id: sample for sample in l2l.read(kept).samples}
    assert set(found) == {"odd", "tie", "sure"} and found["sure"].targets == () and found["odd"].sentences == (SCRIPT,)
    (target,) = found["tie"].targets or ()
    assert np.array_equal(target.decode(), painted)


def test_a_decision_can_be_taken_back(labels: Path, tmp_path: Path) -> None:
    kept, painted = tmp_path / "kept", np.eye(180, 120, dtype=bool)
    with client(labels, kept) as http:
        before = from_png(http.get("/review/item/1").json()["mask"])
        http.post("/review/item/0", json={"id": "odd", "verdict": "accept"})
        http.post("/review/item/1", json={"id": "tie", "verdict": "accept", "mask": png_of(painted)})
        assert http.post("/review/item/1", json={"id": "tie", "verdict": "open"}).json() == {"id": "tie"}
        assert http.post("/review/item/3", json={"id": "gone", "verdict": "open"}).status_code == 200  # no picture
        refused(http.post("/review/item/1", json={"id": "odd", "verdict": "open"}), 409, "another pair")
        both = {"id": "tie", "verdict": "open", "mask": png_of(painted)}
        refused(http.post("/review/item/1", json=both), 422, "mask")
        refused(http.post("/label", json={"image": "", "sentence": "x", "verdict": "open"}), 422, "verdict")
    with client(labels, kept) as http:
        decided = {one["id"]: one["decided"] for one in http.get("/review/queue").json()["pairs"]}
        assert decided == {"odd": "accept", "tie": None, "wide": None, "gone": None, "sure": None}
        item = http.get("/review/item/1").json()
        assert item["decided"] is None and np.array_equal(from_png(item["mask"]), before)  # painted over no more
    assert {sample.id for sample in l2l.read(kept).samples} == {"odd"}
    assert len((kept / CORRECTIONS).read_text().splitlines()) == 4  # nothing that was said is lost


def test_review_needs_a_place_for_decisions(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from l2l.cli import main

    assert main(["serve", str(tmp_path), "--review", str(labels)]) == 2
    assert "--review needs --labels" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--images", str(labels)]) == 2
    assert "--images is for --review" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--review", str(tmp_path / "no"), "--labels", str(tmp_path / "kept")]) == 2
    assert "l2l label" in capsys.readouterr().err


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """A real server at a free port of loopback."""
    import uvicorn

    from l2l.serving import server

    with server._listen("127.0.0.1", 0) as listener:
        ours = uvicorn.Server(uvicorn.Config(app, http=server.Protocol, ws="none", log_level="warning"))
        thread = threading.Thread(target=ours.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not ours.started:
                time.sleep(0.05)
            yield f"{HERE}:{listener.getsockname()[1]}"
        finally:
            ours.should_exit = True
            thread.join(30)


class Browser:
    """Chromium without a head, over its debugging pipe: https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, folder: Path, width: int = 1100):
        assert CHROMIUM
        back, ours = os.pipe()  # we write, it reads at 3
        theirs, forth = os.pipe()[::-1]  # it writes at 4, we read
        reads, writes = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 50) for one in (back, theirs))

        def place() -> None:
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--disable-dev-shm-usage", f"--user-data-dir={folder}", f"--window-size={width},900",
             "--remote-debugging-pipe", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=place,
            close_fds=False,
        )  # fmt: skip
        for one in (back, theirs, reads, writes):
            os.close(one)
        self.ours, self.forth, self.rest, self.count, self.session = ours, forth, b"", 0, ""
        self.complaints: list[str] = []
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; what the page complains of meanwhile is noted."""
        self.count += 1
        asked = {"id": self.count, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.ours, json.dumps(asked).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            text, end, rest = self.rest.partition(b"\0")
            if not end:
                left = max(0.0, until - time.monotonic())
                assert select.select([self.forth], [], [], left)[0], f"no answer: {method}"
                piece = os.read(self.forth, 65536)
                assert piece, "the browser has gone"
                self.rest += piece
                continue
            self.rest = rest
            told = json.loads(text)
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"):
                self.complaints.append(json.dumps(told["params"]))
            if told.get("id") == self.count:
                if "context" in str(told.get("error")):  # a page is just giving way to another one
                    return {"result": {}}
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result

    def value(self, script: str) -> Any:
        """What a line of script comes to, in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str) -> None:
        """Until a line of script is true."""
        until = time.monotonic() + 60
        while not self.value(script):
            assert time.monotonic() < until, (script, self.complaints, self.value("document.body.innerText"))
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key, down and up."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float], button: str = "left") -> None:
        """The pointer over an element, in shares of its width and height."""
        x, y, width, height = self.value(
            f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView(); "
            "const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()"
        )
        for kind, (across, down) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x + across * width, y=y + down * height, button=button,
                      buttons=1 if button == "left" else 2, clickCount=1)  # fmt: skip

    def picture(self, path: Path) -> None:
        """What is to be seen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """The end of it."""
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.forth)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium")
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


def test_review_in_a_browser(labels: Path, tmp_path: Path, browser: Browser) -> None:
    shots = Path(os.environ.get("L2L_SHOTS", tmp_path))
    kept = tmp_path / "kept"
    with serving(application(labels, kept, token="s\u00e9cret")) as url:
        browser.call("Page.navigate", url=f"{url}/review")
        browser.wait("document.getElementById('token-dialog')?.open")
        browser.picture(shots / "token.png")
        browser.call("Input.insertText", text="s\u00e9cret")
        browser.value("document.querySelector('#token-form button').click()")
        browser.wait("!document.getElementById('stage').hidden")
        browser.complaints.clear()  # that of the 401
        assert browser.value("document.getElementById('sentence').textContent") == SCRIPT
        assert browser.value("document.getElementById('progress').textContent") == "0 of 5, 0 rejected"
        browser.picture(shots / "review.png")
        waiting = "document.getElementById('stage').classList.contains('waiting')"
        assert not browser.value(waiting)
        browser.value("const asked = fetch; window.fetch = () => new Promise(() => {})")  # no answer ever comes
        browser.press("n")
        browser.wait(waiting)  # the old picture does not stand under the new sentence
        assert browser.value("document.getElementById('sentence').textContent") != SCRIPT
        browser.value("window.fetch = asked")
        browser.press("p")
        browser.wait(f"!{waiting}")
        browser.press("r")
        browser.wait("document.getElementById('picture').alt.includes('turned')")
        assert browser.value("document.getElementById('progress').textContent") == "1 of 5, 1 rejected"
        for key in "00e]]":
            browser.press(key)
        browser.drag("#stage", (0.6, 0.8), (0.9, 0.8))
        browser.drag("#stage", (0.7, 0.9), (0.8, 0.9))
        browser.press("z")
        browser.drag("#stage", (0.2, 0.3), (0.6, 0.3), button="right")
        browser.picture(shots / "repaint.png")
        browser.press("a")
        browser.wait("document.getElementById('picture').alt.includes('wide')")
        browser.press("n")
        browser.wait("document.getElementById('message').textContent.includes('not there')")
        browser.press("ArrowRight")
        browser.wait("document.getElementById('picture').alt.includes('yellow')")
        browser.press("p")
        browser.press("p")
        browser.press("p")
        browser.wait("document.getElementById('picture').alt.includes('turned')")
        assert browser.value("document.getElementById('decided').textContent") == "accepted"
        browser.call("Page.reload")
        browser.wait("document.getElementById('picture')?.alt?.includes('wide')")
        assert browser.value("document.getElementById('progress').textContent") == "2 of 5, 1 rejected"
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", features=dark)
        browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        browser.value("document.getElementById('repaint').click()")
        browser.wait("document.documentElement.scrollWidth <= 400")
        browser.picture(shots / "review-narrow.png")
    odd, tie = (json.loads(line) for line in (kept / CORRECTIONS).read_text().splitlines())
    assert (odd["id"], odd["verdict"], tie["id"], tie["verdict"]) == ("odd", "reject", "tie", "accept")
    mask = Rle.from_coco(tie["mask"]).decode()
    assert tie["repainted"] and mask[144, 84] and not mask[162, 90] and not mask[54, 40] and mask[80, 40]
    expected = [one for one in browser.complaints if "404" not in one]
    assert not expected, expected


def test_take_back_and_look_closer_in_a_browser(labels: Path, tmp_path: Path, browser: Browser) -> None:
    shots = Path(os.environ.get("L2L_SHOTS", tmp_path))
    kept = tmp_path / "kept"
    with serving(application(labels, kept)) as url:
        browser.call("Page.navigate", url=f"{url}/review")
        browser.wait("document.getElementById('picture')?.alt?.includes('script')")
        browser.press("u")
        browser.wait("document.getElementById('message').textContent.includes('Nothing was decided here yet')")
        browser.press("r")
        browser.wait("document.getElementById('picture').alt.includes('turned')")
        browser.press("u")  # by mistake: back to the pair, and it is open
        browser.wait("document.getElementById('picture').alt.includes('script')")
        browser.wait("document.getElementById('message').textContent.includes('Not decided any more')")
        assert browser.value("document.getElementById('progress').textContent") == "0 of 5, 0 rejected"
        assert browser.value("document.getElementById('decided').hidden")
        browser.press("a")
        browser.wait("document.getElementById('picture').alt.includes('turned')")
        wide = "document.getElementById('stage').getBoundingClientRect().width"
        before = browser.value(wide)
        for key in "+=+":
            browser.press(key)
        assert abs(browser.value(wide) / before - 1.5**3) < 0.02
        assert browser.value("(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight)(frame)")
        assert browser.value("frame.scrollTop") > 0  # the middle stays in the middle
        browser.press("e")
        browser.drag("#frame", (0.5, 0.5), (0.52, 0.5))  # what is painted is where the pointer is, zoomed or not
        browser.picture(shots / "zoomed.png")
        for key in "---":
            browser.press(key)
        assert browser.value(wide) == before and not browser.value("document.querySelector('.zoomed')")
        browser.press("a")
        browser.wait("document.getElementById('picture').alt.includes('wide')")
    lines = [json.loads(line) for line in (kept / CORRECTIONS).read_text().splitlines()]
    assert [(line["id"], line["verdict"]) for line in lines] == [
        ("odd", "reject"), ("odd", "open"), ("odd", "accept"), ("tie", "accept")
    ]  # fmt: skip
    first = np.zeros((180, 120), bool)
    first[45:90, 30:60] = True
    added = np.argwhere(Rle.from_coco(lines[-1]["mask"]).decode() & ~first)
    assert len(added) and np.abs(added - (90, 61)).max() < 14  # a stroke in the middle of the picture
    assert not browser.complaints, browser.complaints


def test_try_in_a_browser(labels: Path, tmp_path: Path, browser: Browser) -> None:
    shots = Path(os.environ.get("L2L_SHOTS", tmp_path))
    with serving(application(labels, tmp_path / "kept")) as url:
        browser.call("Page.navigate", url=url)
        browser.wait("document.getElementById('run')?.textContent.includes('step 7')")
        browser.picture(shots / "empty.png")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(labels / "pictures" / "small.png")])
        browser.wait("!document.getElementById('stage').hidden")
        browser.drag("#stage", (0.1, 0.1), (0.6, 0.7))
        assert not browser.value("document.getElementById('box').hidden")
        browser.value("document.getElementById('sentences').focus()")
        browser.call("Input.insertText", text=f"left half\n\nnothing\n{SCRIPT}")
        browser.value("document.getElementById('send').click()")
        browser.wait("document.querySelectorAll('#answers li').length === 3")
        said = browser.value("[...document.querySelectorAll('#answers li')].map((one) => one.textContent)")
        assert "0.75" in said[0] and "nothing here" in said[1] and SCRIPT in said[2] and "nothing here" not in said[2]
        assert browser.value("document.querySelectorAll('#answers script, #answers img').length") == 0
        browser.picture(shots / "try.png")
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        browser.wait("document.documentElement.scrollWidth <= 400")
        browser.picture(shots / "try-narrow.png")
    assert not browser.complaints, browser.complaints
