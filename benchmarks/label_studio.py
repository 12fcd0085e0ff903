"""The whole round through a running Label Studio: masks out, mended there, back again, and `l2l serve` as its model.

    python -m venv studio && studio/bin/pip install label-studio
    python benchmarks/label_studio.py studio/bin/label-studio [--log results/walk/label-studio.log] [--made FOLDER]

Starts both servers at free ports of loopback and ends them. What people do with the mouse is said here through Label
Studio's own REST API, signed in with name and password; `l2l serve` gets a personal access token, as its settings page
gives them. What `l2l import` makes of the export, and what `l2l serve --labels` kept of the webhooks, must both be what
was drawn, pixel by pixel; the masks of Label Studio's own export as PNG too. Exit status 1 if anything is not so.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from serve import reached
from soak import make_run

import l2l
from l2l.cli import main as l2l_command
from l2l.exchange import brush
from l2l.exchange.label_studio import NOTHING, REJECT, task_of
from l2l.exchange.labels import Label, read_labels
from l2l.rle import Rle

EMAIL, PASSWORD = "somebody@example.com", "round-and-round"
LOCAL = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
"""Without these Label Studio asks no model, and no webhook, at a private address."""
QUIET = {"COLLECT_ANALYTICS": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "LATEST_VERSION_CHECK": "False"}
RECTANGLE = {"x": 10, "y": 20, "width": 50, "height": 50}
"""In percent."""


@contextmanager
def studio(executable: Path, folder: Path) -> Iterator[str]:
    """A running Label Studio; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [executable, "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port),
               "--username", EMAIL, "--password", PASSWORD]  # fmt: skip
    documents = {"LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
                 "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(folder / "out")}  # fmt: skip
    more = {"LABEL_STUDIO_BASE_DATA_DIR": str(folder / "studio"), **documents, **LOCAL, **QUIET}
    with (folder / "studio.log").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **more})
        try:
            while True:
                if process.poll() is not None:
                    raise SystemExit(f"Label Studio ended: {(folder / 'studio.log').read_text()[-2000:]}")
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=30)
                    break
                except httpx.TransportError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def model(trained: Path, kept: Path, url: str, token: str) -> Iterator[str]:
    """`l2l serve`, which knows where Label Studio is; its address."""
    more = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": token, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "l2l", "serve", str(trained), "--port", "0", "--labels", str(kept)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **more})
    try:
        yield reached(process)[1]
    finally:
        process.terminate()
        process.wait(60)


def run(*arguments: object) -> int:
    """An `l2l` command, in silence; its exit status."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return l2l_command([str(one) for one in arguments])


class Person:
    """Somebody who is signed in, and notes what is not as it should be."""

    def __init__(self, url: str):
        self.http = httpx.Client(base_url=url, timeout=300, headers={"Referer": url})
        self.wrong, self.lines = 0, list[str]()
        self.http.get("/user/login/")
        told = {"email": EMAIL, "password": PASSWORD, "csrfmiddlewaretoken": self.http.cookies["csrftoken"]}
        self.http.post("/user/login/", data=told)

    def ask(self, method: str, path: str, **more: Any) -> Any:
        """JSON of the API, or bytes."""
        reply = self.http.request(method, path, headers={"X-CSRFToken": self.http.cookies["csrftoken"]}, **more)
        if reply.is_error:
            raise SystemExit(f"{method} {path}: {reply.status_code} {reply.text[:1000]}")
        return reply.json() if reply.headers.get("content-type") == "application/json" else reply.content

    def check(self, what: str, fine: bool) -> None:
        """Say it, and count it."""
        self.wrong += not fine
        self.say(f"{'yes' if fine else 'NO '}  {what}")

    def say(self, line: str) -> None:
        """A line of the log."""
        self.lines.append(line)
        print(line, flush=True)

    def project(self, title: str, out: Path, webhook: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """A project with the exported tasks, its pictures and the webhook; its id, and its tasks by sentence id."""
        told = {"title": title, "label_config": (out / "config.xml").read_text()}
        number = self.ask("POST", "/api/projects", json=told)["id"]
        self.ask("POST", "/api/storages/localfiles", json={"project": number, "path": str(out / "images")})
        self.ask("POST", "/api/webhooks/", json={"project": number, "url": webhook})
        with (out / "tasks.json").open("rb") as file:
            self.ask("POST", f"/api/projects/{number}/import", files={"file": ("tasks.json", file, "application/json")})
        return number, {one["data"]["sentence_id"]: one for one in self.tasks(number)}

    def tasks(self, number: int) -> list[dict[str, Any]]:
        """All tasks of a project, with what belongs to them."""
        asked = {"project": number, "fields": "all", "page_size": 1000}
        return list(self.ask("GET", "/api/tasks", params=asked)["tasks"])

    def submit(self, task: dict[str, Any], result: list[dict[str, Any]], *, skip: bool = False) -> int:
        """An annotation; its id."""
        told = {"result": result, "was_cancelled": skip}
        return int(self.ask("POST", f"/api/tasks/{task['id']}/annotations/", json=told)["id"])


def mend(person: Person, tasks: dict[str, dict[str, Any]], labels: list[Label], polygons: bool) -> dict[str, Any]:
    """One answer of each kind; the mask that each pair has now, or `None` where it was rejected."""
    rng = np.random.default_rng(0)

    def drawn(label: Label, mask: np.ndarray, name: str = "drawn") -> list[dict[str, Any]]:
        changed = dataclasses.replace(label, mask=Rle.encode(mask))
        (told,) = task_of(changed, "", polygons=polygons)["predictions"]
        return [{**one, "id": f"{name}{one['id']}"} for one in told["result"]]

    def choice(which: str) -> list[dict[str, Any]]:
        value = {"choices": [which]}
        return [{"from_name": "verdict", "to_name": "image", "type": "choices", "value": value}]

    said: dict[str, Any] = {}
    for number, label in enumerate(labels[:10]):
        task, mask = tasks[label.id], label.mask.decode()
        found = task["predictions"][0]["result"]
        other = rng.random(mask.shape) > 0.4 if number % 2 else np.roll(mask, 9, 1) & ~mask
        match number:
            case 0 | 1:  # as it came; the first one is empty
                person.submit(task, found)
                said[label.id] = mask
            case 2:  # painted over
                person.submit(task, drawn(label, other))
                said[label.id] = other
            case 3:  # one more region
                person.submit(task, found + drawn(label, other))
                said[label.id] = mask | other
            case 4:
                person.submit(task, found, skip=True)
                said[label.id] = None
            case 5:
                person.submit(task, found + choice(REJECT))
                said[label.id] = None
            case 6:
                person.submit(task, choice(NOTHING))
                said[label.id] = np.zeros_like(mask)
            case 7:  # all regions deleted, and nothing said
                person.submit(task, [])
                said[label.id] = None
            case 8:  # opened once more
                key = person.submit(task, found)
                person.ask("PATCH", f"/api/annotations/{key}/", json={"result": drawn(label, other)})
                said[label.id] = other
            case 9:  # by two people
                person.submit(task, found, skip=True)
                person.submit(task, drawn(label, other))
                said[label.id] = other
    return said


def same(folder: Path | None, said: dict[str, Any], labels: list[Label]) -> bool:
    """Whether a data set of `l2l import` holds what was said: masks, rejections, and what nobody looked at."""
    if folder is None:
        return False
    masks = {one.id: one for one in l2l.read(folder).samples}
    lists = [[json.loads(line)["id"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
             for name in ("rejected", "unlabelled")]  # fmt: skip
    drawn = {key: mask for key, mask in said.items() if mask is not None}
    return (
        set(masks) == set(drawn)
        and all(np.array_equal(masks[key].mask(), mask) for key, mask in drawn.items())
        and set(lists[0]) == {key for key, mask in said.items() if mask is None}
        and set(lists[1]) == {one.id for one in labels} - set(said)
    )


def there_and_back(person: Person, folder: Path, webhook: str, polygons: bool) -> tuple[int, dict[str, dict[str, Any]]]:
    """Out, mended, back by the export and by the webhook."""
    name = "polygons" if polygons else "brush"
    labels, out = read_labels(folder / "labels"), folder / "out"
    run("export", folder / "labels", "--to", "label-studio", "--out", out, *["--polygons"] * polygons)
    number, tasks = person.project(name, out, webhook)
    whole = set(tasks) == {one.id for one in labels} and all(len(one["predictions"]) == 1 for one in tasks.values())
    person.check(f"{name}: {len(tasks)} tasks with a prediction each, ids as they were", whole)
    shown = [person.ask("GET", tasks[one.id]["data"]["image"]) == Path(one.image).read_bytes() for one in labels]
    person.check(f"{name}: Label Studio serves their pictures", all(shown))
    said = mend(person, tasks, labels, polygons)
    for kind in ("JSON", "JSON_MIN", *["BRUSH_TO_PNG"] * (not polygons)):
        content = person.ask("GET", f"/api/projects/{number}/export",
                             params={"exportType": kind, "download_all_tasks": "true"})  # fmt: skip
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"{name}-{kind}").write_bytes(content)

    def back(file: str, tool: str) -> Path | None:
        into = folder / f"{file}-back"
        code = run("import", folder / file, "--from", tool, "--labels", folder / "labels", "--out", into)
        return None if code else into

    person.check(f"{name}: the export, imported, is what was drawn ({len(said)} answers, {len(labels) - len(said)} "
                 "unopened)", same(back(f"{name}-JSON", "label-studio"), said, labels))  # fmt: skip
    person.check(f"{name}: JSON_MIN is refused", back(f"{name}-JSON_MIN", "label-studio") is None)
    person.check(f"{name}: what the webhook brought is the same", same(back(f"{name}-kept", "review"), said, labels))
    if not polygons:
        pngs = folder / "brush-BRUSH_TO_PNG"
        person.check("brush: so are the masks of Label Studio's own PNG export", same_pngs(pngs, tasks, said))
    return number, tasks


def same_pngs(file: Path, tasks: dict[str, dict[str, Any]], said: dict[str, Any]) -> bool:
    """Whether the masks that Label Studio draws are those that were said; it leaves out what was skipped."""
    ids = {one["id"]: key for key, one in tasks.items()}
    found: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            key = ids[int(Path(name).name.split("-")[1])]
            found.setdefault(key, []).append(np.asarray(Image.open(io.BytesIO(archive.read(name)))) > 0)
    drawn = {key: mask for key, mask in said.items() if mask is not None and mask.any()}
    return set(drawn) <= set(found) and all(np.array_equal(np.any(found[key], 0), drawn[key]) for key in drawn)


def predictions(person: Person, number: int, tasks: dict[str, dict[str, Any]], url: str, labels: list[Label]) -> None:
    """The run as the project's model: asked for whole lists, while somebody points, and to train."""
    made = person.ask("POST", "/api/ml/", json={"project": number, "url": f"{url}/label-studio", "title": "l2l",
                                               "is_interactive": True})  # fmt: skip
    person.check("model: connected", made["state"] == "CO" and bool(made["model_version"]))
    chosen = {one.id: tasks[one.id]["id"] for one in labels[10:16]}

    def retrieve(keys: list[int]) -> None:
        person.ask("POST", "/api/dm/actions", params={"id": "retrieve_tasks_predictions", "project": number},
                   json={"selectedItems": {"all": False, "included": keys}})  # fmt: skip

    def of_run(key: int) -> list[dict[str, Any]]:
        told = person.ask("GET", f"/api/tasks/{key}/")["predictions"]
        (one,) = [one for one in told if one["model_version"] == made["model_version"]]
        return list(one["result"])

    def asked(label: Label, box: list[float] | None = None) -> np.ndarray:
        told = {"image": base64.b64encode(Path(label.image).read_bytes()).decode(), "sentences": [label.sentence],
                "boxes": [box]}  # fmt: skip
        (found,) = httpx.post(f"{url}/predict", json=told, timeout=300).json()["answers"]
        return Rle.from_coco(found["mask"]).decode()

    def drawn(result: list[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
        strokes = [brush.decode(one["value"]["rle"], size) for one in result if one["type"] == "brushlabels"]
        return strokes[0] if strokes else np.zeros(size, bool)

    retrieve(list(chosen.values()))
    equal = [np.array_equal(drawn(of_run(chosen[one.id]), one.size), asked(one)) for one in labels[10:16]]
    person.check(f"model: {len(equal)} predictions retrieved, the masks of /predict", all(equal))
    one = labels[10]
    context = {"result": [{"type": "rectanglelabels", "value": RECTANGLE}]}
    told = person.ask("POST", f"/api/ml/{made['id']}/interactive-annotating",
                      json={"task": chosen[one.id], "context": context})  # fmt: skip
    x0, y0 = RECTANGLE["x"] / 100 * one.size[1], RECTANGLE["y"] / 100 * one.size[0]
    box = [x0, y0, x0 + RECTANGLE["width"] / 100 * one.size[1], y0 + RECTANGLE["height"] / 100 * one.size[0]]
    person.check("model: a rectangle drawn there is the box of /predict",
                 np.array_equal(drawn(told["data"]["result"], one.size), asked(one, box)))  # fmt: skip
    with Path(one.image).open("rb") as file:
        person.ask("POST", f"/api/projects/{number}/import", files={"file": ("one.png", file, "image/png")})
    (new,) = [task for task in person.tasks(number) if "sentence" not in task["data"]]
    person.ask("PATCH", f"/api/tasks/{new['id']}/", json={"data": {**new["data"], "sentence": one.sentence}})
    retrieve([new["id"]])
    person.check("model: a picture that was uploaded there is got with the token",
                 np.array_equal(drawn(of_run(new["id"]), one.size), asked(one)))  # fmt: skip
    person.ask("POST", f"/api/ml/{made['id']}/train")
    state = person.ask("GET", f"/api/ml/{made['id']}")["state"]
    person.check("model: start training does no harm", state in ("CO", "TR"))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("executable", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--made", type=Path, help="a folder with run and labels; without it, both are made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        trained, labels = (args.made / "run", args.made / "labels") if args.made else make_run(folder / "world")
        lines = [json.loads(line) for line in (labels / "labels.jsonl").read_text().splitlines()]
        lines[0]["segmentation"] = Rle.encode(np.zeros(lines[0]["segmentation"]["size"], bool)).to_coco()
        (folder / "labels").mkdir()
        (folder / "labels" / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "out").mkdir()
        with studio(args.executable, folder) as url:
            person = Person(url)
            person.say(f"$ python benchmarks/label_studio.py .../label-studio{' --made ...' if args.made else ''}")
            person.say(f"Label Studio {person.ask('GET', '/api/version')['release']}")
            token = person.ask("POST", "/api/token/")["token"]
            for name in ("brush", "polygons"):
                with model(trained, folder / f"{name}-kept", url, token) as answering:
                    webhook = f"{answering}/label-studio/webhook"
                    number, tasks = there_and_back(person, folder, webhook, name == "polygons")
                    if name == "brush":
                        predictions(person, number, tasks, answering, read_labels(folder / "labels"))
    if args.log:
        args.log.write_text("\n".join(person.lines) + "\n")
    sys.exit(person.wrong > 0)


if __name__ == "__main__":
    main()
