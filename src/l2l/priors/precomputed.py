"""Priors from a file: what any tool wrote as JSON lines.

One line per pair: `{"image": "images/1.jpg", "expression": "blouse", "boxes": [[x0, y0, x1, y1]], "scores": [0.8]}`.
Boxes are absolute pixels of the picture, unless the line says `"normalised": true`. `points`, `mask` (COCO RLE),
`head`, `attributes`, `relations` and `source` may be there. A line without boxes, points and mask says "no prior".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2l.data.streams import seed_of
from l2l.errors import BadRecords, InputError
from l2l.priors.prior import Prior, from_pixels
from l2l.rle import Rle
from l2l.sample import Sample


class Precomputed:
    """Priors of a JSONL file, matched by picture and sentence.

    Args:
        path: the file. Picture paths in it are relative to its folder, or to `images`.
        bad: what to do with a bad line; the default stops at the first.

    Raises:
        InputError: naming file and line, if the file is missing or a line is not a prior.
    """

    def __init__(self, path: Path | str, *, images: Path | None = None, bad: BadRecords | None = None):
        self.path = Path(path)
        self.bad = bad or BadRecords()
        self._folder = images or self.path.parent
        self._lines: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the prior file: {error}", file=self.path) from error
        self._digest = f"{seed_of(text):016x}"
        sources = set()
        for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON strings may hold U+2028
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                sentence = value["expression"] if "expression" in value else value["sentence"]
                self._lines[self._place(str(value["image"])), str(sentence)] = (number, value)
                sources.add(str(value.get("source", "")))
            except (ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:  # also: links in a circle
                self.bad.add(f"not a prior: {type(error).__name__} {error}", file=self.path, record=f"line {number}")
        simulated = any("simulated" in source for source in sources)
        self.name = f"precomputed ({', '.join(sorted(sources - {''})) or self.path.name})"
        self.simulated = simulated

    def _place(self, image: str) -> str:
        return str((self._folder / image).resolve())

    def fingerprint(self) -> str:
        """Digest of the file's text."""
        return self._digest

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior]:
        """One prior per pair; an empty one with a note where the file has no line for it, or a bad one."""
        return [self._one(sample, sentence) for sample, sentence in pairs]

    def _one(self, sample: Sample, sentence: str) -> Prior:
        number, value = self._lines.get((str(Path(sample.image).resolve()), sentence), (0, None))
        if value is None:
            return Prior(note="not in the prior file")
        try:
            return read_line(value, sample.size)
        except InputError as error:
            self.bad.add(error.reason, file=self.path, record=f"line {number}")
            return Prior(note=f"bad prior: {error.reason}")


def read_line(value: dict[str, Any], size: tuple[int, int]) -> Prior:
    """One parsed line -> a prior. Raises `InputError` where it is not one."""
    try:
        boxes = [[float(side) for side in box] for box in value.get("boxes") or ()]
        scores = [float(score) for score in value.get("scores") or [0.5] * len(boxes)]
        points = [[float(side) for side in point] for point in value.get("points") or ()]
        attributes, relations = (tuple(map(str, value.get(name) or ())) for name in ("attributes", "relations"))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"not a prior: {error}") from error
    if any(not math.isfinite(score) for score in scores):
        raise InputError("a score that is not finite")
    if any(len(box) != 4 for box in boxes) or any(len(point) != 2 for point in points):
        raise InputError("a box has 4 numbers and a point has 2")
    if len(scores) != len(boxes):
        raise InputError(f"{len(scores)} scores for {len(boxes)} boxes")
    height, width = (1, 1) if value.get("normalised") else size
    order = np.argsort([-score for score in scores], kind="stable")
    return Prior(
        boxes=tuple(from_pixels(boxes[at], (height, width)) for at in order),
        scores=tuple(min(max(scores[at], 0.0), 1.0) for at in order),
        points=tuple((x / width, y / height) for x, y in points),
        mask=Rle.from_coco(value["mask"]) if value.get("mask") else None,
        head=str(value.get("head") or ""),
        attributes=attributes,
        relations=relations,
    )
