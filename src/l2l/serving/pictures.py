"""Pictures and masks as clients send them: from bytes to arrays, never more of them than was allowed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from l2l.data.images import load, opened, size, values
from l2l.errors import InputError
from l2l.rle import Rle
from l2l.serving.refusal import Refusal, bad

NAME = "image"
FORMATS = "PNG, JPEG, WebP, GIF, BMP or TIFF"


@dataclass(frozen=True, slots=True)
class Picture:
    """An undecoded picture that may be decoded."""

    content: bytes
    suffix: str
    """Of a file with this content, such as `.png`."""
    size: tuple[int, int]
    """Height and width in pixels, upright by the EXIF tag."""
    digest: str
    """32 hex digits of blake2b over the content."""

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.size[0] * self.size[1]

    def decode(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, upright. Raises `Refusal` if it is damaged."""
        try:
            return load(NAME, content=self.content)
        except InputError:
            raise _broken() from None


def picture(content: bytes, most: int) -> Picture:
    """What the header says of a picture's bytes. Raises `Refusal` if it is none, or has more than `most` pixels."""
    if not content:
        raise bad("an empty picture", f"send a {FORMATS} as image")
    suffix = _suffix(content)
    if suffix is None:
        raise Refusal(415, "media", "a picture in a format that is not taken", f"send {FORMATS}")
    try:
        height, width = size(NAME, content=content)
    except InputError as error:
        if "pixels" in error.reason:
            raise _too_many(most) from None
        raise _broken() from None
    if height * width > most:
        raise _too_many(most)
    return Picture(content, suffix, (height, width), hashlib.blake2b(content, digest_size=16).hexdigest())


def from_base64(text: str, what: str) -> bytes:
    """The bytes of base64 or a `data:` address. Raises `Refusal`."""
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise bad(f"{what} is a data: address without base64", "write data:image/png;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise bad(f"{what} is not base64", "encode the file's bytes as base64, or send them as multipart") from None


def to_png(mask: np.ndarray) -> bytes:
    """A boolean (H, W) mask as an 8-bit grey PNG: 255 what is meant, 0 the rest."""
    out = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(out, format="PNG")
    return out.getvalue()


def mask_from_rle(value: Any, shape: tuple[int, int]) -> Rle:
    """A COCO RLE mask of a picture of `shape`. Raises `Refusal`."""
    try:
        if list(value["size"]) != list(shape):
            raise _other_size(shape)
        return Rle.from_coco(value)
    except (InputError, KeyError, TypeError, ValueError) as error:
        said = error.reason if isinstance(error, InputError) else "an RLE mask needs size [height, width] and counts"
        raise bad(f"mask: {said}", 'write {"size": [height, width], "counts": ...} as COCO does') from None


def mask_from_png(content: bytes, shape: tuple[int, int]) -> Rle:
    """A mask picture, what is not zero is meant, of a picture of `shape`. Raises `Refusal`."""
    if _suffix(content) != ".png":
        raise Refusal(415, "media", "the mask is no PNG", "other formats blur or shift its edge; send PNG or COCO RLE")
    try:
        with opened("mask", content) as file:
            found = values(file) if sorted((file.height, file.width)) == sorted(shape) else None
    except InputError:
        raise bad("the mask is damaged", "send a whole PNG, or COCO RLE") from None
    if found is None or found.shape[:2] != shape:
        raise _other_size(shape)
    return Rle.encode((found.reshape(*shape, -1) != 0).any(axis=2))


def _suffix(content: bytes) -> str | None:
    """By the first bytes: the few formats whose decoders a stranger may reach."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    known = {
        b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF87a": ".gif", b"GIF89a": ".gif", b"BM": ".bmp",
        b"II*\0": ".tif", b"MM\0*": ".tif",
    }  # fmt: skip
    return next((suffix for start, suffix in known.items() if content.startswith(start)), None)


def _broken() -> Refusal:
    return bad("the picture is damaged or cut off", "open it in a viewer and save it anew")


def _too_many(most: int) -> Refusal:
    return Refusal(413, "pixels", f"a picture of more than {most:,} pixels", "send a smaller one, or start the server "
                   "with a larger --max-pixels")  # fmt: skip


def _other_size(shape: tuple[int, int]) -> Refusal:
    return bad("the mask has another size than the picture", f"the picture, upright, has height {shape[0]} and width "
               f"{shape[1]}; give the mask the same")  # fmt: skip
