"""WebDataset tars: https://github.com/webdataset/webdataset, files of one record side by side under one key.

Here a record is a picture: `00000012.jpg` (or `.png`) and `00000012.json` with `image_id` and `refs`, one entry for
each referent: `id`, `split`, `sentences`, `sentence_ids`, `chosen` and, where known, `masks` (COCO RLE). So no picture
is there twice. A JSON without `refs` is read as one referent.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from l2l.data.images import size
from l2l.data.refer import MALFORMED, reason
from l2l.data.shards import Packed, inside, record_of, sample_of
from l2l.errors import BadRecords, InputError
from l2l.sample import Sample

PICTURES = ("jpg", "jpeg", "png")
BLOCK = 512  # bytes; POSIX ustar


def write_tar(pictures: list[Packed]) -> bytes:
    """A tar as bytes; no times, no owners, so that the same records give the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for one in pictures:
            refs = [{name: part for name, part in record_of(sample).items() if part is not None}
                    for sample in one.samples]  # fmt: skip
            text = json.dumps({"image_id": one.samples[0].image_id, "refs": refs}).encode()
            for name, content in ((one.name, one.content), (f"{Path(one.name).stem}.json", text)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def read_tar(path: Path, content: bytes, bad: BadRecords) -> Iterator[tuple[Sample, bytes]]:
    """The samples of a tar, each with its picture's bytes; see `data.shards.read_shard`."""
    key = ""
    parts: dict[str, bytes] = {}
    for name, part in _members(path, content, bad):
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")  # the key ends at the first dot of the file's name
        if folder + slash + stem != key:
            yield from _record(path, key, parts, bad)
            key, parts = folder + slash + stem, {}
        parts[suffix.lower()] = part
    yield from _record(path, key, parts, bad)


def _record(path: Path, key: str, parts: dict[str, bytes], bad: BadRecords) -> Iterator[tuple[Sample, bytes]]:
    if not parts:
        return
    try:
        suffix = next((suffix for suffix in PICTURES if suffix in parts), None)
        if suffix is None or "json" not in parts:
            raise InputError("a picture (.jpg or .png) and a .json make a record; one is missing")
        inside(f"{key}.{suffix}")
        value = json.loads(parts["json"])
        if not isinstance(value, dict):
            raise InputError("the .json is no object")
        image = f"{path.name}/{key}.{suffix}"
        picture = size(image, content=parts[suffix])
        refs = value.get("refs", [value])
        if not isinstance(refs, list):
            raise InputError("refs is no list")
    except MALFORMED as error:
        bad.add(reason(error), file=path.name, record=key)
        return
    for place, ref in enumerate(refs):
        name = key if len(refs) == 1 else f"{key}_{place}"
        where = f"{path.name}, {name}"
        try:
            told: Any = value.get("image_id")
            sample = sample_of(ref, key=name, image=image, image_id=key if told is None else str(told), size=picture,
                               provenance=where)  # fmt: skip
        except MALFORMED as error:
            bad.add(reason(error), file=path.name, record=name)
            continue
        yield sample, parts[suffix]


def _members(path: Path, content: bytes, bad: BadRecords) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each plain file. After damage it goes on at the next header that is whole.

    Block by block: `tarfile` takes a damaged header for the end and makes as many zeros as a sparse file asks for; that
    of Python 3.11.7 walks in circles at a negative size.
    """
    at, found = 0, False
    told: dict[str, str] = {}  # by a header that speaks of the next one
    while at < len(content):
        start, what = at + BLOCK, "a damaged header"
        try:
            member = tarfile.TarInfo.frombuf(content[at:start], tarfile.ENCODING, "surrogateescape")
            size = int(told.get("size", member.size))
            end = start + size
            if not start <= end <= len(content):
                raise tarfile.ReadError("unexpected end of data")
            if member.type == tarfile.XHDTYPE:
                told |= _pax(content[start:end])
            elif member.type == tarfile.GNUTYPE_LONGNAME:
                told["path"] = content[start:end].rstrip(b"\0").decode("utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            what = what if isinstance(error, tarfile.HeaderError) else str(error)
            start = _next_header(content, at + 1)
            if content[at:start].strip(b"\0"):  # not just the empty blocks that end an archive
                bad.add(f"{what}; bytes {at} to {start} are lost", file=path.name, record=f"byte {at}")
            at, told = start, {}
            continue
        found = True
        name, sparse = told.get("path", member.name), any(key.startswith("GNU.sparse") for key in told)
        if sparse or member.type == tarfile.GNUTYPE_SPARSE:
            bad.add("a sparse file; pack it without --sparse", file=path.name, record=name)
        elif member.isreg():
            yield name, content[start:end]
        speaks = member.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        told = told if speaks else {}
        holds = member.isreg() or speaks or member.type not in tarfile.SUPPORTED_TYPES or member.type == tarfile.XGLTYPE
        at = start + (-(-size // BLOCK) * BLOCK if holds else 0)
    if not found:
        raise InputError("no tar file, or an empty one", file=path)


def _pax(content: bytes) -> dict[str, str]:
    """The keys of an extended header, each a line `LENGTH KEY=VALUE`. Raises `ValueError` if they are damaged."""
    found, at = {}, 0
    while at < len(content):
        length, blank, _ = content[at : at + 20].partition(b" ")
        end = at + int(length)
        if not (blank and at + len(length) + 1 < end <= len(content)):
            raise ValueError("a damaged extended header")
        key, _, value = content[at + len(length) + 1 : end - 1].partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return found


def _next_header(content: bytes, start: int) -> int:
    """Where, from `start` on, the next whole header is; the end of `content` where there is none."""
    for at in range(-(-start // BLOCK) * BLOCK, len(content) - BLOCK + 1, BLOCK):
        if content[at + 257 : at + 262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(content[at : at + BLOCK], tarfile.ENCODING, "surrogateescape")
                return at
            except tarfile.HeaderError:
                pass
    return len(content)
