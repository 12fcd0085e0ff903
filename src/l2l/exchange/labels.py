"""What `l2l label` wrote, read back for other tools: one record a pair, and its picture under a name of its own.

Whatever comes back from another tool is matched to these records by sentence id; of a stranger's file nothing but ids,
masks and verdicts is believed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2l.data.images import SCENES, load, opened, size
from l2l.data.refer import MALFORMED, plain_path, plain_text, reason, write_whole
from l2l.errors import InputError
from l2l.rle import Rle

MOVED = "; --images says where the pictures are now"
REFERENT = "referent"
"""The one category of all exports: what the sentence means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One labelled pair."""

    id: str
    """Sentence id, unique in its folder."""
    image: str
    """Where the picture is: a path, or `scenes:WORLD:SEED:INDEX`."""
    file_name: str
    """The picture's name for other tools: relative, with forward slashes, one for each picture."""
    sentence: str
    mask: Rle
    """At the picture's own size; all background where nothing was found."""
    score: float
    """Expected IoU, in [0, 1]."""
    accepted: bool = True
    """What `l2l label` made of the score."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.mask.height, self.mask.width


def read_labels(labels: Path, *, images: Path | None = None) -> list[Label]:
    """Read a label folder, or one `labels.jsonl`.

    Pictures are named relative to the folder that holds them all, so the names do not depend on which of them are
    exported; drawn ones are `scenes-WORLD-SEED-INDEX.png`.

    Args:
        labels: the folder that `l2l label` wrote, or its file.
        images: names are relative to this folder instead, and pictures that have moved are looked for in it.

    Raises:
        InputError: if there are no labels, or a line is damaged; it names file and line.
    """
    path = labels / "labels.jsonl" if labels.is_dir() else labels
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise InputError("no such file; it is what `l2l label` writes", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    records: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            record = _record(json.loads(text))
            if record["id"] in records:
                raise InputError(f"a second label with the id {record['id']}")
        except MALFORMED as error:
            raise InputError(reason(error), file=path, record=f"line {number}") from error
        records[record["id"]] = record
    if not records:
        raise InputError("no labels in it", file=path)
    names = picture_names({record["image"] for record in records.values()}, images)
    found = []
    for record in records.values():
        address, name = names[record["image"]]
        found.append(Label(**(record | {"image": address, "file_name": name})))
    return found


def _record(line: Any) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise InputError("not a JSON object")
    key, image, score = line["id"], line["image"], line["score"]
    if not isinstance(key, str) or not key or not isinstance(image, str) or not image or "\0" in image:
        raise InputError("id and image are text")
    key.encode(), image.encode()  # half a surrogate cannot be written again
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise InputError(f"a score of {score}; it lies in [0, 1]")
    return {
        "id": key, "image": image, "sentence": plain_text(line["sentence"]), "score": float(score),
        "mask": Rle.from_coco(line["segmentation"]), "accepted": bool(line.get("accepted", score > 0.5)),
    }  # fmt: skip


def picture_names(addresses: set[str], images: Path | None) -> dict[str, tuple[str, str]]:
    """(where it is, what it is called) of each picture; see `read_labels`."""
    files = {one: os.path.abspath(one) for one in addresses if not one.startswith(SCENES)}
    root = os.path.commonpath([os.path.dirname(file) for file in files.values()]) if files else ""
    if images is not None:
        wanted = os.path.abspath(images)
        if all(os.path.commonpath([wanted, file]) == wanted for file in files.values()):
            root = wanted
    named = {}
    for one in sorted(addresses):
        if one in files:
            name = Path(os.path.relpath(files[one], root)).as_posix()
            named[one] = (str(images / name) if images is not None else one, name)
        else:
            named[one] = (one, re.sub(r"[^A-Za-z0-9_.-]+", "-", one) + ".png")
    known: dict[str, str] = {}
    for one, (_, name) in named.items():
        if files.get(known.setdefault(name, one)) != files.get(one):
            raise InputError(f"two pictures would be called {name}", file=one)
    return named


def picture_bytes(label: Label) -> bytes:
    """The picture's file as it is; a drawn one as PNG. Raises `InputError` if it is missing or has another size."""
    if label.image.startswith(SCENES):
        return _drawn(label.image)
    _plain_file(Path(label.image))
    try:
        found = Path(label.image).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}{MOVED}", file=label.image, record=label.id) from error
    with opened(label.image, found) as picture:
        if sorted(picture.size) != sorted(label.size):
            raise InputError(
                f"a picture of {picture.height} x {picture.width}, labelled when it was {label.size[0]} x "
                f"{label.size[1]}", file=label.image, record=label.id,
            )  # fmt: skip
    return found


def place_pictures(pictures: Mapping[str, str], folder: Path) -> None:
    """Put pictures into a folder: a hard link where the disk allows one, a copy elsewhere.

    Args:
        pictures: name in the folder -> where it is (a path, or `scenes:...`, which is drawn as PNG).
        folder: it is made.

    Raises:
        InputError: if a picture is missing or none, or its name leads out of the folder.
    """
    for name, address in pictures.items():
        path = folder / plain_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if address.startswith(SCENES):
            write_whole(path, _drawn(address))
            continue
        source = Path(address).resolve()
        if source.exists():  # what is shared has to be a picture: labels may come from a stranger and name any file
            _plain_file(source)
            size(address)
        if path.exists() and source.exists() and path.samefile(source):
            continue
        try:
            path.unlink(missing_ok=True)
            try:
                os.link(source, path)
            except FileNotFoundError:
                raise
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, path)
        except OSError as error:
            raise InputError(f"cannot be brought to {folder}: {error.strerror}{MOVED}", file=address) from error


def _plain_file(path: Path) -> None:
    """Raises `InputError` for a device, a pipe or a folder, which may have no end."""
    if path.exists() and not path.is_file():
        raise InputError("not a picture's file", file=path)


def _drawn(address: str) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(load(address)).save(content, format="PNG")
    return content.getvalue()
