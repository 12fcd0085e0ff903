"""Proposals: the priors of a batch as soft maps, whatever made them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Proposals:
    """The priors of a batch as soft maps."""

    soft: Tensor
    """P (B, h, w) float in [0, 1] at stride 4; 0.5 everywhere where there is no prior."""
    score: Tensor
    """(B,) the prior's own score in [0, 1]."""
    present: Tensor
    """(B,) bool: whether there is a prior."""

    def __getitem__(self, rows: slice | Tensor) -> Proposals:
        return Proposals(self.soft[rows], self.score[rows], self.present[rows])

    def to(self, device: torch.device | str) -> Proposals:
        """The same on a device."""
        return Proposals(self.soft.to(device), self.score.to(device), self.present.to(device))

    @classmethod
    def absent(cls, batch: int, height: int, width: int, *, device: torch.device | str = "cpu") -> Proposals:
        """No prior for anything."""
        return cls(
            torch.full((batch, height, width), 0.5, device=device),
            torch.zeros(batch, device=device),
            torch.zeros(batch, dtype=torch.bool, device=device),
        )
