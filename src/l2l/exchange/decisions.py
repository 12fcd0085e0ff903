"""What people decided in the queue of `l2l serve --review`, for `l2l import` and `l2l export`.

`corrections.jsonl` holds everything that was said, a line each, oldest first; the last line of an id counts, and `open`
takes back what was said before.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from l2l.data.refer import MALFORMED, reason
from l2l.errors import BadRecords, InputError
from l2l.exchange.corrected import Correction
from l2l.exchange.labels import Label
from l2l.rle import Rle

CORRECTIONS, OPEN = "corrections.jsonl", "open"


def read_decisions(path: Path, *, bad: BadRecords | None = None) -> Iterator[Correction]:
    """The last word on each pair: an accepted mask, or that it was rejected. What was taken back says nothing.

    Args:
        path: the folder that `l2l serve --labels` keeps, or its `corrections.jsonl`.

    Raises:
        InputError: if there is no such file; for a bad line, unless `bad` takes it.
    """
    bad = BadRecords() if bad is None else bad
    file = path / CORRECTIONS if path.is_dir() else path
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise InputError("no such file; it is what `l2l serve --labels` keeps", file=file) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from error
    last: dict[str, Correction] = {}
    for number, text in enumerate(lines[:-1], start=1):  # what stands behind the last line end is being written
        record = f"line {number}"
        try:
            line = json.loads(text)
            key, verdict = str(line["id"]), line["verdict"]
            last.pop(key, None)
            if verdict == "accept":
                last[key] = Correction(id=key, mask=Rle.from_coco(line["mask"]), record=record)
            elif verdict == "reject":
                last[key] = Correction(id=key, rejected="rejected in review", record=record)
            elif verdict != OPEN:
                raise InputError("its verdict is neither accept nor reject nor open")
        except MALFORMED as error:
            bad.add(reason(error), file=file, record=record)
    yield from last.values()


def apply_decisions(labels: Iterable[Label], decisions: Iterable[Correction], *, file: object) -> list[Label]:
    """The labels as people left them: what was accepted with its mask and a score of 1, without what was rejected.

    Labels that nobody decided on stay as they are; decisions about other pairs are of no interest.

    Args:
        file: what the decisions were read from, for messages.

    Raises:
        InputError: for a mask of another size than the label's.
    """
    said = {one.id: one for one in decisions}
    found = []
    for label in labels:
        one = said.get(label.id)
        if one is None:
            found.append(label)
        elif one.mask is not None:
            if (one.mask.height, one.mask.width) != label.size:
                raise InputError(
                    f"a mask of {one.mask.height} x {one.mask.width} for pair {label.id}, whose picture is of "
                    f"{label.size[0]} x {label.size[1]}: decided on other labels", file=file, record=one.record,
                )  # fmt: skip
            found.append(dataclasses.replace(label, mask=one.mask, score=1.0, accepted=True))
    return found
