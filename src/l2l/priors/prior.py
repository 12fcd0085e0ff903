"""The `Prior` record: what a frozen model says of one image and one sentence. It can be wrong, or nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from l2l.errors import InputError
from l2l.rle import Rle
from l2l.sample import Sample

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """A semantic-spatial prior. All coordinates are shares of the image's width and height, x right and y down.

    Raises:
        InputError: if a number is not finite, a box is empty or outside [0, 1], or scores do not match the boxes.
    """

    boxes: tuple[Box, ...] = ()
    """(x0, y0, x1, y1) each, best first."""
    scores: tuple[float, ...] = ()
    """One per box, in [0, 1]."""
    points: tuple[tuple[float, float], ...] = ()
    """(x, y) each."""
    mask: Rle | None = None
    """A mask at any size with the image's shape."""
    head: str = ""
    """Head noun of the sentence."""
    attributes: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    note: str = ""
    """Why there is nothing, where there is nothing."""

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.boxes):
            raise InputError(f"{len(self.scores)} scores for {len(self.boxes)} boxes")
        sides = (side for part in (*self.boxes, *self.points) for side in part)
        for number in (*sides, *self.scores):
            if not math.isfinite(number):
                raise InputError("a number that is not finite")
            if not 0 <= number <= 1:
                raise InputError(f"{number:g} is not between 0 and 1")
        for x0, y0, x1, y1 in self.boxes:
            if x1 <= x0 or y1 <= y0:
                raise InputError("a box without area")

    @property
    def empty(self) -> bool:
        """Nothing that points anywhere."""
        return not (self.boxes or self.points or self.mask)

    @property
    def score(self) -> float:
        """The best box's score; 0.5 for a point or a mask without one, 0 for nothing."""
        return self.scores[0] if self.scores else 0.0 if self.empty else 0.5

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; what is empty is left out."""
        value: dict[str, Any] = {}
        for name in ("boxes", "scores", "points", "head", "attributes", "relations", "note"):
            if given := getattr(self, name):
                value[name] = given
        if self.mask is not None:
            value["mask"] = self.mask.to_coco()
        return value

    @classmethod
    def from_json(cls, value: Any) -> Prior:
        """The inverse of `to_json`. Raises `InputError` for anything else."""
        if not isinstance(value, dict):
            raise InputError("a prior is a JSON object")
        try:
            return cls(
                boxes=tuple(_numbers(box, 4) for box in value.get("boxes", ())),  # type: ignore[misc]
                scores=tuple(float(score) for score in value.get("scores", ())),
                points=tuple(_numbers(point, 2) for point in value.get("points", ())),  # type: ignore[misc]
                mask=Rle.from_coco(value["mask"]) if value.get("mask") else None,
                head=str(value.get("head", "")),
                attributes=tuple(str(word) for word in value.get("attributes", ())),
                relations=tuple(str(word) for word in value.get("relations", ())),
                note=str(value.get("note", "")),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise error if isinstance(error, InputError) else InputError(f"not a prior: {error}") from error


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in value)
    if len(numbers) != count:
        raise InputError(f"{len(numbers)} numbers where {count} are needed")
    return numbers


def from_pixels(box: Sequence[float], size: tuple[int, int], *, least: float = 0.5) -> Box:
    """A box in pixels (x0, y0, x1, y1) of an image of `size` (height, width), cut to the image, as shares.

    Raises:
        InputError: if a number is not finite, or less than `least` of the box is inside the image.
    """
    x0, y0, x1, y1 = (float(side) for side in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise InputError("a box with a number that is not finite")
    if x1 <= x0 or y1 <= y0:
        raise InputError(f"a box without area: {x0:g} {y0:g} {x1:g} {y1:g}")
    height, width = size
    cx0, cy0, cx1, cy1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if max(cx1 - cx0, 0) * max(cy1 - cy0, 0) < least * (x1 - x0) * (y1 - y0):
        raise InputError(f"box {x0:g} {y0:g} {x1:g} {y1:g} lies outside the image of {width} x {height} pixels")
    return cx0 / width, cy0 / height, cx1 / width, cy1 / height


class Source(Protocol):
    """A frozen model that answers pairs; `priors.grounder`, `priors.precomputed` and `priors.simulated` are some."""

    @property
    def name(self) -> str:
        """Shown wherever its numbers are shown."""
        ...

    def fingerprint(self) -> str:
        """What the answers depend on besides image and sentence: weights, prompt, options. Part of the store's key."""
        ...

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> Sequence[Prior | None]:
        """One prior per (sample, sentence); `None` for a pair that is to be asked again another time."""
        ...
