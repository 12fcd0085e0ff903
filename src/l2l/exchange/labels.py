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

from l2l.data.durable import write_whole
from l2l.data.images import SCENES, load, opened, size
from l2l.data.refer import MALFORMED, plain_path, plain_text, reason
from l2l.data.shards import SUFFIXES, pictures_of
from l2l.errors import InputError, printable
from l2l.rle import Rle

MOVED = "; --images says where the pictures are now"
IN_SHARDS = "; --images says where the shards are"
REFERENT = "referent"
"""The one category of all exports: what the sentence means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One labelled pair."""

    id: str
    """Sentence id, unique in its folder."""
    image: str
    """Where the picture is: a path, also one into a shard (`.tar/NAME`, `.parquet/NAME`), or `scenes:...:INDEX`."""
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
    """Read a label folder, or one `labels.jsonl`; of `l2l label --shards`, `labels-SHARD.jsonl` of all shards.

    Pictures are named relative to the folder that holds them all, so the names do not depend on which of them are
    exported; drawn ones are `scenes-WORLD-SEED-INDEX.png`, those of shards `SHARD.tar/NAME`.

    Args:
        labels: the folder that `l2l label` wrote, or its file.
        images: names are relative to this folder instead, and pictures that have moved are looked for in it. Shards
            are looked for in it in any case: their labels do not say where they were.

    Raises:
        InputError: if there are no labels, or a line is damaged; it names file and line.
    """
    path = labels / "labels.jsonl" if labels.is_dir() else labels
    paths = [path]
    if labels.is_dir() and not path.exists():
        paths = sorted(labels.glob("labels-*.jsonl")) or paths
    records: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, text in enumerate(_lines(path), start=1):
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


def unfinished(labels: Path) -> str:
    """What to tell of a folder whose pairs are not all labelled, as after a kill; nothing of one that is whole."""
    try:
        finished = json.loads((labels / "about.json").read_bytes())["finished"]
    except (OSError, *MALFORMED):  # a file of labels alone says nothing of itself
        return ""
    return "" if finished else f"l2l: {printable(str(labels))} lacks pairs; the same l2l label goes on with them"


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise InputError("no such file; it is what `l2l label` writes", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error


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
    packed = {one for one in addresses if _shard_of(one) and not Path(one).is_absolute()}
    files = {one: os.path.abspath(one) for one in addresses - packed if not one.startswith(SCENES)}
    root = os.path.commonpath([os.path.dirname(file) for file in files.values()]) if files else ""
    if images is not None:
        wanted = os.path.abspath(images)
        if all(os.path.commonpath([wanted, file]) == wanted for file in files.values()):
            root = wanted
    named = {}
    for one in sorted(addresses):
        if one in packed:
            named[one] = (str((images or Path()) / one), plain_path(one))
        elif one in files:
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
    if _shard_of(label.image):
        found = _packed(label.image)
    else:
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
        if _shard_of(address):
            write_whole(path, _packed(address))
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


def _shard_of(address: str) -> Path | None:
    """The shard that holds a picture; none if it is a file of its own."""
    for folder in Path(address).parents:
        if folder.suffix in SUFFIXES.values() and not folder.is_dir():
            return folder
    return None


def _packed(address: str) -> bytes:
    """A picture out of its shard. Raises `InputError` if one of them is not there."""
    shard = _shard_of(address)
    assert shard is not None
    if not shard.is_file():
        raise InputError(f"no such shard{IN_SHARDS}", file=shard)
    name = f"{shard.name}/{Path(address).relative_to(shard).as_posix()}"
    found = pictures_of(shard).get(name)
    if found is None:
        raise InputError("no such picture in its shard; are these the shards that were labelled?", file=address)
    return found


def _drawn(address: str) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(load(address)).save(content, format="PNG")
    return content.getvalue()
