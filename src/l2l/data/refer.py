"""The REFER layout, in which RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and RefClef are handed around.

`refs(NAME).p` is a pickled list of refs (image, annotations, sentences, split); `instances.json` is a COCO file with
the pictures' names and the masks. Toolkit: https://github.com/lichengunc/refer; lists of annotations and `-1` for
"nothing in the picture": https://github.com/henghuiding/gRefCOCO.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from l2l.data.durable import write_whole
from l2l.data.images import MAX_PIXELS, load
from l2l.data.pickles import load_plain
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle
from l2l.sample import Sample

LONGEST = 5_000_000
"""Pixels along the outlines of one annotation. pycocotools takes 40 bytes for each; few points can span them all."""

MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
"""What reading a record of the wrong shape raises; `InputError` is among them."""


def read_refer(
    root: Path, *, images: Path | None = None, refs: str | None = None, bad: BadRecords | None = None
) -> list[Sample]:
    """Read a REFER set: one sample per ref, in the file's order.

    Args:
        root: the folder with `refs(*).p` and `instances.json`.
        images: the picture folder; otherwise the places where the REFER toolkit and COCO put it are searched.
        refs: which `refs(*).p` where there are several: `unc`, `umd`, `google`, ...
        bad: takes refs that cannot be used; without it the first one raises.

    Raises:
        InputError: if a file is missing or unreadable, if it is not clear which refs are meant, or for a bad ref.
    """
    path = refs_file(root, refs)
    return read_records(path, load_plain(path), images=images, bad=BadRecords() if bad is None else bad)


def read_records(
    path: Path, records: object, *, images: Path | None, bad: BadRecords,
    check: Callable[[dict[str, Any], Sample], None] | None = None,
) -> list[Sample]:
    """What `read_refer` does with the records of its file: one sample per ref, in their order.

    Args:
        path: the refs file, `instances.json` beside it.
        check: what else to ask of a ref and its sample; it raises `InputError`.
    """
    if not isinstance(records, list):
        raise InputError("a refs file is a list of refs", file=path)
    root = path.parent
    instances = _Instances(root / "instances.json", bad)
    pictures = _Pictures(_picture_folders(root) if images is None else [images])

    samples: dict[str, Sample] = {}
    for index, ref in enumerate(records):
        name = f"record {index}"
        try:
            if isinstance(ref, dict) and "ref_id" in ref:
                name = f"ref {plain_id(ref['ref_id'])}"
            sample = _sample(ref, instances, pictures, f"{path.name}, {name}")
            if check:
                check(ref, sample)
            if sample.id in samples:
                raise InputError("a second ref with this id")
            samples[sample.id] = sample
        except MALFORMED as error:
            bad.add(reason(error), file=path, record=name)
    return _with_unique_sentence_ids(list(samples.values()))


def refs_files(root: Path) -> dict[str, Path]:
    """The `refs(NAME).p` files of a folder by NAME, sorted."""
    return {path.name[5:-3]: path for path in sorted(root.glob("refs(*).p"))}


def refs_file(root: Path, refs: str | None) -> Path:
    """The one that is meant. Raises `InputError` if it is not there, or if it takes `refs` to choose."""
    found = refs_files(root)
    if refs is not None and refs in found:
        return found[refs]
    if refs is None and len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise InputError("no refs(*).p in this folder", file=root)
    wish = "say which refs to read" if refs is None else f"no refs({refs}).p"
    raise InputError(f"{wish}; there are: {', '.join(found)}", file=root)


def reason(error: BaseException) -> str:
    """Why a record is bad, in words."""
    if isinstance(error, InputError):
        return error.reason
    if isinstance(error, KeyError):
        return f"no {error.args[0]}" if error.args else "a missing key"
    return f"malformed: {error}"


def plain_path(name: object) -> str:
    """A relative path that stays inside its folder, without detours. Raises `InputError` otherwise."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError("no usable file name")
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise InputError(f"the path {name} leads out of its folder")
    return str(path)


def plain_id(value: object) -> str:
    """An id as text. Raises `InputError` unless it is text or a number.

    Anything else is refused before it is written out: in a pickle, a list may hold itself many times over.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise InputError("no usable id: it is neither text nor a number")
    if isinstance(value, int) and value.bit_length() > 128:
        raise InputError("no usable id: it is a number of more than 128 bits")
    return str(value)


def plain_text(sentence: object) -> str:
    """The sentence, if it is text that can be written as UTF-8 and says something. Raises `InputError` otherwise."""
    if not isinstance(sentence, str) or not sentence.strip():
        raise InputError("an empty sentence")
    sentence.encode()
    return sentence


def _sample(ref: dict[str, Any], instances: _Instances, pictures: _Pictures, provenance: str) -> Sample:
    image_id = plain_id(ref["image_id"])
    image = instances.images.get(image_id)
    if image is None:
        raise InputError(f"image {image_id} is not in instances.json")
    size = (int(image["height"]), int(image["width"]))
    own = ref.get("file_name")  # carries the annotation's id in RefCOCO: COCO_train2014_000000520199_426093.jpg
    names = [image.get("file_name"), re.sub(r"_\d+(\.\w+)$", r"\1", own) if isinstance(own, str) else None, own]
    sentences = ref["sentences"]
    return Sample(
        id=plain_id(ref["ref_id"]),
        image=pictures.find([plain_path(name) for name in names if name]),
        image_id=image_id,
        size=size,
        sentences=tuple(plain_text(sentence.get("sent") or sentence.get("raw")) for sentence in sentences),
        sentence_ids=tuple(plain_id(sentence.get("sent_id", "")) for sentence in sentences),
        targets=instances.targets(ref["ann_id"], image_id, size),
        split=plain_text(ref.get("split", "train")),
        provenance=provenance,
    )


class _Instances:
    """A COCO file, indexed by id; masks are converted when asked for, each once."""

    def __init__(self, path: Path, bad: BadRecords):
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError("a COCO file is an object with images and annotations", file=path)
        self.images = _index(content, "images", path, bad)
        self.annotations = _index(content, "annotations", path, bad)
        self.masks: dict[str, Rle] = {}

    def targets(self, ids: object, image_id: str, size: tuple[int, int]) -> tuple[Rle, ...]:
        listed = ids if isinstance(ids, (list, tuple)) else [ids]
        names = [plain_id(name) for name in listed]
        if names in ([], ["-1"]):
            return ()
        return tuple(self._mask(name, image_id, size) for name in names)

    def _mask(self, name: str, image_id: str, size: tuple[int, int]) -> Rle:
        annotation = self.annotations.get(name)
        if annotation is None:
            raise InputError(f"annotation {name} is not in instances.json")
        owner = plain_id(annotation.get("image_id", image_id))
        if owner != image_id:
            raise InputError(f"annotation {name} belongs to image {owner}, not to {image_id}")
        if name not in self.masks:
            segmentation = annotation["segmentation"]
            is_rle = isinstance(segmentation, dict)
            self.masks[name] = Rle.from_coco(segmentation) if is_rle else _from_polygons(segmentation, size)
        return self.masks[name]


def _index(content: dict[str, Any], what: str, path: Path, bad: BadRecords) -> dict[str, dict[str, Any]]:
    rows = content.get(what)
    if not isinstance(rows, list):
        raise InputError(f"no list of {what}", file=path)
    index: dict[str, dict[str, Any]] = {}
    for position, row in enumerate(rows):
        try:
            if not isinstance(row, dict) or "id" not in row:
                raise InputError("no id")
            key = plain_id(row["id"])
        except InputError as error:
            bad.add(error.reason, file=path, record=f"{what}[{position}]")
            continue
        if index.setdefault(key, row) is not row:
            bad.add("a second record with this id", file=path, record=f"{what}, id {key}")
    return index


def _from_polygons(polygons: list[list[float]], size: tuple[int, int]) -> Rle:
    """The union of COCO polygons (flat lists of x, y in pixels), rasterised as pycocotools does."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise InputError("this set has polygon masks; install pycocotools to read them") from error
    if not isinstance(polygons, list) or not polygons:
        raise InputError("an annotation without a segmentation")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(f"an image of {size[0]} x {size[1]} pixels, more than {MAX_PIXELS:,}")
    length = 0.0
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise InputError("a malformed polygon: it takes three or more finite points, x and y in turn")
        if np.abs(points).max() > 2 * max(size):  # pycocotools would try to draw every pixel on the way
            raise InputError("a malformed polygon: it reaches far outside the image")
        sides = np.abs(np.diff(points.reshape(-1, 2), axis=0, append=points[None, :2]))
        length += float(sides.max(axis=1).sum())
        if length > LONGEST:
            raise InputError(f"a malformed polygon: its outline is longer than {LONGEST:,} pixels")
    height, width = size
    merged = coco.merge(coco.frPyObjects(polygons, height, width))
    return Rle(height, width, str(merged["counts"], "ascii"))


class _Pictures:
    """Finds picture files by name in a few folders, listing each folder once instead of asking once per ref."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self.listed: dict[Path, frozenset[str]] = {}

    def find(self, names: Sequence[str]) -> str:
        for name in names:
            for folder in self.folders:
                path = folder / name
                if path.name in self._names(path.parent):
                    return str(path)
        if not names:
            raise InputError("an image without a file name")
        raise InputError(f"no such image: {names[0]}; looked in {', '.join(map(str, self.folders))}")

    def _names(self, folder: Path) -> frozenset[str]:
        if folder not in self.listed:
            try:
                with os.scandir(folder) as entries:
                    self.listed[folder] = frozenset(entry.name for entry in entries)
            except OSError:
                self.listed[folder] = frozenset()
        return self.listed[folder]


def _picture_folders(root: Path) -> list[Path]:
    beside = root.resolve().parent / "images"
    inside = root / "images"
    coco = Path("mscoco/images/train2014")
    places = [inside, beside / coco, inside / coco, beside / "train2014", inside / "train2014", beside / "saiapr_tc-12"]
    return [place for place in [*places, beside, root] if place.is_dir()]


def _with_unique_sentence_ids(samples: list[Sample]) -> list[Sample]:
    """Sentence ids as they are if they are there and unique; otherwise REF_0, REF_1, ... in the whole set."""
    names = [name for sample in samples for name in sample.sentence_ids]
    if all(names) and len(set(names)) == len(names):
        return samples
    return [
        replace(sample, sentence_ids=tuple(f"{sample.id}_{index}" for index in range(len(sample.sentences))))
        for sample in samples
    ]


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises `InputError` if it is missing, no JSON, or nested too deep."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError("no such file", file=path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not readable as JSON: {error}", file=path) from error


def write_refer(out: Path, samples: Iterable[tuple[Sample, np.ndarray | None]], *, name: str = "l2l") -> None:
    """Write a REFER set: `images/` (PNG), `instances.json` (compressed RLE), `refs(NAME).p` (plain pickle, protocol 2).

    Unlabelled samples go to `unlabelled.jsonl`, one line per sentence: `image`, `expression`, `image_id`, `id`.

    Args:
        out: the folder; it is made, and files of the same names in it are replaced, each in one piece.
        samples: each with its picture, uint8 (H, W, 3), or `None` to load it from the sample's address. One picture is
            written per image id, the first, so an iterable need not hold them all.
        name: the NAME in `refs(NAME).p`.

    Raises:
        InputError: if a picture's size is not its sample's.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    unlabelled: list[dict[str, Any]] = []
    for sample, picture in samples:
        file_name = _file_name(sample.image_id)
        height, width = sample.size
        if sample.image_id not in images:
            _write_picture(out / "images" / file_name, sample, picture)
            row = {"id": _number(sample.image_id), "file_name": file_name, "width": width, "height": height}
            images[sample.image_id] = row
        if sample.targets is None:
            place = {"image": f"images/{file_name}", "image_id": sample.image_id}
            unlabelled.extend({**place, "expression": text, "id": key} for key, text in sample.pairs())
            continue
        ids = []
        for target in sample.targets:
            ids.append(len(annotations) + 1)
            annotations.append(_annotation(ids[-1], _number(sample.image_id), target))
        refs.append(_ref(sample, file_name, ids))

    categories = [{"id": 1, "name": "object", "supercategory": "object"}]
    coco = {"images": list(images.values()), "annotations": annotations, "categories": categories}
    write_whole(out / "instances.json", json.dumps(coco).encode())
    if unlabelled:
        write_whole(out / "unlabelled.jsonl", "".join(json.dumps(line) + "\n" for line in unlabelled).encode())
    else:
        (out / "unlabelled.jsonl").unlink(missing_ok=True)
    write_whole(out / f"refs({name}).p", pickle.dumps(refs, protocol=2))


def _ref(sample: Sample, file_name: str, ids: list[int]) -> dict[str, Any]:
    return {
        "ref_id": _number(sample.id),
        "ann_id": ids[0] if len(ids) == 1 else ids or [-1],
        "image_id": _number(sample.image_id),
        "file_name": file_name,
        "category_id": 1,
        "split": sample.split,
        "sent_ids": [_number(key) for key in sample.sentence_ids],
        "sentences": [
            {"sent_id": _number(key), "sent": text, "raw": text, "tokens": text.split()} for key, text in sample.pairs()
        ],
    }


def _annotation(name: int, image_id: int | str, target: Rle) -> dict[str, Any]:
    rows, columns = np.nonzero(target.decode())
    left, top = (int(columns.min()), int(rows.min())) if rows.size else (0, 0)
    right, bottom = (int(columns.max()) + 1, int(rows.max()) + 1) if rows.size else (0, 0)
    return {
        "id": name,
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "area": int(rows.size),
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": target.to_coco(),
    }


def _write_picture(path: Path, sample: Sample, picture: np.ndarray | None) -> None:
    pixels = load(sample.image) if picture is None else picture
    if pixels.shape[:2] != sample.size:
        raise InputError(f"a picture of {pixels.shape[:2]} for a record of {sample.size}", record=sample.id)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_whole(path, content.getvalue())


def _file_name(image_id: str) -> str:
    safe = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}", image_id)
    return f"{image_id if safe else hashlib.blake2b(image_id.encode(), digest_size=8).hexdigest()}.png"


def _number(name: str) -> int | str:
    """COCO's tools like integer ids; an id that is one becomes one again."""
    return int(name) if re.fullmatch(r"0|[1-9][0-9]{0,17}", name) else name
