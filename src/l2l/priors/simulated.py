"""A simulated prior: boxes drawn from the true masks with a stated accuracy. For controlled sweeps and nothing else.

Errors are bimodal, as those of real models are: the right object with a jittered box, or another object of the picture
(a random box where there is none), or nothing. Whatever shows its numbers says "simulated".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from l2l.data.streams import seed_of
from l2l.errors import InputError
from l2l.priors.prior import Box, Prior
from l2l.sample import Sample


def box_of(mask: np.ndarray) -> Box | None:
    """The tight box of a boolean (H, W) mask as shares of the picture; `None` for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _area(box: Box | None) -> float:
    return 0.0 if box is None else (box[2] - box[0]) * (box[3] - box[1])


@dataclass
class Simulated:
    """Boxes from the truth.

    Args:
        samples: everything in the data set, for the other objects of a picture.
        accuracy: chance of the right object. drop: chance of no answer at all. jitter: standard deviation of each side
            of a box, as a share of the box's size. seed: of the draws; each pair's draw depends on nothing but it.
        errors: `random`, or `systematic`: whether it errs depends on the sentence's first and last word alone, the same
            in every picture, and it then points at the largest other object. Errors that repeat are not outvoted.
        scores: `telling`, 0.60 to 0.90 where it is right and 0.45 to 0.75 where it is not; or `blank`, 0.55 to 0.85
            either way: a prior that does not know when it errs.
    """

    samples: Sequence[Sample]
    accuracy: float = 0.7
    drop: float = 0.0
    jitter: float = 0.08
    seed: int = 0
    errors: str = "random"
    scores: str = "telling"
    _by_image: dict[str, list[Sample]] = field(default_factory=dict, repr=False)
    _boxes: dict[str, Box | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.errors not in ("random", "systematic"):
            raise InputError(f"errors of a simulated prior are random or systematic, not {self.errors}")
        if self.scores not in ("telling", "blank"):
            raise InputError(f"scores of a simulated prior are telling or blank, not {self.scores}")
        for sample in self.samples:
            if sample.targets:
                self._by_image.setdefault(sample.image, []).append(sample)

    @property
    def name(self) -> str:
        """`simulated` and its accuracy."""
        how = ", systematic errors" if self.errors == "systematic" else ""
        how += ", blank scores" if self.scores == "blank" else ""
        return f"simulated ({self.accuracy:.0%} right{how})"

    def fingerprint(self) -> str:
        """All options."""
        how = "-systematic" if self.errors == "systematic" else ""
        how += "-blank" if self.scores == "blank" else ""
        return f"simulated-{self.accuracy}-{self.drop}-{self.jitter}-{self.seed}{how}"

    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior]:
        """One prior per pair."""
        return [self._one(sample, sentence) for sample, sentence in pairs]

    def _box(self, sample: Sample) -> Box | None:
        if sample.id not in self._boxes:
            self._boxes[sample.id] = box_of(sample.mask())
        return self._boxes[sample.id]

    def _one(self, sample: Sample, sentence: str) -> Prior:
        rng = np.random.RandomState(seed_of(self.seed, sample.image_id, sample.id, sentence) % 2**32)
        draws, noise, pick = rng.random_sample(3), rng.standard_normal(4), rng.random_sample(5)
        if draws[0] < self.drop:
            return Prior(note="simulated: no answer")
        own = self._box(sample) if sample.targets else None
        words = sentence.lower().split() or [""]
        if self.errors == "systematic":
            draws[1] = (seed_of(self.seed, "systematic", words[0], words[-1]) % 10_000) / 10_000
        right = draws[1] < self.accuracy and own is not None
        if right:
            box = own
        else:
            others = [other for other in self._by_image.get(sample.image, ()) if self._box(other) not in (own, None)]
            if others and self.errors == "systematic":
                box = self._box(max(others, key=lambda other: _area(self._box(other))))
            elif others:
                box = self._box(others[int(pick[0] * len(others))])
            else:
                side = 0.15 + 0.3 * pick[1:3]
                x, y = pick[3] * (1 - side[0]), pick[4] * (1 - side[1])
                box = (x, y, x + side[0], y + side[1])
        assert box is not None
        size = np.array([box[2] - box[0], box[3] - box[1]] * 2)
        x0, y0, x1, y1 = np.clip(np.array(box) + self.jitter * noise * size, 0, 1)
        if x1 - x0 < 0.01 or y1 - y0 < 0.01:
            x0, y0, x1, y1 = box
        middle = 0.7 if self.scores == "blank" else 0.75 if right else 0.6
        score = float(np.clip(middle + 0.15 * (draws[2] * 2 - 1), 0.01, 0.99))
        return Prior(boxes=((float(x0), float(y0), float(x1), float(y1)),), scores=(score,))
