"""Kill -9 for `l2l serve`: what it said was kept is kept, once, whatever happens next.

One client decides on the queue, sends labels, and plays Label Studio. Whatever was not acknowledged when the server
died is sent again, as a browser or Label Studio would do it. `kill.py` has the rest.
"""

from __future__ import annotations

import base64
import io
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

CONFIG = """<View><Text name="what" value="$say"/><Image name="img" value="$image"/>
<BrushLabels name="brush" toName="img"><Label value="Target"/></BrushLabels></View>"""
SIDE = 48


def png(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def requests(labels: Path, rng: random.Random, count: int) -> list[dict[str, Any]]:
    """What is sent: `path`, `json`, the `key` under which it is kept, and the `verdict`."""
    from l2l.exchange import brush
    from l2l.exchange.labels import read_labels
    from l2l.rle import Rle
    from l2l.serving.review import Queue

    queue = Queue(read_labels(labels)).labels
    made: list[dict[str, Any]] = []
    for number in range(count):
        pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[number % 30 :, rng.randrange(40) :] = True
        what = number % 3
        if what == 0 and number // 3 < len(queue):
            label, verdict = queue[number // 3], rng.choice(["accept", "reject"])
            told: dict[str, Any] = {"id": label.id, "verdict": verdict}
            if rng.random() < 0.5:
                painted = np.zeros(label.size, np.uint8)
                painted[: 5 + number % 20, :9] = 255
                told["mask"] = png(painted)
            made.append({"path": f"/review/item/{number // 3}", "json": told, "key": label.id, "verdict": verdict})
        elif what == 2:
            drawn = {"from_name": "brush", "original_width": SIDE, "original_height": SIDE,
                     "value": {"format": "rle", "rle": brush.encode(mask)}}  # fmt: skip
            task = {"id": number, "data": {"image": f"data:image/png;base64,{png(pixels)}", "say": f"thing {number}"}}
            told = {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": CONFIG}, "task": task,
                    "annotation": {"id": number, "result": [drawn]}}  # fmt: skip
            made.append({"path": "/label-studio/webhook", "json": told, "key": f"ls-1-{number}", "verdict": "accept"})
        else:
            told = {"image": png(pixels), "mask": Rle.encode(mask).to_coco(), "sentence": f"thing {number}",
                    "verdict": "accept", "id": f"said-{number}"}  # fmt: skip
            made.append({"path": "/label", "json": told, "key": f"said-{number}", "verdict": "accept"})
    return made


def kept(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of `corrections.jsonl`."""
    path = folder / "corrections.jsonl"
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def start(world: Path, folder: Path, *, most: int = 0) -> tuple[Any, str]:
    """A server, and its address; its files may not grow beyond `most` bytes."""
    from kill import Command

    said = folder / "said"
    before = len(said.read_bytes()) if said.exists() else 0
    one = Command(["serve", str(world / "run"), "--port", "0", "--labels", str(folder / "kept"), "--review",
                   str(world / "labels"), "--timeout", "200"], folder, cache=world / "cache", most=most)  # fmt: skip
    while "; http" not in (line := said.read_bytes()[before:].decode() if said.exists() else ""):
        if not one.running:
            raise SystemExit(f"the server did not start: {line}")
        time.sleep(0.02)
    return one, line.split("; ")[1].split(",")[0]


def served(world: Path, folder: Path, rng: random.Random, kills: int, *, each: int = 9) -> Any:
    """A trial: `each` requests for every kill, and as many at the end; then what is there against what was said."""
    from kill import Trial, changes
    from kill_kinds import seen

    told, out = Trial("serve"), folder / "kept"
    todo, at, sent = requests(world / "labels", rng, each * (kills + 1)), 0, dict[str, int]()
    while at < len(todo):
        one, url = start(world, folder)
        told.resumed += 1
        first, last = at, min(len(todo), at + each) if told.kills < kills else len(todo)
        fatal, number = first + rng.randrange(1, each), rng.randint(1, 4)
        killer: threading.Thread | None = None
        with httpx.Client(base_url=url, timeout=240) as http:
            while at < len(todo):
                ask = todo[at]
                if told.kills < kills and at == min(fatal, last - 1) and killer is None:
                    killer = threading.Thread(target=_kill, args=(one, out, number, rng.random() * 0.05, changes))
                    killer.start()
                sent[ask["key"]] = sent.get(ask["key"], 0) + 1
                try:
                    reply = http.post(ask["path"], json=ask["json"])
                except httpx.TransportError:
                    break  # the server is dead: `ask` is sent again to the next one
                if reply.status_code not in (200, 201):
                    told.wrong.append(f"{ask['path']}: {reply.status_code} {reply.text[:200]}")
                at += 1
        if killer is None:
            one.end(15)
            if (code := one.wait()) not in (0, -15, 143):
                told.wrong.append(f"the server ended with {code}")
            break
        if at == len(todo):
            one.end()  # all was said before its moment came
        killer.join()
        one.wait()
        told.kills += 1
        told.moments.append(f"request {at} of {len(todo)} ({todo[min(at, len(todo) - 1)]['path']}), "
                            + ("at a write" if number < 4 else "a moment after it was sent"))  # fmt: skip
        there = [line["id"] for line in kept(out)]
        told.there.append(f"{len(there)} lines, {len(seen(out))} files")
        told.wrong += [f"{ask['key']} was acknowledged and is lost" for ask in todo[:at] if ask["key"] not in there]
        if rng.random() < 0.4:
            with (out / "corrections.jsonl").open("ab") as file:
                file.write(b'{"id": "said-0", "verdict": "rej')
            told.torn.append("corrections.jsonl: half a line more")
    _compare(told, todo, sent, out)
    told.same = not told.wrong
    return told


def _kill(one: Any, out: Path, number: int, delay: float, changes: Any) -> None:
    """At the n-th change of the folder; or a moment after now."""
    if number < 4:
        for at, _ in enumerate(changes(out, lambda: one.running), 1):
            if at == number:
                break
    else:
        time.sleep(delay)
    one.end()


def _compare(told: Any, todo: list[dict[str, Any]], sent: dict[str, int], out: Path) -> None:
    """What was said against what is there: in the log, in what `train --data` and `import --from review` read of it."""
    from l2l.data.read import read
    from l2l.exchange.decisions import read_decisions

    lines = kept(out)
    last = {line["id"]: line for line in lines}
    for ask in todo:
        found = [line for line in lines if line["id"] == ask["key"]]
        if not found or found[-1]["verdict"] != ask["verdict"]:
            told.wrong.append(f"{ask['key']} is lost")
        elif len(found) > sent[ask["key"]]:
            told.wrong.append(f"{ask['key']} was sent {sent[ask['key']]} times and is there {len(found)} times")
        elif any((line["verdict"], line["mask"], line["sentence"]) != (found[0]["verdict"], found[0]["mask"],
                 found[0]["sentence"]) for line in found):  # fmt: skip
            told.wrong.append(f"{ask['key']} was sent twice and is kept in two ways")
    told.wrong += [f"{key}: nobody said that" for key in last.keys() - {ask["key"] for ask in todo}]
    decided = [one.id for one in read_decisions(out)]
    if sorted(decided) != sorted(last):
        told.wrong.append("what import reads is not, once each, what was decided")
    accepted = sorted(key for key, line in last.items() if line["verdict"] == "accept")
    read_back = sorted(one.id for one in read(out).samples)
    if read_back != accepted:
        told.wrong.append(f"what train reads is not, once each, what was accepted: {len(read_back)}, {len(accepted)}")
