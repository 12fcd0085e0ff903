"""P, the soft proposal: box kernel x colour affinity x regions, all samples of a batch at once.

A batched relative of GrabCut (Rother et al., SIGGRAPH 2004) with colour histograms for mixtures: what is inside the box
is probably the object, what is around it probably not; colours that occur inside and not around it are the object's.
Three rounds of re-estimation, each followed by a smoothing that does not cross strong edges. What colours say is then
mixed with what regions say (`proposals.regions`): the regions that the box selects. Probabilities stay soft.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.priors.prior import Box, Prior
from l2l.proposals.regions import nearest, oversegment, pooled, prompted
from l2l.rle import Rle

BINS = 8
SECOND = 0.45  # further boxes stay below the cut at 0.5
USUAL = 0.25  # side of an object of a usual size, as a share of the picture


def box_kernel(boxes: Tensor, height: int, width: int, *, soft: float = 0.08) -> tuple[Tensor, Tensor]:
    """Inside and around a box.

    Args:
        boxes: (N, 4) shares of the picture, x0 y0 x1 y1. soft: width of the fall at the box's sides, as a share of it.

    Returns:
        kernel (N, height, width) in [0, 1]: a rounded box, about 0.5 at its outline; around (N, height, width) in
        [0, 1]: how much each cell counts as background, all outside the box, the more the nearer.
    """
    y = ((torch.arange(height) + 0.5) / height).to(boxes)[None, :, None]
    x = ((torch.arange(width) + 0.5) / width).to(boxes)[None, None, :]
    x0, y0, x1, y1 = (side[:, None, None] for side in boxes.unbind(1))
    across = (x - (x0 + x1) / 2).abs() / ((x1 - x0) / 2).clamp_min(0.5 / width)
    down = (y - (y0 + y1) / 2).abs() / ((y1 - y0) / 2).clamp_min(0.5 / height)
    radius = (across**4 + down**4) ** 0.25  # 1 on a rounded box
    kernel = torch.sigmoid((1.0 - radius) / soft)
    outside = torch.sigmoid((torch.maximum(across, down) - 1.1) / 0.05)
    return kernel, outside * torch.exp(-(radius - 1).clamp(0, 6) / 2)


def _histogram(bins: Tensor, weight: Tensor) -> Tensor:
    """Weighted colour histograms (N, BINS^3), smoothed over neighbouring colours and normalised."""
    count = len(bins)
    table = torch.zeros(count, BINS**3, dtype=weight.dtype, device=weight.device).scatter_add_(1, bins, weight)
    cube = table.view(count, 1, BINS, BINS, BINS)
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=weight.dtype, device=weight.device)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 3
        pad = [0] * 3
        pad[axis] = 1
        cube = F.conv3d(cube, kernel.view(shape), padding=pad)
    table = cube.flatten(1)
    return table / table.sum(1, keepdim=True).clamp_min(1e-9)


def colour_affinity(image: Tensor, kernel: Tensor, around: Tensor, *, rounds: int = 3) -> Tensor:
    """Probability that a cell belongs to the object in the box, from its colour and its place.

    Args:
        image: (N, 3, h, w) in [0, 1]. kernel, around: from `box_kernel`, (N, h, w).

    Returns:
        (N, h, w) in [0, 1].
    """
    steps = (image.clamp(0, 1) * (BINS - 1e-3)).long()
    bins = ((steps[:, 0] * BINS + steps[:, 1]) * BINS + steps[:, 2]).flatten(1)  # (N, hw)
    place = torch.logit((0.9 * kernel).clamp(1e-4, 0.9))
    near = (image[:, :, None] - _shifted(image)).abs().sum(1)  # (N, 8, h, w) colour distance to the neighbours
    affinity = torch.exp(-near / 0.12)
    affinity = affinity / affinity.sum(1, keepdim=True).clamp_min(0.5)
    belief = kernel
    for _ in range(rounds):
        front = _histogram(bins, (belief * kernel).flatten(1)) + 1e-4
        back = _histogram(bins, (around + 0.5 * kernel * (1 - belief)).flatten(1)) + 1e-4
        colour = (front.gather(1, bins).log() - back.gather(1, bins).log()).view_as(kernel)
        score = 0.8 * colour.clamp(-3, 3) + place
        for _ in range(2):
            score = 0.5 * score + 0.5 * (affinity * _shifted(score[:, None])[:, 0]).sum(1)
        belief = score.sigmoid()
    return belief


def _shifted(x: Tensor) -> Tensor:
    """The eight neighbours of each cell: (N, C, h, w) -> (N, C, 8, h, w), the border repeated."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    places = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    return torch.stack([padded[:, :, dy : dy + height, dx : dx + width] for dy, dx in places], dim=2)


def _box_at(point: tuple[float, float], side: float = USUAL) -> Box:
    """A box of a usual size around a point, inside the picture."""
    x, y = (min(max(c, side / 2), 1 - side / 2) for c in point)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def at_least(box: Box, width: float, height: float) -> Box:
    """The box, grown about its centre where it is smaller than `width` and `height`: an object that small still points.
    """
    x0, y0, x1, y1 = box
    more_x, more_y = max(width - (x1 - x0), 0) / 2, max(height - (y1 - y0), 0) / 2
    return x0 - more_x, y0 - more_y, x1 + more_x, y1 + more_y


def ranked(scores: Sequence[float]) -> list[tuple[int, float]]:
    """The places of the three best scores, best first, and the weight of what is there: 1 for the best, and for further
    ones what keeps them below 0.5."""
    places = sorted(range(len(scores)), key=lambda place: -scores[place])[:3]
    best = scores[places[0]] if places else 0.0
    further = [(place, 2 * SECOND * scores[place] / max(scores[place] + best, 1e-6)) for place in places[1:]]
    return [(place, 1.0) for place in places[:1]] + further


def given_mask(mask: Rle, size: tuple[int, int]) -> Tensor:
    """A prior's own mask as P (h, w): the share of each cell that is foreground, kept off 0 and 1."""
    share = torch.from_numpy(np.ascontiguousarray(mask.decode()))[None, None].float()
    return 0.03 + 0.94 * F.interpolate(share, size=size, mode="area")[0, 0]


def with_regions(colour: Tensor, maps: Tensor, boxes: Tensor) -> Tensor:
    """Belief by colour (N, h, w), mended with regions (N, scales, h, w): the mean in log odds of what the box selects
    (twice), what colours say, and what they say of each region as a whole."""

    def odds(p: Tensor) -> Tensor:
        return torch.logit(p.clamp(0.02, 0.98))

    whole = odds(pooled(maps, colour)).mean(1)
    return ((2 * odds(prompted(maps, boxes, colour)) + odds(colour) + whole) / 4).sigmoid()


def propose(
    priors: Sequence[Prior], images: Tensor, size: tuple[int, int], regions: Tensor | None = None
) -> Tensor:
    """P for each prior.

    A mask is taken as it is (shrunk, kept off 0 and 1); otherwise each box (or point) becomes a soft map, and further
    boxes than the best stay below 0.5.

    Args:
        priors: N of them. images: (N, 3, H, W) in [0, 1]. size: (h, w) of the maps, stride 4.
        regions: (N, scales, H/2, W/2) as `region_bank` gives them; made here where they are not given.

    Returns:
        (N, h, w) float32 in [0, 1]; 0.5 everywhere for an empty prior.
    """
    out = torch.full((len(priors), *size), 0.5)
    jobs: list[tuple[int, Box, float]] = []
    for row, prior in enumerate(priors):
        if prior.mask is not None:
            out[row] = given_mask(prior.mask, size)
            continue
        boxes = list(prior.boxes) or [_box_at(point) for point in prior.points]
        for place, weight in ranked(prior.scores or [1.0] * len(boxes)):
            jobs.append((row, at_least(boxes[place], 2 / size[1], 2 / size[0]), weight))
    if not jobs:
        return out
    rows = torch.tensor([row for row, _, _ in jobs])
    fine = (2 * size[0], 2 * size[1])
    small = F.interpolate(images, size=fine, mode="area")[rows]
    placed = torch.tensor([box for _, box, _ in jobs], dtype=torch.float32)
    colour = colour_affinity(small, *box_kernel(placed, *fine))
    if regions is None:
        made, which = rows.unique(return_inverse=True)
        maps = oversegment((images[made] * 255).round().to(torch.uint8))[which]
    else:
        maps = regions[rows]
    belief = F.avg_pool2d(with_regions(colour, nearest(maps, fine), placed)[:, None], 2)[:, 0]
    belief = belief * torch.tensor([weight for _, _, weight in jobs])[:, None, None]
    for row in rows.unique().tolist():
        out[row] = belief[rows == row].amax(0)
    return out
