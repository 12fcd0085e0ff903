"""A folder of mask pictures and `index.csv`: for any tool, and for people with a paint program.

A mask is an 8-bit grey PNG, 255 what is meant. Whoever deletes a mask's file, or writes `yes` under `rejected`, rejects
it; an all-black mask says that the sentence means nothing in its picture.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from l2l.data.durable import write_whole
from l2l.data.folder import _mask
from l2l.data.refer import MALFORMED, plain_path, reason
from l2l.errors import BadRecords, InputError
from l2l.exchange.corrected import Correction
from l2l.exchange.labels import Label

INDEX = "index.csv"
COLUMNS = ("id", "mask", "image", "sentence", "score", "accepted", "rejected")


def write_png(labels: Sequence[Label], out: Path) -> None:
    """Write `masks/ID.png` for each label and `index.csv` (UTF-8, comma, quoted as RFC 4180 has it)."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\r\n")
    table.writerow(COLUMNS)
    for one in labels:
        name = f"masks/{_safe(one.id)}.png"
        write_whole(out / name, png_of(one.mask.decode()))
        table.writerow([one.id, name, one.file_name, one.sentence, one.score, "yes" if one.accepted else "no", "no"])
    write_whole(out / INDEX, text.getvalue().encode())


def png_of(mask: np.ndarray) -> bytes:
    """A boolean (H, W) mask as the bytes of an 8-bit grey PNG: 255 what is meant, 0 the rest."""
    content = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(content, format="PNG")
    return content.getvalue()


def _safe(key: str) -> str:
    """A file name for an id, another one for another id, also where upper and lower case are the same."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", key):
        return key
    words = re.sub(r"[^a-z0-9_-]+", "-", key.lower()).strip("-")[:60]
    return f"{words or 'id'}.{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}"


def read_png(path: Path, *, bad: BadRecords | None = None) -> Iterator[Correction]:
    """The masks of a folder as `write_png` leaves it; anything that is not black is meant.

    Raises:
        InputError: if there is no `index.csv`; for a bad row or mask, unless `bad` takes it.
    """
    bad = BadRecords() if bad is None else bad
    path = path if path.suffix == ".csv" else path / INDEX
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from error
    except ValueError as error:
        raise InputError("not UTF-8; save it as CSV UTF-8", file=path) from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if not {"id", "mask"} <= set(rows.fieldnames or ()):
            raise InputError("no columns id and mask, with commas between them", file=path)
        for place, row in enumerate(rows, start=1):
            try:
                yield _correction(row, path.parent, f"row {place}")
            except MALFORMED as error:
                bad.add(reason(error), file=path, record=f"row {place}")
    except csv.Error as error:
        raise InputError(f"not readable as CSV: {error}", file=path, record=f"line {rows.line_num}") from error


def _correction(row: dict[str, str | None], folder: Path, record: str) -> Correction:
    key, image = row["id"], row.get("image") or ""
    if not key:
        raise InputError("no id")
    name = plain_path(row["mask"])
    if (row.get("rejected") or "").strip().lower() in ("yes", "y", "true", "1", "x"):
        return Correction(id=key, rejected="marked as rejected", image=image, record=record)
    try:
        there = (folder / name).exists()
    except OSError as error:  # a name that no disk takes
        raise InputError(f"its mask cannot be read: {error.strerror}") from error
    if not there:
        return Correction(id=key, rejected=f"its mask {name} was deleted", image=image, record=record)
    return Correction(id=key, mask=_mask(name, folder), image=image, record=record)
