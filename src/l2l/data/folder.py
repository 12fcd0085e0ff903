"""A plain folder with `metadata.jsonl`, and JSON lines of image-sentence pairs.

The folder follows https://huggingface.co/docs/datasets/image_dataset: one JSON object per line, `file_name` relative to
the folder, further columns as they come.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from l2l.data.images import opened, size, values
from l2l.data.refer import MALFORMED, plain_path, plain_text, reason
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle
from l2l.sample import Sample


def read_folder(root: Path, *, images: Path | None = None, bad: BadRecords | None = None) -> list[Sample]:
    """Read `metadata.jsonl`: one sample per line.

    `file_name` (or `image`) names the picture. `sentences` (a list), `sentence`, `expression` or `text` says what is
    meant. `mask` is the path of a lossless mask picture (not zero = target), relative to the folder, or a COCO RLE
    object; `masks` is a list of these, empty for a sentence without target. Without either, or with null, the line is
    unlabelled. `split` (default `train`), `id` (`r` and the line's number), `sentence_ids` (a list; ID_0, ID_1, ...)
    and `image_id` (the picture's name) may be given, and `chosen` (see `Sample`).

    Args:
        root: the folder.
        images: where the pictures are, if not in `root`.
        bad: takes lines that cannot be used; without it the first one raises.

    Raises:
        InputError: if `metadata.jsonl` is missing, or for a bad line.
    """
    path = root / "metadata.jsonl"

    def parse(line: dict[str, Any], number: int, sizes: _Sizes) -> Sample:
        key = str(line.get("id", f"r{number}"))
        sentences = sentences_of(line)
        return Sample(
            id=key,
            sentences=sentences,
            sentence_ids=_sentence_ids(line, key, len(sentences)),
            targets=_targets(line, root),
            split=plain_text(line.get("split", "train")),
            chosen=line.get("chosen") is True,
            provenance=f"{path.name}, line {number}",
            **sizes.picture(line),
        )

    return _read(path, images or root, bad, parse)


def read_pairs(path: Path, *, images: Path | None = None, bad: BadRecords | None = None) -> list[Sample]:
    """Read JSON lines of image-sentence pairs such as `{"image": "a.jpg", "expression": "the cup"}`, all unlabelled.

    One sample per line, in split `train`; its id, also that of its sentence, is the line's `id` or `u` and the line's
    number. The keys for picture and sentence are those of `read_folder`; anything else in the line is left alone.

    Args:
        path: the file; pictures are named relative to its folder.
        images: where the pictures are, if not there.
        bad: takes lines that cannot be used; without it the first one raises.

    Raises:
        InputError: if the file is missing, or for a bad line.
    """

    def parse(line: dict[str, Any], number: int, sizes: _Sizes) -> Sample:
        key = str(line.get("id", f"u{number}"))
        sentences = sentences_of(line)
        several = len(sentences) > 1
        return Sample(
            id=key,
            sentences=sentences,
            sentence_ids=tuple(f"{key}_{index}" for index in range(len(sentences))) if several else (key,),
            provenance=f"{path.name}, line {number}",
            **sizes.picture(line),
        )

    return _read(path, images or path.parent, bad, parse)


class _Sizes:
    """Where the pictures are, and how large; each header is read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.known: dict[str, tuple[int, int] | InputError] = {}

    def picture(self, line: dict[str, Any]) -> dict[str, Any]:
        """`image`, `image_id` and `size` of a sample."""
        name = plain_path(line.get("file_name", line.get("image")))
        if name not in self.known:
            try:
                self.known[name] = size(str(self.folder / name))
            except InputError as error:
                self.known[name] = error
        found = self.known[name]
        if isinstance(found, InputError):
            raise found
        return {"image": str(self.folder / name), "image_id": str(line.get("image_id", name)), "size": found}


def _read(
    path: Path, pictures: Path, bad: BadRecords | None, parse: Callable[[dict[str, Any], int, _Sizes], Sample]
) -> list[Sample]:
    bad = BadRecords() if bad is None else bad
    sizes = _Sizes(pictures)
    samples: dict[str, Sample] = {}
    seen: set[str] = set()
    for number, line in _lines(path, bad):
        try:
            sample = parse(line, number, sizes)
            if sample.id in samples or not seen.isdisjoint(sample.sentence_ids):
                raise InputError(f"a second record with the id {sample.id}")
            samples[sample.id] = sample
            seen.update(sample.sentence_ids)
        except MALFORMED as error:
            bad.add(reason(error), file=path, record=f"line {number}")
    return list(samples.values())


def _lines(path: Path, bad: BadRecords) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank."""
    for number, text in enumerate(_texts(path), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.add(f"not readable as JSON: {error}", file=path, record=f"line {number}")
            continue
        if isinstance(line, dict):
            yield number, line
        else:
            bad.add("not a JSON object", file=path, record=f"line {number}")


def _texts(path: Path) -> Iterator[bytes]:
    """The lines one by one, as `bytes.splitlines` cuts them: a list may be larger than memory likes."""
    try:
        with path.open("rb") as file:
            for part in file:
                yield from part.splitlines()
    except FileNotFoundError as error:
        raise InputError("no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error}", file=path) from error


def sentences_of(line: dict[str, Any]) -> tuple[str, ...]:
    """The sentences of a record, under any of the names that they go by. Raises `InputError` if there are none."""
    several = line.get("sentences")
    if several is None:
        several = [next((line[key] for key in ("sentence", "expression", "text") if line.get(key) is not None), None)]
    if not isinstance(several, list):
        raise InputError("sentences must be a list")
    return tuple(plain_text(sentence) for sentence in several)


def _sentence_ids(line: dict[str, Any], key: str, count: int) -> tuple[str, ...]:
    given = line.get("sentence_ids")
    if given is None:
        return tuple(f"{key}_{index}" for index in range(count))
    if not isinstance(given, list):
        raise InputError("sentence_ids must be a list")
    return tuple(map(str, given))


def _targets(line: dict[str, Any], root: Path) -> tuple[Rle, ...] | None:
    one, several = line.get("mask"), line.get("masks")
    if one is not None and several is not None:
        raise InputError("both mask and masks")
    if several is not None and not isinstance(several, list):
        raise InputError("masks must be a list")
    if one is None and several is None:
        return None
    return tuple(_mask(value, root) for value in (several if several is not None else [one]))


def _mask(value: object, root: Path) -> Rle:
    if isinstance(value, dict):
        return Rle.from_coco(value)
    if not isinstance(value, str):
        raise InputError("a mask is the path of a picture or a COCO RLE object")
    with opened(str(root / plain_path(value))) as picture:
        if picture.format == "JPEG":
            raise InputError(f"the mask {value} is a JPEG, which blurs its edge; use PNG")
        found = values(picture)
    return Rle.encode((found.reshape(*found.shape[:2], -1) != 0).any(axis=2))
