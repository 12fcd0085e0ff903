"""Tasks for Label Studio with the masks as pre-annotations, and the corrected masks back from its JSON export.

One task a pair: https://labelstud.io/guide/predictions. The folder holds `tasks.json`, `config.xml` (the labeling
interface) and `images/`. Serve the pictures by `LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=OUT` (absolute) and a local storage on `OUT/images`, or from anywhere else with
`address`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from l2l.data.durable import write_whole
from l2l.data.images import MAX_PIXELS
from l2l.data.refer import MALFORMED, read_json, reason
from l2l.errors import BadRecords, InputError
from l2l.exchange import brush
from l2l.exchange.corrected import Correction
from l2l.exchange.labels import REFERENT, Label, place_pictures
from l2l.exchange.polygons import fill, outlines
from l2l.rle import Rle

LOCAL_FILES = "/data/local-files/?d=images/"
NOTHING, REJECT = "nothing there", "reject"
CONFIG = f"""<View>
  <Header value="$sentence"/>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <BrushLabels name="brush" toName="image"><Label value="{REFERENT}" background="#ff4040"/></BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="{REFERENT}" background="#ff4040"/></PolygonLabels>
  <Choices name="verdict" toName="image" choice="single">
    <Choice value="{NOTHING}"/>
    <Choice value="{REJECT}"/>
  </Choices>
</View>
"""
"""The labeling interface: brush and polygons, and a verdict for what has no mask."""
POLYGONS = ("polygonlabels", "polygon")
"""Types of a region that is an outline."""


def write_label_studio(
    labels: Sequence[Label], out: Path, *, polygons: bool = False, tolerance: float = 0.0, address: str = ""
) -> None:
    """Write the folder.

    Args:
        labels: one task each; one with an empty mask comes with the verdict `nothing there`.
        out: the folder.
        polygons: polygons in place of brush strokes: easier to correct, without holes to the eye.
        tolerance: see `polygons.outlines`.
        address: where the pictures are served, the name is put behind it; empty puts them into `OUT/images`.

    Raises:
        InputError: if a picture is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not address:
        place_pictures({one.file_name: one.image for one in labels}, out / "images")
    tasks = [task_of(one, address or LOCAL_FILES, polygons=polygons, tolerance=tolerance) for one in labels]
    write_whole(out / "config.xml", CONFIG.encode())
    write_whole(out / "tasks.json", (json.dumps(tasks) + "\n").encode())


def task_of(label: Label, address: str, *, polygons: bool = False, tolerance: float = 0.0) -> dict[str, Any]:
    """One task; the score of its prediction is the expected IoU."""
    mask = label.mask.decode()
    if not mask.any():
        results = [_result(label, "verdict", "choices", {"choices": [NOTHING]}, 0)]
    elif polygons:
        share = 100 / np.array([label.size[1], label.size[0]])
        shapes = [(np.reshape(one, (-1, 2)) * share).tolist() for one in outlines(mask, tolerance)]
        results = [
            _result(label, "polygon", "polygonlabels",
                    {"points": points, "polygonlabels": [REFERENT], "closed": True}, place)
            for place, points in enumerate(shapes)
        ]  # fmt: skip
    else:
        value = {"format": "rle", "rle": brush.encode(mask), "brushlabels": [REFERENT]}
        results = [_result(label, "brush", "brushlabels", value, 0)]
    said = {"image": address + quote(label.file_name), "sentence": label.sentence, "sentence_id": label.id,
            "file_name": label.file_name}  # fmt: skip
    return {"data": said, "predictions": [{"model_version": "l2l", "score": label.score, "result": results}]}


def _result(label: Label, name: str, kind: str, value: dict[str, Any], place: int) -> dict[str, Any]:
    return {
        "id": f"{name}{place}", "from_name": name, "to_name": "image", "type": kind, "value": value,
        "original_width": label.size[1], "original_height": label.size[0], "image_rotation": 0, "origin": "prediction",
    }  # fmt: skip


def read_label_studio(path: Path, *, bad: BadRecords | None = None) -> Iterator[Correction]:
    """The answers of an export in the format JSON (not JSON-MIN: it lacks what was skipped).

    Of several annotations of a task the latest counts. Rejected is a task that was skipped, one with the verdict
    `reject`, and one without region or verdict. A task that nobody opened says nothing.

    Raises:
        InputError: if it is no such export; for a bad task, unless `bad` takes it.
    """
    yield from corrections_of(read_json(path), path, bad)


def corrections_of(tasks: Any, file: object, bad: BadRecords | None = None) -> Iterator[Correction]:
    """As `read_label_studio`, of what is in the file already read."""
    bad = BadRecords() if bad is None else bad
    if not isinstance(tasks, list):
        raise InputError("no Label Studio export: it is not a list of tasks; export as JSON", file=file)
    for place, task in enumerate(tasks, start=1):
        record = f"task {place}"
        try:
            if "annotations" not in task or not isinstance(task["data"], dict):
                raise InputError("no annotations; export as JSON, not as JSON-MIN")
            record = f"task {task.get('id', place)}"
            if task["annotations"]:
                yield _correction(task, record)
        except MALFORMED as error:
            bad.add(reason(error), file=file, record=record)


def _correction(task: dict[str, Any], record: str) -> Correction:
    data, latest = task["data"], max(task["annotations"], key=_when)
    key, image = data.get("sentence_id"), data.get("file_name", "")
    if not isinstance(key, str) or not key or not isinstance(image, str):
        raise InputError("no sentence_id in its data; the tasks have to be those of l2l export")
    said: dict[str, Any] = {"id": key, "image": image, "record": record}
    if latest.get("was_cancelled"):
        return Correction(**said, rejected="skipped in Label Studio")
    verdicts: set[str] = set()
    union: np.ndarray | None = None
    for one in latest["result"]:
        kind, value = one["type"], one["value"]
        if kind == "choices":
            verdicts.update(value["choices"])
        elif kind in ("brushlabels", "brush", *POLYGONS):
            drawn = mask_of(value, _size(one))
            if union is not None and union.shape != drawn.shape:
                raise InputError("regions of different sizes; open the task anew, and save it once more")
            union = drawn if union is None else union | drawn
    if REJECT in verdicts:
        return Correction(**said, rejected="rejected in Label Studio")
    if union is not None and union.any():
        return Correction(**said, mask=Rle.encode(union))
    if NOTHING in verdicts:
        return Correction(**said, nothing=True)
    return Correction(**said, rejected="an annotation without a mask or a verdict")


def _when(annotation: dict[str, Any]) -> tuple[str, int]:
    number = annotation.get("id")
    stamp = annotation.get("updated_at") or annotation.get("created_at") or ""
    return str(stamp), number if isinstance(number, int) else 0


def _size(result: dict[str, Any]) -> tuple[int, int]:
    height, width = result["original_height"], result["original_width"]
    if type(height) is not int or type(width) is not int or not (0 < height < 2**16 and 0 < width < 2**16):
        raise InputError(f"a picture of {height} x {width} pixels")
    if height * width > MAX_PIXELS:
        raise InputError(f"a picture of {height} x {width} pixels, more than {MAX_PIXELS:,}")
    if result.get("image_rotation"):
        raise InputError("the picture was rotated in Label Studio; turn it back and save again")
    return height, width


def mask_of(value: Any, size: tuple[int, int]) -> np.ndarray:
    """What a brush stroke or a polygon covers, as a boolean (H, W) array. Broken ones raise one of `MALFORMED`."""
    if not isinstance(value, dict):
        raise InputError("a region with neither a brush RLE nor the points of a polygon")
    if "rle" in value:
        return brush.decode(value["rle"], size)
    points = np.asarray(value["points"], np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError("the points of a polygon are pairs x, y in percent")
    return fill([(points * np.array([size[1], size[0]]) / 100).ravel().tolist()], size).decode()
