"""Shards: a data set as many files of some thousand image-sentence pairs each, pictures included.

A shard is a WebDataset tar (`data.webdataset`) or a parquet file (`data.parquet`). It needs nothing beside itself, so
it can be read on any machine and done again on its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from l2l.data.durable import remove_drafts, write_durably
from l2l.data.folder import sentences_of
from l2l.data.images import SCENES, load, opened
from l2l.data.read import DataSet
from l2l.data.refer import plain_text, read_json
from l2l.errors import BadRecords, InputError
from l2l.rle import Rle
from l2l.sample import Sample

Format = Literal["wds", "parquet"]
SUFFIXES = {"wds": ".tar", "parquet": ".parquet"}
INDEX = "shards.json"
KEPT = {"JPEG": "jpg", "PNG": "png"}  # formats whose bytes go into a shard as they are


@dataclass(frozen=True, slots=True)
class Packed:
    """One picture of a shard and all that is said of it."""

    name: str
    """`00000012.jpg`, unique in the data set."""
    content: bytes
    """The file's bytes, JPEG or PNG."""
    samples: tuple[Sample, ...]


def write_shards(
    dataset: DataSet, out: Path | str, *, format: Format = "wds", per_shard: int = 1000, skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a data set as `pairs-000000.tar` (or `.parquet`), ..., and, at the end, `shards.json`, which lists them.

    JPEG and PNG files go in as they are, so that a prior store, which knows pictures by their bytes, still knows them;
    all else (drawn scenes among it) becomes PNG. The same data gives the same bytes.

    Args:
        out: the folder; shards of the same data set in it are replaced, each in one piece.
        per_shard: pairs, that is sentences, after which a shard is closed; one picture's pairs are never separated.
        skip_bad: set pictures aside that cannot be read.
        progress: called with shards done and in all.

    Returns:
        The content of `shards.json`: `format`, `data`, `fingerprint`, `pairs`, `pictures`, `bytes`, `skipped`, and of
        each of `shards` its `file`, `pairs`, `pictures`, `bytes` and `digest`.

    Raises:
        InputError: if `per_shard` is below 1, a picture cannot be read, or `out` holds other shards.
    """
    if per_shard < 1:
        raise InputError(f"{per_shard} pairs in a shard; there has to be one")
    write = _writer(format)
    out, bad = Path(out), BadRecords(skip=skip_bad, found=list(dataset.bad))
    plan = _plan(dataset.samples, per_shard)
    names = [f"pairs-{number:06d}{SUFFIXES[format]}" for number in range(len(plan))]
    out.mkdir(parents=True, exist_ok=True)
    other = sorted({path.name for path in _found(out)} - set(names))
    if other:
        raise InputError(f"holds other shards, such as {other[0]}; choose another folder", file=out)
    remove_drafts(out)
    rows: list[dict[str, Any]] = []
    first = 0
    for number, (name, groups) in enumerate(zip(names, plan, strict=True), 1):
        packed = list(_pack(groups, first, bad))
        content = write(packed)
        write_durably(out / name, content)
        pairs = sum(len(sample.sentences) for one in packed for sample in one.samples)
        rows.append({"file": name, "pairs": pairs, "pictures": len(packed), "bytes": len(content),
                     "digest": digest_of(content)})  # fmt: skip
        first += len(groups)
        if progress:
            progress(number, len(plan))
    totals = {key: sum(row[key] for row in rows) for key in ("pairs", "pictures", "bytes")}
    index = {"format": format, "data": dataset.name, "fingerprint": dataset.fingerprint(), **totals,
             "skipped": len(bad.found), "shards": rows}  # fmt: skip
    bad.write(out / "skipped.jsonl")
    write_durably(out / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return index


def shard_files(folder: Path | str) -> list[Path]:
    """The shards of a folder (or the one file), by name.

    Raises:
        InputError: if there are none, one that `shards.json` lists is missing, or two differ in their suffix alone.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() and folder.suffix in SUFFIXES.values() else _found(folder)
    if not files:
        raise InputError("no shards here (looked for .tar and .parquet)", file=folder)
    if len({path.stem for path in files}) < len(files):
        raise InputError("a .tar and a .parquet of the same name", file=folder)
    if (folder / INDEX).is_file():
        try:
            listed = {str(row["file"]) for row in read_json(folder / INDEX)["shards"]}
        except (LookupError, TypeError) as error:
            raise InputError(f"not a list of shards: {error}", file=folder / INDEX) from error
        missing = sorted(listed - {path.name for path in files})
        if missing:
            raise InputError(f"{len(missing)} shards are missing, the first {missing[0]}", file=folder)
    return files


def read_shard(
    path: Path, *, content: bytes | None = None, bad: BadRecords | None = None
) -> Iterator[tuple[Sample, bytes]]:
    """The samples of one shard, each with the bytes of its picture, which were looked at (its header) but not decoded.

    `Sample.image` is `SHARD/NAME`, as in `pairs-000000.tar/00000012.jpg`: a name to keep, not a path to open.

    Args:
        path: the shard. content: its bytes, where they are in memory already.
        bad: takes records that cannot be used, and damaged stretches of the file; without it the first one raises.

    Raises:
        InputError: if the file is missing or is no shard, or for a bad record.
    """
    bad = BadRecords() if bad is None else bad
    if content is None:
        content = shard_bytes(path)
    if path.suffix == ".parquet":
        from l2l.data.parquet import read_parquet as read
    else:
        from l2l.data.webdataset import read_tar as read
    ids: set[str] = set()
    keys: set[str] = set()
    for sample, picture in read(path, content, bad):
        if sample.id in ids or not keys.isdisjoint(sample.sentence_ids):
            bad.add(f"a second record with the id {sample.id}", file=path.name, record=sample.provenance)
            continue
        ids.add(sample.id)
        keys.update(sample.sentence_ids)
        yield sample, picture


def pictures_of(path: Path) -> dict[str, bytes]:
    """All pictures of a shard by their names, `SHARD/NAME`; the shard that was asked for last is kept in memory.

    Raises:
        InputError: as `read_shard`; bad records are left out.
    """
    told = path.stat()
    return _pictures_of(path, told.st_mtime_ns, told.st_size)


@functools.lru_cache(maxsize=1)
def _pictures_of(path: Path, *_: int) -> dict[str, bytes]:
    return {sample.image: picture for sample, picture in read_shard(path, bad=BadRecords(skip=True))}


def shard_bytes(path: Path) -> bytes:
    """The file. Raises `InputError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error


def digest_of(content: bytes) -> str:
    """32 hex digits of blake2b."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def inside(name: str) -> None:
    """Raises `InputError` for a picture's name that, put behind its shard's, would be a path to somewhere else."""
    if "\0" in name or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        raise InputError(f"the path {name} leads out of its shard")


def record_of(sample: Sample) -> dict[str, Any]:
    """What a shard keeps of a sample beside the picture; `masks` is COCO RLE, `None` where nothing is known."""
    masks = None if sample.targets is None else [target.to_coco() for target in sample.targets]
    return {"id": sample.id, "split": sample.split, "sentences": list(sample.sentences),
            "sentence_ids": list(sample.sentence_ids), "masks": masks, "chosen": sample.chosen}  # fmt: skip


def sample_of(
    value: dict[str, Any], *, key: str, image: str, image_id: str, size: tuple[int, int], provenance: str
) -> Sample:
    """The inverse of `record_of`. A foreign record may lack ids (`key` takes their place), split and masks, and have
    one `sentence`, `expression` or `text`. Raises what `data.refer.MALFORMED` lists where it is no record."""
    name = str(value.get("id") or key)
    sentences, keys, masks = sentences_of(value), value.get("sentence_ids"), value.get("masks")
    if keys is None:
        keys = [f"{name}_{place}" for place in range(len(sentences))] if len(sentences) > 1 else [name]
    if not isinstance(keys, list) or not isinstance(masks, list | None):
        raise InputError("sentence_ids and masks are lists")
    return Sample(
        id=name, image=image, image_id=image_id, size=size, sentences=sentences, sentence_ids=tuple(map(str, keys)),
        targets=None if masks is None else tuple(Rle.from_coco(mask) for mask in masks),
        split=plain_text(value.get("split") or "train"), chosen=value.get("chosen") is True, provenance=provenance,
    )  # fmt: skip


def _found(folder: Path) -> list[Path]:
    return sorted(path for suffix in SUFFIXES.values() for path in folder.glob(f"*{suffix}"))


def _writer(format: Format) -> Callable[[list[Packed]], bytes]:
    match format:
        case "wds":
            from l2l.data.webdataset import write_tar

            return write_tar
        case "parquet":
            from l2l.data.parquet import write_parquet

            return write_parquet
        case _:
            raise InputError(f"no format {format}; there are {', '.join(SUFFIXES)}")


def _plan(samples: Iterable[Sample], per_shard: int) -> list[list[list[Sample]]]:
    """Shards of pictures of samples: by picture in the order of their first samples, closed at `per_shard` pairs."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image, []).append(sample)
    plan: list[list[list[Sample]]] = []
    pairs = per_shard
    for group in groups.values():
        if pairs >= per_shard:
            plan.append([])
            pairs = 0
        plan[-1].append(group)
        pairs += sum(len(sample.sentences) for sample in group)
    return plan


def _pack(groups: list[list[Sample]], first: int, bad: BadRecords) -> Iterator[Packed]:
    """Read the pictures; the number of each in the data set is its name."""
    for number, group in enumerate(groups, first):
        try:
            content, suffix = _picture(group[0].image)
        except InputError as error:
            for sample in group:
                bad.add(error.reason, file=sample.image, record=sample.provenance or sample.id)
            continue
        yield Packed(f"{number:08d}.{suffix}", content, tuple(group))


def _picture(image: str) -> tuple[bytes, str]:
    if not image.startswith(SCENES):
        with opened(image) as picture:
            suffix = KEPT.get(picture.format or "")
        if suffix:
            return shard_bytes(Path(image)), suffix
    from PIL import Image

    content = BytesIO()
    Image.fromarray(load(image)).save(content, format="PNG")
    return content.getvalue(), "png"
