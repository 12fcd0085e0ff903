"""The record that everybody passes: one image, the sentences that mean the same thing in it, and what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from l2l.errors import InputError
from l2l.rle import Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One referent (a "ref" of the REFER toolkit): an image and the sentences that point at the same pixels.

    `targets` says what is known: `None` is an unlabelled pair, `()` a sentence with no target in the picture, one mask
    the usual case, several masks a sentence that means several things.

    Example:
        >>> from l2l.rle import Rle
        >>> import numpy as np
        >>> Sample(id="7", image="a.jpg", image_id="3", size=(4, 6), sentences=("red cup",), sentence_ids=("9",),
        ...        targets=(Rle.encode(np.eye(4, 6) > 0),), split="train").mask().sum()
        np.int64(4)
    """

    id: str
    """Unique within its data set; the ref id where there is one."""
    image: str
    """Where the pixels are: a file path, or `scenes:WORLD:SEED:INDEX` for a drawn picture (see `data.images.load`)."""
    image_id: str
    """The image's id in its data set; splits are drawn over these."""
    size: tuple[int, int]
    """(height, width) of the image in pixels."""
    sentences: tuple[str, ...]
    """One or more sentences, all with the same meaning."""
    sentence_ids: tuple[str, ...]
    """One id per sentence, unique within the data set: the key of priors, predictions and scores."""
    targets: tuple[Rle, ...] | None = None
    """Masks at the image's own size; see above."""
    split: str = "train"
    """`train`, `val`, `testA`, ...; `unlabelled` pairs have split `train` and no targets."""
    chosen: bool = False
    """Whether somebody picked it for what it is, as from the head of a review queue. It teaches as any other; but how
    good priors are on the whole it does not say, as a random draw would."""
    provenance: str = ""
    """Where the record was read from, for error messages: `refs(unc).p, ref 12`."""

    def __post_init__(self) -> None:
        where = self.provenance or f"record {self.id}"
        if not self.sentences or any(not sentence.strip() for sentence in self.sentences):
            raise InputError("an empty sentence", record=where)
        if len(self.sentence_ids) != len(self.sentences):
            raise InputError(f"{len(self.sentence_ids)} ids for {len(self.sentences)} sentences", record=where)
        if min(self.size) < 1:
            raise InputError(f"an image of {self.size[0]} x {self.size[1]} pixels", record=where)
        for target in self.targets or ():
            if (target.height, target.width) != self.size:
                raise InputError(
                    f"a mask of {target.height} x {target.width} on an image of {self.size[0]} x {self.size[1]}",
                    record=where,
                )

    def mask(self) -> np.ndarray:
        """The union of the targets as a boolean (H, W) array; all false where the sentence has no target.

        Raises:
            InputError: if the record is unlabelled.
        """
        if self.targets is None:
            raise InputError("an unlabelled record has no mask", record=self.provenance or self.id)
        union = np.zeros(self.size, dtype=bool)
        for target in self.targets:
            union |= target.decode()
        return union

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(sentence id, sentence) of each image-sentence pair in this record."""
        return zip(self.sentence_ids, self.sentences, strict=True)


def pair_key(image: str, sentence: str) -> str:
    """A name for an image-sentence pair that does not depend on ids: 32 hex digits of blake2b over both texts.

    `image` is the image's path relative to its data set, or its `scenes:` address, so a store can move with its data.
    """
    return hashlib.blake2b(f"{image}\n{sentence}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
