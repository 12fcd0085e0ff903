"""COCO run-length masks in plain NumPy, byte for byte what pycocotools writes.

Training must run where pycocotools cannot be installed, so the codec is here.
Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleToString, rleFrString): runs of
zeros and ones in column-major order, each run stored as the difference to the run two before it, in base 32 from '0'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l2l.errors import InputError

LARGEST = 200_000_000
"""Pixels of a mask, and of a picture."""


@dataclass(frozen=True, slots=True)
class Rle:
    """One binary mask of `height` x `width` pixels as a compressed COCO run-length string."""

    height: int
    width: int
    counts: str

    @classmethod
    def encode(cls, mask: np.ndarray) -> Rle:
        """Encode a boolean (H, W) array."""
        if mask.ndim != 2:
            raise InputError(f"a mask has two dimensions, this one has shape {mask.shape}")
        flat = np.ascontiguousarray(mask.astype(bool).T).ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds = np.concatenate([[0], edges, [flat.size]])
        runs = np.diff(bounds) if flat.size else np.zeros(1, np.int64)
        if flat.size and flat[0]:
            runs = np.concatenate([[0], runs])
        return cls(mask.shape[0], mask.shape[1], _pack(runs.tolist()))

    @classmethod
    def from_runs(cls, height: int, width: int, runs: list[int]) -> Rle:
        """From COCO's uncompressed form: run lengths, zeros first. Raises `InputError` unless they fill the mask."""
        if any(type(run) is not int for run in runs):
            raise InputError("RLE runs are whole numbers")
        mask = cls(height, width, _pack(runs))
        mask.runs()
        return mask

    @classmethod
    def from_coco(cls, value: dict) -> Rle:
        """From COCO's `{"size": [h, w], "counts": str | bytes | list}`. Raises `InputError` if the runs do not fit."""
        try:
            height, width = value["size"]
            counts = value["counts"]
            if isinstance(counts, bytes):
                counts = counts.decode("ascii")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError("an RLE mask needs size [height, width] and counts") from error
        if type(height) is not int or type(width) is not int or not isinstance(counts, (str, list)):
            raise InputError("an RLE mask needs size [height, width] in whole numbers and counts")
        if height < 1 or width < 1 or height * width > LARGEST:
            raise InputError(f"an RLE mask of {height} x {width} pixels")
        if isinstance(counts, list):
            return cls.from_runs(height, width, counts)
        mask = cls(height, width, counts)
        mask.runs()
        return mask

    def to_coco(self) -> dict:
        """COCO's compressed form, ready for JSON."""
        return {"size": [self.height, self.width], "counts": self.counts}

    def runs(self) -> np.ndarray:
        """Run lengths, zeros first, column-major. Raises `InputError` unless they fill the mask exactly."""
        runs = _unpack(self.counts)
        if any(run < 0 for run in runs) or sum(runs) != self.height * self.width:
            raise InputError(f"RLE runs do not fill a mask of {self.height} x {self.width}")
        return np.asarray(runs, dtype=np.int64)

    def decode(self) -> np.ndarray:
        """The mask as a boolean (H, W) array."""
        runs = self.runs()
        values = np.arange(len(runs)) % 2 == 1
        return np.repeat(values, runs).reshape(self.width, self.height).T

    def area(self) -> int:
        """Foreground pixels."""
        return int(self.runs()[1::2].sum())


def _pack(runs: list[int]) -> str:
    out = bytearray()
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            low = value & 0x1F
            value >>= 5
            more = value != -1 if low & 0x10 else value != 0
            out.append((low | 0x20 if more else low) + 48)
    return out.decode("ascii")


def _unpack(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        low = ord(character) - 48
        if not 0 <= low < 64 or shift > 35:
            raise InputError("an RLE string with characters that no COCO writer makes")
        value |= (low & 0x1F) << shift
        shift += 5
        if not low & 0x20:
            if low & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise InputError("an RLE string that ends in the middle of a run")
    return runs
