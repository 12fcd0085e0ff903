"""COCO instance annotations, one a pair: https://cocodataset.org/#format-data.

Beside COCO's own fields an annotation has `score`, `sentence` and `sentence_id`, and the same once more under
`attributes`, which is where CVAT and datumaro look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from l2l.data.durable import write_whole
from l2l.data.images import MAX_PIXELS
from l2l.data.refer import MALFORMED, plain_path, read_json, reason
from l2l.errors import BadRecords, InputError
from l2l.exchange.corrected import Correction
from l2l.exchange.labels import REFERENT, Label
from l2l.exchange.polygons import fill, outlines
from l2l.rle import Rle


def write_coco(labels: Sequence[Label], out: Path, *, polygons: bool = False, tolerance: float = 0.0) -> None:
    """Write one JSON file; see `coco_content`. Nothing is needed of the pictures but their names."""
    out.parent.mkdir(parents=True, exist_ok=True)
    content = coco_content(labels, polygons=polygons, tolerance=tolerance)
    write_whole(out, (json.dumps(content) + "\n").encode())


def coco_content(labels: Sequence[Label], *, polygons: bool = False, tolerance: float = 0.0) -> dict[str, Any]:
    """What COCO's `instances.json` holds.

    Args:
        labels: one annotation each, also where the mask is empty: area 0, and a box of nothing.
        polygons: polygons in place of compressed RLE; an empty mask stays RLE, as COCO has no empty polygon.
        tolerance: how far polygons may leave the mask's edge, pixels; area and box are the polygon's then.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(one.file_name for one in labels), start=1)}
    sizes = {one.file_name: one.size for one in labels}
    images = [
        {"id": number, "file_name": name, "height": sizes[name][0], "width": sizes[name][1]}
        for name, number in numbers.items()
    ]
    annotations = [
        {"id": number, "image_id": numbers[one.file_name], **_annotation(one, polygons, tolerance)}
        for number, one in enumerate(labels, start=1)
    ]
    return {
        "info": {"description": "masks made by l2l label"}, "licenses": [], "images": images,
        "annotations": annotations, "categories": [{"id": 1, "name": REFERENT, "supercategory": ""}],
    }  # fmt: skip


def _annotation(label: Label, polygons: bool, tolerance: float) -> dict[str, Any]:
    segmentation: Any = label.mask.to_coco()
    mask = label.mask.decode()
    if polygons and mask.any():
        segmentation = outlines(mask, tolerance)
        mask = fill(segmentation, label.size).decode() if tolerance > 0 else mask
    said = {"sentence": label.sentence, "sentence_id": label.id, "score": label.score}
    return {
        "category_id": 1, "iscrowd": 0, "segmentation": segmentation, "bbox": _box(mask), "area": int(mask.sum()),
        **said, "attributes": {**said, "rejected": False},
    }  # fmt: skip


def _box(mask: Any) -> list[int]:
    """COCO's x, y, width, height; zeros for an empty mask."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def read_coco(path: Path, *, bad: BadRecords | None = None) -> Iterator[Correction]:
    """The corrected masks of a COCO file: those with a `sentence_id`, in the annotation or under `attributes`.

    `attributes.rejected` rejects one. An empty RLE says that the sentence means nothing in its picture; a pair without
    annotation is one that nobody labelled.

    Raises:
        InputError: if it is no COCO file; for a bad annotation, unless `bad` takes it.
    """
    yield from corrections_of(read_json(path), path, bad)


def corrections_of(content: Any, file: object, bad: BadRecords | None = None) -> Iterator[Correction]:
    """As `read_coco`, of what is in the file already read."""
    bad = BadRecords() if bad is None else bad
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError("no COCO file: it has no list of annotations", file=file)
    images: dict[Any, dict[str, Any]] = {}
    try:
        for row in content["images"]:
            images[row["id"]] = {"name": plain_path(row["file_name"]), "size": (row["height"], row["width"])}
            if not all(type(side) is int and 0 < side < 2**16 for side in images[row["id"]]["size"]):
                raise InputError(f"an image of {row['height']} x {row['width']} pixels")
            if row["height"] * row["width"] > MAX_PIXELS:
                raise InputError(f"an image of {row['height']} x {row['width']} pixels, more than {MAX_PIXELS:,}")
    except MALFORMED as error:
        raise InputError(f"no COCO file: {reason(error)}", file=file, record=f"image {len(images) + 1}") from error
    for place, annotation in enumerate(content["annotations"], start=1):
        record = f"annotation {place}"
        try:
            record = f"annotation {annotation['id']}"
            yield _correction(annotation, images, record)
        except MALFORMED as error:
            bad.add(reason(error), file=file, record=record)


def _correction(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], record: str) -> Correction:
    more = annotation.get("attributes") or {}
    key = annotation.get("sentence_id", more.get("sentence_id"))
    if isinstance(key, bool) or not isinstance(key, (str, int)) or key == "":
        raise InputError("no sentence_id; whoever draws a new shape has to copy the pair's")
    image = images.get(annotation["image_id"])
    if image is None:
        raise InputError(f"image {annotation['image_id']} is not in the file")
    if more.get("rejected") in (True, "true", "True"):
        return Correction(id=str(key), rejected="marked as rejected", image=image["name"], record=record)
    segmentation = annotation["segmentation"]
    mask = Rle.from_coco(segmentation) if isinstance(segmentation, dict) else fill(segmentation, image["size"])
    return Correction(id=str(key), mask=mask, image=image["name"], record=record)
