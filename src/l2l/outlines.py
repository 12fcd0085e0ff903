"""Outlines from the picture: an answer of stride-4 cells as a mask at the picture's own resolution.

The network answers in cells of 4 x 4 pixels of what it sees, and it sees the picture made small. Where an object ends
within a cell, the picture knows better. So the mask is the guided filter's answer (He, Sun & Tang, "Guided Image
Filtering", TPAMI 2013, with three colours): around each pixel a linear function of the colours is fitted to the
probabilities, which so change where the colours do. The fit is made where a cell has 4 pixels, and read at the
picture's own resolution (the "fast" variant, He & Sun, arXiv 1505.00996).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.data.images import load
from l2l.labelling.sesm import short_of_one
from l2l.training.pool import Pool

RADIUS = 4  # pixels of the small picture, one cell: half the side of the windows that the fit is made in
ROWS = 256  # of the picture, at once
SMOOTH = 1e-4  # added to the variance of each colour in [0, 1]: what varies less is no outline


class Picture:
    """A picture, ready to give answers their outlines.

    Args:
        pixels: uint8 (H, W, 3), at its own resolution.
        small: uint8 (3, h, w), as the network sees it.
    """

    def __init__(self, pixels: np.ndarray, small: Tensor):
        self.pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        self.small = small[None].float() / 255
        self.mean = around(self.small)
        pairs = self.small[:, :, None] * self.small[:, None]  # (1, 3, 3, h, w)
        spread = around(pairs.flatten(1, 2)).view_as(pairs) - self.mean[:, :, None] * self.mean[:, None]
        spread = spread[0].permute(2, 3, 0, 1) + SMOOTH * torch.eye(3)
        self.inverse = torch.linalg.inv(spread)  # (h, w, 3, 3)

    @torch.no_grad()
    def mask(self, logits: Tensor) -> np.ndarray:
        """Logits of cells (h, w) -> bool (H, W). Nothing stays nothing, and something never becomes nothing: what the
        filter would wipe out is drawn without it."""
        plain = upsample(logits.cpu(), (self.pixels.shape[0], self.pixels.shape[1]))
        if not plain.any():
            return plain
        with torch.autocast("cpu", enabled=False):
            found = self.filtered(wide(logits[None, None].float().cpu(), self.small.shape[2:]).sigmoid()).numpy()
        return found if found.any() else plain

    def filtered(self, p: Tensor) -> Tensor:
        """The filter's answer to probabilities at the small size, (1, 1, h, w): bool (H, W)."""
        mean = around(p)
        shared = around(self.small * p) - self.mean * mean
        slope = torch.einsum("hwab,bhw->ahw", self.inverse, shared[0])[None]
        constant = mean - (slope * self.mean).sum(1, keepdim=True)
        line = around(torch.cat([slope, constant], dim=1))  # (1, 4, h, w)
        height, width = self.pixels.shape[:2]
        line = wide(line, (line.shape[2], width))[0]
        found = torch.empty(height, width, dtype=torch.bool)
        for rows in torch.arange(height).split(ROWS):  # a picture of 25 megapixels in floats would be 300 MB
            at = ((rows + 0.5) * line.shape[1] / height - 0.5).clamp(0, line.shape[1] - 1)
            above = at.long().clamp_max(line.shape[1] - 2).clamp_min(0)
            below = (above + 1).clamp_max(line.shape[1] - 1)
            own = torch.lerp(line[:, above], line[:, below], (at - above)[:, None])  # (4, rows, W)
            colours = self.pixels[rows].permute(2, 0, 1).float() / 255
            found[rows] = (own[:3] * colours).sum(0) + own[3] > 0.5
        return found


def upsample(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Without outlines: logits (h, w) -> boolean mask of `size` (H, W), bilinear, then cut at 0."""
    return (wide(logits[None, None].float(), size)[0, 0] > 0).numpy()


def raised(score: Tensor, gain: float) -> Tensor:
    """Expected IoUs, any shape, of masks with outlines, which raise them by a factor (`evaluate.outline_gain`)."""
    return score if gain == 1 else short_of_one(score * gain)


def wide(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to another size."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def around(x: Tensor) -> Tensor:
    """Mean of (B, C, h, w) over the window around each pixel, as much of it as lies in the picture."""
    for window, pad in (((2 * RADIUS + 1, 1), (RADIUS, 0)), ((1, 2 * RADIUS + 1), (0, RADIUS))):
        x = F.avg_pool2d(x, window, 1, pad, count_include_pad=False)
    return x


class Drawer:
    """Makes masks of a pool's answers, with outlines; the picture asked about last stays ready.

    Args:
        pool: pairs, of which only the pictures are read.
    """

    def __init__(self, pool: Pool):
        self.places, self.small, self.of = pool.pictures, pool.images, pool.image_of.tolist()
        self.ready: tuple[int, Picture] | None = None

    def __call__(self, logits: Tensor, row: int) -> np.ndarray:
        """Logits of cells (h, w) that answer that row of the pool -> bool (H, W)."""
        which = self.of[row]
        if self.ready is None or self.ready[0] != which:
            self.ready = which, Picture(load(self.places[which]), self.small[which])
        return self.ready[1].mask(logits)
