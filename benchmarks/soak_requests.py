"""What clients of `l2l serve` send in `soak.py`: good requests, and those that nobody should send.

Each method that `GOOD` or `BAD` names asks once, and returns what was wrong with the answer, or nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import random
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from l2l.data.images import load
from l2l.exchange import brush
from l2l.exchange.labels import Label
from l2l.rle import Rle
from l2l.serving.review import Queue

SENTENCES = ("the red star", "the leftmost ring", "the big blue square", "a disc", "the small triangle", "left circle")
CONFIG = ('<View><Text name="what" value="$say"/><Image name="img" value="$image"/><BrushLabels name="brush" '
          'toName="img"><Label value="Target"/></BrushLabels></View>')  # fmt: skip
SIDE = 240
NONSENSE = 31
"""Cases of `Clients.nonsense`."""
HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """A picture file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels, and that holds none."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def text(content: bytes) -> str:
    """Base64."""
    return base64.b64encode(content).decode()


class Clients:
    """All who ask.

    Args:
        url: of the server. labels: what there is to review. seed: of everything that is random.
    """

    def __init__(self, url: str, labels: Sequence[Label], pictures: Path, seed: int):
        self.url, self.port = url, int(url.rpartition(":")[2])
        self.queue, self.random = Queue(labels).labels, random.Random(seed)
        drawn = [np.asarray(Image.fromarray(load(f"scenes:home:0:{index}")).resize((SIDE, SIDE))) for index in range(6)]
        self.files = [encoded(one) for one in drawn] + [encoded(drawn[0], "JPEG")]
        self.large = encoded(np.asarray(Image.fromarray(drawn[1]).resize((1600, 1200))), "JPEG")
        self.pictures = pictures
        for number, content in enumerate(self.files):
            (pictures / f"{number}.png").write_bytes(content)
        self.http = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_keepalive_connections=0))
        self.first: dict[Any, tuple[np.ndarray, float]] = {}
        self.kept = self.told = self.turn = 0

    # Good requests.

    async def few(self) -> str:
        """A form, one sentence, RLE."""
        which, sentence = self._picture(), self.random.choice(SENTENCES)
        reply = await self.http.post("/predict", files={"image": self.files[which]}, data={"sentence": sentence})
        return self._masks(reply, which, [sentence])

    async def many(self) -> str:
        """JSON, up to 12 sentences, some with a box, RLE or PNG."""
        which, count = self._picture(), self.random.randint(2, 12)
        sentences = [self.random.choice(SENTENCES) for _ in range(count)]
        boxes = [self.random.choice([None, [20, 20, 200, 220]]) for _ in sentences]
        kind = self.random.choice(["rle", "png"])
        reply = await self.http.post("/predict", json={"image": text(self.files[which]), "sentences": sentences,
                                                       "boxes": boxes, "format": kind})  # fmt: skip
        return self._masks(reply, which, sentences, boxes)

    async def wide(self) -> str:
        """A large picture."""
        reply = await self.http.post("/predict", files={"image": self.large}, data={"sentence": SENTENCES[0]})
        return self._masks(reply, "large", SENTENCES[:1])

    async def look(self) -> str:
        """Health, metrics, the pages, the queue."""
        path = self.random.choice(["/health", "/metrics", "/", "/page.js", "/review/queue", "/label-studio/health",
                                   "/openapi.json"])  # fmt: skip
        reply = await self.http.get(path)
        if path == "/review/queue" and reply.status_code == 200 and len(reply.json()["pairs"]) != len(self.queue):
            return "the queue has another length"
        return _is(reply, 200)

    async def item(self) -> str:
        """A pair of the queue, and its picture."""
        number = self.random.randrange(len(self.queue))
        told, shown = await asyncio.gather(*(self.http.get(f"/review/{what}/{number}") for what in ("item", "picture")))
        if said := _is(told, 200) or _is(shown, 200):
            return said
        return "" if told.json()["id"] == self.queue[number].id else "another pair"

    async def decision(self) -> str:
        """A pair of the queue is right, wrong, or repainted."""
        number = self.random.randrange(len(self.queue))
        told = {"id": self.queue[number].id, "verdict": self.random.choice(["accept", "reject"])}
        if self.random.random() < 0.3:
            told["mask"] = text(encoded(self._mask(self.queue[number].size)))
        return self._keeps(await self.http.post(f"/review/item/{number}", json=told), 200)

    async def label(self) -> str:
        """A mask for a sentence about a picture."""
        mask = self._mask((SIDE, SIDE))
        told = {"sentence": self.random.choice(SENTENCES), "verdict": "accept", "id": f"mine-{self.told % 500}"}
        if self.random.random() < 0.5:
            made = {"image": text(self.files[self._picture()]), "mask": Rle.encode(mask > 0).to_coco(), **told}
            return self._keeps(await self.http.post("/label", json=made), 200)
        files = {"image": self.files[self._picture()], "mask": encoded(mask)}
        return self._keeps(await self.http.post("/label", files=files, data=told), 200)

    async def studio(self) -> str:
        """Label Studio connects, or asks about two tasks."""
        if self.random.random() < 0.3:
            return _is(await self.http.post("/label-studio/setup", json={"project": "1", "schema": CONFIG}), 200)
        reply = await self.http.post("/label-studio/predict", json={
            "tasks": [self._task(0), self._task(1)], "label_config": CONFIG, "params": {}})  # fmt: skip
        bad = reply.status_code == 200 and [one for one in reply.json()["results"] if "error" in one]
        return _is(reply, 200) or (f"a task failed: {bad}" if bad else "")

    async def webhook(self) -> str:
        """Label Studio tells of an annotation."""
        drawn = {"from_name": "brush", "original_width": SIDE, "original_height": SIDE,
                 "value": {"format": "rle", "rle": brush.encode(self._mask((SIDE, SIDE)) > 0)}}  # fmt: skip
        told = {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": CONFIG},
                "task": self._task(self.told % 2), "annotation": {"id": self.told, "result": [drawn]}}  # fmt: skip
        return self._keeps(await self.http.post("/label-studio/webhook", json=told), 201)

    # Bad requests.

    async def nonsense(self) -> str:
        """What is no request: one after another of many."""
        image = text(self.files[0])
        number = len(self.queue)
        cases: list[tuple[int, str, dict[str, Any]]] = [
            (400, "/predict", {"content": b"[" * 200_000}), (400, "/label", {"content": b'{"a":' * 100_000}),
            (400, "/predict", {"content": b"\xff" * 500}), (400, "/label-studio/predict", {"content": b"[" * 100_000}),
            (400, f"/review/item/{number - 1}", {"content": b"[" * 100_000}),
            (422, "/predict", {"json": {"image": image, "sentence": 3}}), (422, "/predict", {"json": [1]}),
            (422, "/predict", {"json": {"image": image, "sentence": "a", "boxes": [[5, 5, 5, 9]]}}),
            (422, "/predict", {"json": {"image": image, "sentence": "a", "more": 1}}),
            (422, "/predict", {"json": {"image": text(self.files[1][:9_000]), "sentence": "a"}}),
            (415, "/predict", {"json": {"image": text(os.urandom(50_000)), "sentence": "a"}}),
            (413, "/predict", {"json": {"image": text(bomb(40_000)), "sentence": "a"}}),
            (413, "/predict", {"json": {"image": image, "sentences": ["a"] * 65}}),
            (413, "/predict", {"json": {"image": image, "sentence": "a" * 5_000}}),
            (404, "/predict", {"json": {"image": image, "sentence": "a", "run": "another"}}),
            (415, "/predict", {"content": b"x", "headers": {"content-type": "text/plain"}}),
            (400, "/predict", {"content": b"--a\r\n" * 20_000,
                               "headers": {"content-type": "multipart/form-data; boundary=a"}}),
            (421, "/predict", {"json": {}, "headers": {"host": "evil.example"}}),
            (403, "/predict", {"json": {}, "headers": {"origin": "http://evil.example"}}),
            (404, "/nowhere", {"json": {}}), (405, "/health", {"json": {}}),
            (404, f"/review/item/{number}", {"json": {"id": "x", "verdict": "accept"}}),
            (422, "/review/item/-1", {"json": {"id": "x", "verdict": "accept"}}),
            (409, "/review/item/0", {"json": {"id": "not this one", "verdict": "accept"}}),
            (422, "/review/item/0", {"json": {"id": self.queue[0].id, "verdict": "perhaps"}}),
            (422, "/review/item/0", {"json": {"id": self.queue[0].id, "verdict": "accept",
                                              "mask": text(encoded(self._mask((9, 9))))}}),
            (422, "/label", {"json": {"image": image, "sentence": "a", "verdict": "accept"}}),
            (422, "/label", {"json": {"image": image, "sentence": "a", "verdict": "accept",
                                      "mask": {"size": [SIDE, SIDE], "counts": [10**9, 10**9]}}}),
            (422, "/label-studio/predict", {"json": {"tasks": "x", "label_config": CONFIG}}),
            (422, "/label-studio/setup", {"json": {"schema": "<!DOCTYPE a><View/>"}}),
            (422, "/label-studio/webhook", {"json": {"action": "ANNOTATION_CREATED", "task": 3}}),
        ]  # fmt: skip
        assert len(cases) == NONSENSE
        status, path, sent = cases[self.turn % NONSENSE]
        self.turn += 1
        if "content" in sent:
            sent.setdefault("headers", {"content-type": "application/json"})
        said = _is(await self.http.post(path, **sent), status)
        return said and f"{path} {str(sent)[:80]}: {said}"

    async def missing(self) -> str:
        """Numbers that nothing has."""
        path = self.random.choice(["/review/item/999999", "/review/picture/999999", "/review/item/..%2f..%2fetc"])
        return _is(await self.http.get(path), 404, 422)

    async def huge(self) -> str:
        """33 MiB in chunks, or a length of 10 GB and nothing behind it."""
        if self.random.random() < 0.5:
            return await self._raw(413, HEAD + b"Content-Length: 10000000000\r\n\r\n")
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        return await self._raw(413, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 33)

    async def slow(self) -> str:
        """A head, or a body, that comes a byte a second."""
        start = self.random.choice([HEAD, HEAD + b"Content-Length: 1000\r\n\r\n"])
        return await self._raw(408, start, *[b"x"] * 40, pause=1)

    async def gone(self) -> str:
        """Away in the middle of the body, or before the answer; with and without a farewell."""
        body = json.dumps({"image": text(self.files[0]), "sentence": SENTENCES[0]}).encode()
        sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
        part = sent if self.random.random() < 0.5 else sent[: len(sent) // 2]
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        if self.random.random() < 0.5:  # a reset
            line = writer.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(part)
        await asyncio.sleep(0.05)
        writer.close()
        return ""

    async def deaf(self) -> str:
        """Asks for much, and takes none of it: nothing comes any more when it begins to read after 40 s."""
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        with line:
            await loop.sock_connect(line, ("127.0.0.1", self.port))
            await loop.sock_sendall(line, b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400)
            await asyncio.sleep(40)
            return "" if await _ends(lambda: loop.sock_recv(line, 65536)) else "a client that reads nothing is kept"

    async def _raw(self, status: int, *pieces: bytes, pause: float = 0.0) -> str:
        """Sends pieces until the server closes. It must, and say the status or nothing (what it says as the last thing
        can be lost where something is still on its way to it)."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        found = bytearray()
        heard = asyncio.create_task(_ends(lambda: reader.read(65536), found))
        try:
            with contextlib.suppress(OSError):
                for piece in pieces:
                    if heard.done():
                        break
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
            if not await heard:
                return "the connection is kept open"
        finally:
            writer.close()
        said = bytes(found[9:12])
        return "" if said in (b"", str(status).encode()) else f"told {said!r} and not {status}"

    # Parts of both.

    def _picture(self) -> int:
        return self.random.randrange(len(self.files))

    def _mask(self, size: tuple[int, int]) -> np.ndarray:
        mask = np.zeros(size, np.uint8)
        y, x = self.random.randrange(size[0] // 2), self.random.randrange(size[1] // 2)
        mask[y : y + size[0] // 3, x : x + size[1] // 3] = 255
        return mask

    def _task(self, way: int) -> dict[str, Any]:
        which = self._picture()
        where = f"/data/local-files/?d={which}.png" if way else "data:image/png;base64," + text(self.files[which])
        return {"id": self.told % 1000, "data": {"image": where, "say": self.random.choice(SENTENCES)}}

    def _keeps(self, reply: httpx.Response, status: int) -> str:
        self.told += 1
        self.kept += reply.status_code == status
        return _is(reply, status)

    def _masks(self, reply: httpx.Response, which: Any, sentences: Sequence[str], boxes: Sequence[Any] = ()) -> str:
        """One answer a sentence, and the one that was given to the same question at first."""
        if reply.status_code != 200:
            return _is(reply, 200)
        found = reply.json()["answers"]
        if [one["sentence"] for one in found] != list(sentences):
            return "answers to other sentences"
        for one, box in zip(found, boxes or [None] * len(found), strict=True):
            if isinstance(one["mask"], dict):
                mask = Rle.from_coco(one["mask"]).decode()
            else:
                mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"])))) > 0
            before, score = self.first.setdefault((which, one["sentence"], str(box)), (mask, one["score"]))
            if (before == mask).mean() < 0.99 or abs(score - one["score"]) > 2e-3:
                return "another answer than at first"
        return ""


GOOD = {"few": 26, "many": 10, "wide": 1, "look": 10, "item": 8, "decision": 6, "label": 5, "studio": 6, "webhook": 4}
BAD = {"nonsense": 15, "missing": 2, "huge": 1, "slow": 2, "gone": 4, "deaf": 0.2}
"""How often each, against the others."""


def _is(reply: httpx.Response, *status: int) -> str:
    """What is wrong with a status; of a refusal also that it says what is wrong and what to do."""
    if reply.status_code not in status:
        return f"status {reply.status_code} and not {status[0]}: {reply.text[:200]}"
    if status[0] >= 400 and set(reply.json()) != {"error", "hint"}:
        return f"a refusal without error and hint: {reply.text[:200]}"
    return ""


async def _ends(read: Callable[[], Awaitable[bytes]], found: bytearray | None = None, seconds: float = 60.0) -> bool:
    """Whether a connection is closed by the other side in time; `found` takes what is said before."""
    with contextlib.suppress(OSError):
        try:
            async with asyncio.timeout(seconds):
                while part := await read():
                    if found is not None:
                        found += part
        except TimeoutError:
            return False
    return True
