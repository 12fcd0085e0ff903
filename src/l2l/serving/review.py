"""What `l2l label` wrote, as a queue to look through, least sure first; and the picture and mask of one pair.

Pairs are known by their number in the queue: no client names a file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image

from l2l.data.images import opened, orientation
from l2l.errors import InputError
from l2l.exchange.labels import Label, picture_bytes
from l2l.serving.pictures import Picture, picture
from l2l.serving.refusal import Refusal, bad

SIDE = 2048  # pixels of the longer side; larger pictures are shown smaller
SHOWN = {".png": "image/png", ".jpg": "image/jpeg"}  # what every browser shows as we read it


class Queue:
    """The pairs, lowest expected IoU first; of equal ones the order of the file.

    Args:
        labels: as `l2l.exchange.labels.read_labels` gives them.
    """

    def __init__(self, labels: Iterable[Label]):
        self.labels = tuple(sorted(labels, key=lambda one: one.score))

    def get(self, number: str) -> Label:
        """One pair, by the number as it stands in an address. Raises `Refusal` (422, 404)."""
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise bad("that is no number", "write a number of /review/queue")
        if int(number) >= len(self.labels):
            raise Refusal(404, "review", "no pair has that number", "write a number of /review/queue")
        return self.labels[int(number)]


def picture_of(label: Label, most: int) -> Picture:
    """The picture of a pair, undecoded. Raises `Refusal` if it is not there, changed, or of more than `most` pixels."""
    try:
        found = picture(picture_bytes(label), most)
    except InputError:
        raise Refusal(404, "review", "the picture of this pair is not there, or is not the one that was labelled",
                      "bring it back to where it was when `l2l label` ran") from None  # fmt: skip
    if found.size != label.size:
        raise Refusal(404, "review", "the picture of this pair is not the one that was labelled",
                      "bring it back as it was when `l2l label` ran")  # fmt: skip
    return found


def to_show(found: Picture) -> tuple[bytes, str]:
    """Bytes and media type for a browser: as they are, or as a JPEG where they are turned, huge or of a rare format.

    Raises:
        Refusal: if the picture is damaged.
    """
    if found.suffix in SHOWN and max(found.size) <= SIDE:
        with opened("the picture", found.content) as file:
            upright = orientation(file) == 1
        if upright:
            return found.content, SHOWN[found.suffix]
    shown = Image.fromarray(found.decode())
    shown.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    shown.save(out, format="JPEG", quality=92)
    return out.getvalue(), "image/jpeg"
