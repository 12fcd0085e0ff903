"""SemiRES (arXiv 2406.01451), from its public description: the EMA teacher's labels, mended with a bank of regions.

The paper's bank is SAM's "everything" masks, and so is ours where `data.sam` names one (`proposals.everything`); where
no such weights are to be had it is `proposals.regions`. What the teacher says is compared with the regions of the
picture (`mend`): IOM takes the region that it must have meant, else CPI composes a mask of regions, else PWA keeps the
teacher's and weighs its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l.methods.consistency import (
    ask,
    draw,
    labelled_loss,
    labels_only,
    peak_rates,
    predict,
    pseudo_loss,
    strong,
    unlabelled_rows,
)
from l2l.proposals.regions import compose, in_view
from l2l.training.parts import Parts

TOP = 1.3  # PWA: weight of a pixel that is sure


class SemiRes:
    """x labelled, u unlabelled; _w weak, _s strong."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "semires")
        self.regions = parts.regions

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        u_s = strong(parts, u_w, "strong u", step)

        p = predict(parts, parts.teacher, u_w)
        view, _ = parts.view(u_w.rows, "unlabelled", step)
        maps = self.regions[parts.pool.image_of[u_w.rows]].to(p.device)
        mended = mend(p, in_view(maps, view, (2 * p.shape[1], 2 * p.shape[2])),
                      least_iou=config.rivals.iou, cover=config.rivals.cover)  # fmt: skip

        x, u = ask(parts, parts.network, x_s, u_s)
        loss_x, logs = labelled_loss(x, x_s)
        loss_u, told = pseudo_loss(u, mended.label, mended.accept)
        logs |= told | {"iom": float(mended.iom.float().mean()), "cpi": float(mended.cpi.float().mean())}
        return loss_x + config.train.unlabelled_weight * loss_u, logs


@dataclass(frozen=True, slots=True)
class Mended:
    """Pseudo-labels after IOM, CPI or PWA."""

    label: Tensor
    """(B, h, w) in [0, 1]: the foreground share of each cell, as masks have it."""
    accept: Tensor
    """(B, h, w) in [0, 1]."""
    iom: Tensor
    """(B,) bool: a region took the place of the teacher's answer."""
    cpi: Tensor
    """(B,) bool: a union of regions did. Neither: PWA."""


def mend(p: Tensor, maps: Tensor, *, least_iou: float, cover: float) -> Mended:
    """The teacher's answers, mended with the regions of their pictures.

    Args:
        p: (B, h, w) the teacher's probabilities. maps, least_iou, cover: see `compose`.
    """
    hard = (p > 0.5).float()
    composed, iom, cpi = compose(hard, maps, least_iou=least_iou, cover=cover)
    kept = (~iom & ~cpi)[:, None, None]
    # In [0, 1], as the loss wants it, which is a weighted mean: only the ratio of the weights counts.
    accept = torch.where(kept, pixel_weights(p) / TOP, 1.0)
    return Mended(torch.where(kept, hard, composed), accept, iom, cpi)


def pixel_weights(p: Tensor) -> Tensor:
    """PWA: 1.3 - N(p; 0.5, 0.1), N the normal density. That peaks at 3.99, so we clamp at 0: between 0.35 and 0.65 a
    pixel counts nothing. In [0, 1.3]."""
    density = torch.exp(-0.5 * ((p - 0.5) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    return (TOP - density).clamp_min(0)
