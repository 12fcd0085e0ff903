"""Label Studio's brush RLE, which is not COCO's: the four channels of a picture, row by row, as a stream of bits.

The format is https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack: 32 bits of length, 5 of word size - 1,
four times 4 of a run-length field's size - 1; then blocks: a bit that says run or literal, two that choose the field,
the field, and one word or as many as the block is long. The mask is in the alpha channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from l2l.errors import InputError

FIELDS = (3, 4, 8, 16)
"""Bits of the four run-length fields, as Label Studio chooses them."""
_CHANNELS = 4


def encode(mask: np.ndarray) -> list[int]:
    """A boolean (H, W) mask as bytes in a list; all four channels are 255 where the mask is."""
    flat = mask.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{flat.size * _CHANNELS:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in FIELDS)]
    for start, length in zip(bounds[:-1].tolist(), (np.diff(bounds) * _CHANNELS).tolist(), strict=True):
        value = f"{255 * int(flat[start]):08b}"
        while length:
            run = min(length, 1 << FIELDS[-1])
            field = next(place for place, size in enumerate(FIELDS) if run <= 1 << size)
            bits.append(f"1{field:02b}{run - 1:0{FIELDS[field]}b}{value}")
            length -= run
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode(rle: Any, size: tuple[int, int]) -> np.ndarray:
    """The mask as a boolean (H, W) array: where alpha is not 0.

    Args:
        rle: a list of bytes.
        size: (height, width); checked against what the bytes say before anything is allocated.

    Raises:
        InputError: if it is no such list, of another size, or broken.
    """
    if not isinstance(rle, list) or any(type(byte) is not int or not 0 <= byte < 256 for byte in rle):
        raise InputError("a brush RLE is a list of bytes")
    bits = np.unpackbits(np.array(rle, np.uint8))
    read = _Bits(bits)
    count, word = read.number(32), read.number(5) + 1
    fields = [read.number(4) + 1 for _ in range(4)]
    if count != size[0] * size[1] * _CHANNELS:
        raise InputError(f"a brush RLE of {count} values for a picture of {size[0]} x {size[1]} with four channels")
    alpha = np.zeros(count // _CHANNELS, bool)  # the last of four values each
    at = 0
    while at < count:
        run = read.number(1)
        length = read.number(fields[read.number(2)]) + 1
        if at + length > count:
            raise InputError("a brush RLE with a run beyond its end")
        mine = slice(at // _CHANNELS, (at + length) // _CHANNELS)
        if run:
            alpha[mine] = read.number(word) > 0
        else:
            words: np.ndarray = read.take(length * word).reshape(length, word).max(1)
            alpha[mine] = words[(3 - at) % _CHANNELS :: _CHANNELS]
        at += length
    return alpha.reshape(size)


class _Bits:
    """A stream of bits, read from the front."""

    def __init__(self, bits: np.ndarray):
        self.bits, self.text, self.at = bits, (bits + ord("0")).tobytes(), 0

    def take(self, count: int) -> np.ndarray:
        found = self.bits[self.at : self.at + count]
        if len(found) != count:
            raise InputError("a brush RLE that ends too early")
        self.at += count
        return found

    def number(self, count: int) -> int:
        if self.at + count > len(self.text):
            raise InputError("a brush RLE that ends too early")
        self.at += count
        return int(self.text[self.at - count : self.at], 2)
