"""A zip in CVAT's "COCO 1.0" layout: https://docs.cvat.ai/docs/dataset_management/formats/format-coco/.

`annotations/instances_default.json` and, unless they are left out, `images/default/NAME`. CVAT keeps only attributes
that its label defines, so `NAME-label.json`, beside the zip, is the label to paste into the constructor of project or
task ("Raw"): the sentence and its id, which stay as they are, and a box to tick for a mask that is to be rejected.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from l2l.data.durable import write_whole
from l2l.data.refer import plain_path
from l2l.errors import BadRecords, InputError
from l2l.exchange.coco import coco_content, corrections_of
from l2l.exchange.corrected import Correction
from l2l.exchange.labels import REFERENT, Label, picture_bytes

LARGEST = 2**29
"""Bytes of JSON that are read from a stranger's zip."""
SMALL, RATIO = 2**25, 100
"""From so many bytes on, JSON that is packed to less than a hundredth is refused: no masks are so alike."""


def write_cvat(
    labels: Sequence[Label], out: Path, *, polygons: bool = False, tolerance: float = 0.0, pictures: bool = True
) -> None:
    """Write the zip. A pair with an empty mask is left out, its picture is not: CVAT makes a pixel of an empty shape.

    Args:
        labels, polygons, tolerance: as for `coco.coco_content`.
        out: the file.
        pictures: put the pictures in; without them it can still be uploaded as annotations of a task that has them.

    Raises:
        InputError: if a picture is missing.
    """
    content = coco_content(labels, polygons=polygons, tolerance=tolerance)
    content["annotations"] = [
        one | {"iscrowd": int(isinstance(one["segmentation"], dict))}  # to CVAT and datumaro: a mask, and to remain one
        for one in content["annotations"] if one["area"]
    ]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(out.name + ".tmp")
    try:
        with zipfile.ZipFile(draft, "w") as archive:
            _write(archive, "annotations/instances_default.json", json.dumps(content).encode())
            for one in {label.file_name: label for label in labels}.values() if pictures else ():
                _write(archive, f"images/default/{one.file_name}", picture_bytes(one), zipfile.ZIP_STORED)
        draft.replace(out)
        told = json.dumps(label_definition(), indent=1) + "\n"
        write_whole(out.with_name(f"{out.stem}-label.json"), told.encode())
    finally:
        draft.unlink(missing_ok=True)


def label_definition() -> list[dict[str, Any]]:
    """The label as CVAT's constructor takes it."""

    def attribute(name: str, kind: str, *, mutable: bool = False, value: str = "") -> dict[str, Any]:
        return {"name": name, "mutable": mutable, "input_type": kind, "default_value": value, "values": [value]}

    attributes = [
        attribute("sentence", "text"), attribute("sentence_id", "text"),
        attribute("rejected", "checkbox", value="false"),
    ]  # fmt: skip
    return [{"name": REFERENT, "type": "any", "attributes": attributes}]


def _write(archive: zipfile.ZipFile, name: str, content: bytes, how: int = zipfile.ZIP_DEFLATED) -> None:
    archive.writestr(zipfile.ZipInfo(plain_path(name)), content, how)  # without a date: the same labels, the same bytes


def read_cvat(path: Path, *, bad: BadRecords | None = None) -> Iterator[Correction]:
    """The corrected masks of a zip that CVAT exported as "COCO 1.0"; see `coco.read_coco`. Nothing is unpacked.

    Raises:
        InputError: if it is no such zip; for a bad annotation, unless `bad` takes it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                plain_path(entry.filename)
            chosen = [one for one in entries if one.filename.endswith(".json") and "annotations/" in one.filename]
            if sum(one.file_size for one in chosen) > LARGEST:
                raise InputError("more than 512 MB of annotations; export the task in parts")
            if any(one.file_size > max(SMALL, RATIO * one.compress_size) for one in chosen):
                raise InputError("a zip bomb: its annotations are packed to less than a hundredth")
            files = {one.filename: archive.read(one) for one in chosen}
    except FileNotFoundError as error:
        raise InputError("no such file", file=path) from error
    except InputError as error:
        raise InputError(error.reason, file=path) from error
    except Exception as error:  # each way of packing has errors of its own
        raise InputError(f"no whole zip: {error}", file=path) from error
    if not files:
        raise InputError("no annotations/*.json in it; export the task as COCO 1.0", file=path)
    for name, text in files.items():
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not readable as JSON: {error}", file=f"{path}/{name}") from error
        yield from corrections_of(content, f"{path}/{name}", bad)
