"""Which images are labelled: drawn once, written as text, and checked ever after."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from l2l.data.durable import write_durably
from l2l.data.read import DataSet, fingerprint
from l2l.data.refer import read_json
from l2l.errors import InputError
from l2l.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Split:
    """The labelled images of a data set; every other train image is unlabelled."""

    rate: float
    """The share of train images that are labelled, in (0, 1]."""
    seed: int
    """What they were drawn from."""
    data: str
    """The data set's name, for the reader."""
    fingerprint: str
    """The data set's fingerprint: a split belongs to one data set only."""
    images: tuple[str, ...]
    """The labelled images' ids, sorted."""

    @property
    def hash(self) -> str:
        """16 hex digits over all of the above."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def save(self, path: Path) -> None:
        """Write it as JSON, one image per line, made to be committed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, (json.dumps({**asdict(self), "hash": self.hash}, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read what `save` wrote. Raises `InputError` if it is missing, or if it was truncated or edited since."""
        content = read_json(path)
        try:
            stated = content.pop("hash")
            split = cls(**{**content, "images": tuple(content["images"])})
            whole = split.hash == stated
            if not all(isinstance(image, str) for image in split.images):
                raise TypeError("an image id that is no text")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError("not a split file", file=path) from error
        if not whole:
            raise InputError("this split was edited or truncated: its hash does not fit; draw it anew", file=path)
        return split

    def check(self, dataset: DataSet) -> None:
        """Raises `InputError` unless the split was drawn from exactly this data set."""
        found = dataset.fingerprint()
        if found != self.fingerprint:
            raise InputError(
                f"this split was drawn from {self.data} with fingerprint {self.fingerprint}, "
                f"but {dataset.name} has {found}; draw one for it"
            )

    def apply(self, samples: Iterable[Sample]) -> tuple[list[Sample], list[Sample]]:
        """(labelled, unlabelled) samples of split `train`; the masks of the unlabelled ones are taken away."""
        chosen = set(self.images)
        labelled: list[Sample] = []
        unlabelled: list[Sample] = []
        for sample in samples:
            if sample.split != "train":
                continue
            if sample.image_id in chosen and sample.targets is not None:
                labelled.append(sample)
            else:
                unlabelled.append(replace(sample, targets=None))
        return labelled, unlabelled


def draw(samples: Iterable[Sample], rate: float, seed: int, *, data: str = "", only: str = "") -> Split:
    """Draw floor(`rate` x train images) images to be labelled, as the field does; all refs of an image go with it.

    An image's place in the draw is a hash of seed and image id. So the order of samples does not matter, no library's
    random numbers can change, and with one seed the images of a lower rate are among those of a higher one. Images
    without any mask cannot be labelled and do not count.

    Args:
        samples: the whole data set, all splits.
        rate: in (0, 1].
        seed: another seed, other images.
        data: the data set's name.
        only: draw from the images whose id starts with this, and take the rate of them.

    Raises:
        InputError: if the rate is outside (0, 1] or too low to yield one image.
    """
    samples = list(samples)
    labelled = [sample.image_id for sample in samples if sample.split == "train" and sample.targets is not None]
    images = {image for image in labelled if image.startswith(only)}
    if not images:
        raise InputError("no labelled image in split train to draw from", record=data or None)
    least = math.ceil(Fraction(10**9, len(images))) / 10**9
    if not 0 < rate <= 1:
        raise InputError(f"a rate of {rate:g}; it lies in (0, 1], and from {least:.9g} on it yields an image")
    count = math.floor(Fraction(str(float(rate))) * len(images))  # in floats, 0.29 of 100 would be 28
    if not count:
        raise InputError(f"a rate of {rate:g} of {len(images)} images yields none; the smallest is {least:.9g}")
    drawn = sorted(images, key=lambda image: hashlib.blake2b(f"{seed}\n{image}".encode()).digest())[:count]
    return Split(rate=float(rate), seed=seed, data=data, fingerprint=fingerprint(samples), images=tuple(sorted(drawn)))
