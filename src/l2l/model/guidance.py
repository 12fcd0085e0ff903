"""Guidance: what the prior tells each stage of the segmenter.

After the per-stage guidance of the same group's SAM3-Adapter, G_k = MLP_up(GELU(MLP_k(sum_j w_j F_j))) with MLP_up
shared and w_j learned. Ours also sees the maps it is to pass on (the proposal, and what the guided answer starts from),
the prior's own score, and a token: mean feature under the latter map, with each pixel's likeness to it. Nothing of what
SESM fuses comes in, and no reliability of its: Q has a say there, Q is the answer on every picture known by heart, and
the decoder would learn to copy it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Guidance(nn.Module):
    """Maps, score and token -> one addition per stage; nothing at all before training (MLP_up starts at zero).

    Args:
        width: channels D of the segmenter's decoder maps.
        stages: number of stages.
        inner: channels of MLP_k.
    """

    def __init__(self, *, width: int, stages: int = 4, inner: int = 32):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(stages))
        self.token = nn.Linear(width, inner)
        self.down = nn.ModuleList(nn.Conv2d(width + 4, inner, 1) for _ in range(stages))
        self.up = nn.Conv2d(inner, width, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, maps: Sequence[Tensor], proposal: Tensor, base: Tensor, score: Tensor) -> list[Tensor]:
        """Guidance for each stage.

        Args:
            maps: the segmenter's maps, each (B, D, h_k, w_k), strides 4, 8, 16, 32.
            proposal: P in [0, 1], (B, h, w) at stride 4, 0 without a prior. base: what the guided answer starts from
                (P, or Q without a prior), likewise.
            score: the prior's own, in [0, 1], (B,); 0 where there is no prior.
        """
        size = maps[1].shape[2:]
        share = self.mix.softmax(0)
        mixed = torch.stack(
            [share[k] * F.interpolate(one, size=size, mode="nearest") for k, one in enumerate(maps)]
        ).sum(0)  # (B, D, h_1, w_1)
        where = F.interpolate(base[:, None], size=size, mode="area").to(mixed.dtype)
        token = (mixed * where).sum((2, 3)) / where.sum((2, 3)).clamp_min(1e-3)  # (B, D)
        alike = F.cosine_similarity(mixed, token[:, :, None, None], dim=1)[:, None]
        pieces = torch.stack([proposal, base, score[:, None, None].expand_as(base)], dim=1).to(mixed.dtype)
        bias = self.token(token)[:, :, None, None]
        guidance = []
        for k, one in enumerate(maps):
            here = one.shape[2:]
            told = F.interpolate(pieces, size=here, mode="area")
            seen = F.interpolate(torch.cat([mixed, alike], dim=1), size=here, mode="nearest")
            guidance.append(self.up(F.gelu(self.down[k](torch.cat([seen, told], dim=1)) + bias)))
        return guidance
