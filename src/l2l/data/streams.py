"""Infinite streams of rows. A batch is a function of (seed, name, step): nothing to save, nothing to replay."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any parts, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A fresh CPU generator seeded with `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


@dataclass
class Stream:
    """Shuffled passes over `rows`, `batch` at a time, for ever; a batch may cross the border of two passes."""

    rows: Tensor
    """(N,) int64, what is dealt out; N >= 1."""
    batch: int
    seed: int
    name: str
    _order: tuple[int, Tensor] = field(default=(-1, torch.empty(0)), repr=False)

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise ValueError(f"stream {self.name} has nothing to deal out")

    def at(self, step: int) -> Tensor:
        """The rows of one step, (batch,) int64."""
        places = torch.arange(step * self.batch, (step + 1) * self.batch)
        passes = places // len(self.rows)
        out = torch.empty(self.batch, dtype=torch.int64)
        for number in passes.unique().tolist():
            mine = passes == number
            out[mine] = self.rows[self._pass(number)[places[mine] % len(self.rows)]]
        return out

    def _pass(self, number: int) -> Tensor:
        if self._order[0] != number:
            shuffled = torch.randperm(len(self.rows), generator=generator(self.seed, self.name, number))
            self._order = (number, shuffled)
        return self._order[1]
