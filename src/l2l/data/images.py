"""Pictures: an address in, an RGB array out, whatever the file's colour mode, bit depth and orientation."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from l2l.errors import InputError
from l2l.rle import LARGEST

MAX_PIXELS = LARGEST
"""Larger pictures are refused. Pillow's own guard against decompression bombs may refuse from 179 million pixels on."""

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file is called. Not all that Pillow knows: for EPS it starts Ghostscript, for a stranger."""
NO_PICTURE = f"no picture in a format that is read ({', '.join(FORMATS)}); save it as PNG or JPEG"

SCENES = "scenes:"

# EXIF orientation -> what brings the picture upright (Exif 2.3, tag 0x0112)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load(image: str, *, content: bytes | None = None) -> np.ndarray:
    """The picture as uint8 (H, W, 3) RGB, upright by its EXIF tag.

    Transparency is laid over white, 16-bit values are scaled to 8 bits, and of an animation the first frame is taken.

    Args:
        image: a file path, or the address of a drawn picture, `scenes:WORLD:SEED:INDEX`.
        content: the file's bytes, where they are in memory; `image` is then only what messages call it.

    Raises:
        InputError: if the file is missing, unreadable, truncated, or has more than `MAX_PIXELS` pixels.
    """
    if content is None and image.startswith(SCENES):
        from l2l.data.scenes import render_address

        return render_address(image)
    with opened(image, content) as picture:
        turn = orientation(picture)
        return np.array(_turned(_to_rgb(picture), turn))


def values(picture: Image.Image) -> np.ndarray:
    """An open picture's values as they are stored, upright, without transparency: (H, W) or (H, W, channels).

    What masks are read with: neither colours nor levels are changed.
    """
    found = np.asarray(_turned(picture, orientation(picture)))
    return found[..., :-1] if picture.mode in ("LA", "PA", "RGBA") else found


def size(image: str, *, verify: bool = False, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) in pixels, upright by the EXIF tag, from the file's header; drawn pictures have to be drawn.

    Args:
        image: as for `load`.
        verify: also look for damage that shows without decoding, such as a PNG with wrong checksums.
        content: the file's bytes, where they are in memory; `image` is then only what messages call it.

    Raises:
        InputError: as `load` does.
    """
    if content is None and image.startswith(SCENES):
        height, width = load(image).shape[:2]
        return height, width
    with opened(image, content) as picture:
        width, height = picture.size
        lying = orientation(picture) >= 5
        if verify:
            picture.verify()
    return (width, height) if lying else (height, width)


def digest(image: str) -> str:
    """32 hex digits of blake2b over the file's bytes; over the address itself where the picture is drawn.

    Raises:
        InputError: if the file is missing or unreadable.
    """
    if image.startswith(SCENES):
        return hashlib.blake2b(image.encode(), digest_size=16).hexdigest()
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"no such image: {image}", file=image) from error
    except (OSError, ValueError) as error:
        raise InputError(f"an unreadable image: {error}", file=image) from error


@contextmanager
def opened(image: str, content: bytes | None = None) -> Iterator[Image.Image]:
    """The file, or its bytes, as an open Pillow image; what goes wrong inside the `with` becomes an `InputError`."""
    try:
        with Image.open(image if content is None else io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"an image of more than {MAX_PIXELS:,} pixels; make it smaller", file=image)
            yield picture
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no such image: {image}", file=image) from error
    except UnidentifiedImageError as error:
        raise InputError(f"an unreadable or truncated image: {NO_PICTURE}", file=image) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"an image with too many pixels; make it smaller: {error}", file=image) from error
    except Exception as error:  # Pillow's decoders answer damage with nearly any exception
        raise InputError(f"an unreadable or truncated image: {error}", file=image) from error


def orientation(picture: Image.Image) -> int:
    """The EXIF tag of an open picture, 1 to 8; 1 where there is none, or a damaged one."""
    if picture.format == "TIFF":  # Pillow's TIFF reader turns the picture itself
        return 1
    try:
        # Not the PNG reader's override: that one decodes all pixels to find a tag that stands behind them.
        return int(Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata is no reason to refuse good pixels
        return 1


def _turned(picture: Image.Image, turn: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.clip(np.asarray(picture), 0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return picture.convert("RGB")
