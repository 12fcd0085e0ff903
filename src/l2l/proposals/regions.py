"""A bank of regions for every picture, made without any model: graph-based over-segmentation at three scales.

Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004, sections 3 and 5, written from the
paper: pixels are nodes, eight neighbours each, an edge weighs the distance of two colours; edges are taken from the
lightest to the heaviest, and two components become one if the edge is no heavier than what either of them holds
already, Int(C) + k / |C|. The paper first blurs the picture a little; halving it, which is for speed, does that too.
It stands where others have the masks of SAM: the "everything" masks that SemiRES mends its labels with, and, prompted
with a box (`prompted`), the masks that a frozen model's boxes are made into.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.data.augment import Geometry
from l2l.data.cache import cached_parts

SCALES = (30.0, 100.0, 300.0)  # k, in levels of colour (0 to 255) x pixels: the larger, the larger the regions
JITTER = 0.06  # standard deviation of each side of a prompt, as a share of the box
PROMPTS = 8  # jittered prompts for each box
LEAST = 8  # pixels of half resolution; smaller regions join the neighbour that is most like them
VERSION = 1  # of the maps in the cache: raise it when they change


def region_bank(images: Tensor) -> Tensor:
    """Region maps of many pictures, from the cache or made (20 ms each at 96 x 144, on one core) and put there.

    Args:
        images: uint8 (N, 3, H, W).

    Returns:
        int16 (N, scales, H/2, W/2) (halves round up): the region of each pixel, 1, 2, ...; 0 is kept for "no region".
    """
    about = hashlib.blake2b(repr((VERSION, SCALES, LEAST, tuple(images.shape))).encode(), digest_size=12)
    for part in images.split(256):
        about.update(part.contiguous().numpy().tobytes())

    half = ((images.shape[2] + 1) // 2, (images.shape[3] + 1) // 2)
    return cached_parts(f"regions-{about.hexdigest()}", (len(images), len(SCALES), *half), np.int16,
                        lambda: (oversegment(part).numpy() for part in images.split(64)))  # fmt: skip


def oversegment(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> int16 (N, scales, H/2, W/2), see `region_bank`."""
    half = ((images.shape[2] + 1) // 2, (images.shape[3] + 1) // 2)
    small = F.interpolate(images.float(), size=half, mode="area")
    first, second = _neighbours(*half)
    flat = small.flatten(2)
    weights = (flat[:, :, first] - flat[:, :, second]).square().sum(1).sqrt().numpy()  # (N, edges)
    maps = np.empty((len(images), len(SCALES), *half), np.int16)
    for number, weight in enumerate(weights):
        order = np.argsort(weight, kind="stable")
        a, b, sorted_weight = first.numpy()[order], second.numpy()[order], weight[order]
        for scale, k in enumerate(SCALES):
            maps[number, scale] = _components(a, b, sorted_weight, half[0] * half[1], k).reshape(half)
    return torch.from_numpy(maps)


def in_view(maps: Tensor, view: Geometry, size: tuple[int, int]) -> Tensor:
    """Region maps as a weak view shows their pictures: each point of the view has the region of the nearest pixel.

    Args:
        maps: (B, scales, H', W') of whole pictures. size: (h, w) of the answer.

    Returns:
        int64 (B, scales, h, w); 0 beyond the frame of the picture.
    """
    grid = view.grid(*size).to(maps.device)
    warped = F.grid_sample(maps.float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return warped.long()


def region_counts(maps: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """How many cells each region has, and how many of them an answer takes.

    Args:
        maps: integers (B, scales, h, w), 0 for no region. p: (B, h, w) in [0, 1], an answer.

    Returns:
        |m & p| and |m|, float (B, scales, R) for the regions 0 to R - 1 of each map; 0 for region 0, which is none, and
        for regions that are not there.
    """
    regions = maps.long().flatten(2)
    taken = p[:, None].expand_as(maps).flatten(2).float()
    zeros = taken.new_zeros(*maps.shape[:2], int(regions.max()) + 1)
    inside = zeros.scatter_add(2, regions, taken)
    sizes = zeros.scatter_add(2, regions, torch.ones_like(taken))
    inside[..., 0] = 0
    sizes[..., 0] = 0
    return inside, sizes


def pooled(maps: Tensor, belief: Tensor) -> Tensor:
    """Each cell gets the mean belief of the region it lies in: maps (N, scales, h, w), belief (N, h, w) -> as maps."""
    inside, sizes = region_counts(maps, belief)
    return (inside / sizes.clamp_min(1)).gather(2, maps.long().flatten(2)).view_as(maps)


def prompted(maps: Tensor, boxes: Tensor, fallback: Tensor) -> Tensor:
    """A promptable segmenter made of regions: the mean answer to `PROMPTS` jittered copies of each box.

    The answer to a box is the region whose own box fits it best; as far as none fits (IoU of the boxes below about
    0.6), `fallback`. So what is soft in the mean is what the answer depends on: real uncertainty.

    Args:
        maps: integers (N, scales, h, w), regions, 0 for none. boxes: (N, 4) shares of the picture, x0 y0 x1 y1.
        fallback: (N, h, w) in [0, 1].

    Returns:
        (N, h, w) in [0, 1].
    """
    own = _region_boxes(maps)[:, None]  # (N, 1, scales, R, 4)
    prompts = jittered(boxes)[:, :, None, None]  # (N, J, 1, 1, 4)
    common = torch.minimum(own[..., 2:], prompts[..., 2:]) - torch.maximum(own[..., :2], prompts[..., :2])
    inter = common.clamp_min(0).prod(-1)
    area = [(one[..., 2:] - one[..., :2]).clamp_min(0).prod(-1) for one in (own, prompts)]
    fit, best = (inter / (area[0] + area[1] - inter).clamp_min(1e-6)).flatten(2).max(2)  # (N, J)
    regions = own.shape[3]
    rows = torch.arange(len(maps), device=maps.device)[:, None]
    answer = (maps[rows, best // regions] == (best % regions)[..., None, None]).to(fallback)  # (N, J, h, w)
    trust = torch.sigmoid((fit - 0.6) / 0.05)[..., None, None].to(fallback)
    return (trust * (0.03 + 0.94 * answer) + (1 - trust) * fallback[:, None]).mean(1)


def jittered(boxes: Tensor) -> Tensor:
    """`PROMPTS` copies of each box with every side moved at random, always the same way: (N, 4) -> (N, PROMPTS, 4)."""
    noise = torch.randn(PROMPTS, 4, generator=torch.Generator().manual_seed(0))
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes[:, None] + JITTER * sides[:, None] * noise.to(boxes)


def nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Region maps (B, scales, H', W') at another size (h, w), int64."""
    return F.interpolate(maps.float(), size=size, mode="nearest").long()


def compose(
    hard: Tensor, maps: Tensor, *, least_iou: float, cover: float, around: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """What an answer must have meant, made of regions: SemiRES's IOM, else its CPI (arXiv 2406.01451).

    Regions are compared at twice the resolution of the answer, so that their outlines survive; |m| counts such half
    cells.

    Args:
        hard: (B, h, w), the answer p as 0 and 1. maps: (B, scales, 2h, 2w) region of each half cell, 0 for none.
        least_iou: IOM takes the region with the best IoU, if that is above. cover: CPI takes each region m with
            |m & p| / |m| above.
        around: ... or with |m & p| / |p| above. That takes what is *around* a small answer, too: on photographs it made
            labels worse (docs/LOG.md).

    Returns:
        The foreground share of each cell, (B, h, w) in [0, 1], and where that came from IOM and CPI, bool (B,). Where
        it came from neither it is 0.
    """
    fine = hard.repeat_interleave(2, 1).repeat_interleave(2, 2)
    inside, sizes = region_counts(maps, fine)
    whole = fine.sum((1, 2))[:, None, None]
    iou = inside / (whole + sizes - inside).clamp_min(1)
    best_iou, best = iou.flatten(1).max(1)
    best_one = F.one_hot(best, iou[0].numel()).view_as(iou).bool()
    members = inside / sizes.clamp_min(1) > cover
    if around:
        members |= inside / whole.clamp_min(1) > cover
    iom = best_iou > least_iou
    cpi = ~iom & members.flatten(1).any(1)
    chosen = torch.where(iom[:, None, None], best_one, members & cpi[:, None, None])
    union = chosen.gather(2, maps.long().flatten(2)).view_as(maps).any(1).float()
    return F.avg_pool2d(union[:, None], 2)[:, 0], iom, cpi


def best_iou(hard: Tensor, maps: Tensor) -> Tensor:
    """IoU (B,) of each answer with the region that is most like it.

    Args:
        hard: (B, h, w), 0 and 1. maps: (B, scales, 2h, 2w) region of each half cell, 0 for none.
    """
    fine = hard.repeat_interleave(2, 1).repeat_interleave(2, 2)
    inside, sizes = region_counts(maps, fine)
    return (inside / (fine.sum((1, 2))[:, None, None] + sizes - inside).clamp_min(1)).flatten(1).amax(1)


def drawn(logits: Tensor, maps: Tensor, *, keep: Tensor | float, draw: Tensor | float) -> Tensor:
    """An answer and the regions it must have meant (`compose`, IoU from 0.4 on, nothing around), pooled in log odds:
    `keep` x answer + `draw` x (1 in the regions, -1 beside them). Where it met none it stays as it is.

    Args:
        logits: (B, h, w). maps: integers (B, scales, 2h, 2w), regions, 0 for none.
        keep, draw: numbers, or scalars that get a gradient.

    Returns:
        Logits (B, h, w).
    """
    logits = logits.float()
    share, iom, cpi = compose((logits > 0).float(), maps, least_iou=0.4, cover=0.7, around=False)
    return torch.where((iom | cpi)[:, None, None], keep * logits + draw * (2 * share - 1), logits)


def _region_boxes(maps: Tensor) -> Tensor:
    """The box of every region, (N, scales, R, 4) as shares of the picture; of no size for 0 and for those not there."""
    height, width = maps.shape[2:]
    regions = maps.long().flatten(2)
    shape = (*maps.shape[:2], int(regions.max()) + 1)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    sides = []
    for place, half in ((x, 0.5 / width), (y, 0.5 / height)):
        at = place.flatten().to(maps.device).expand_as(regions)
        least = at.new_full(shape, 2.0).scatter_reduce(2, regions, at, "amin")
        most = at.new_full(shape, -2.0).scatter_reduce(2, regions, at, "amax")
        sides.append((least - half, most + half))
    boxes = torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], dim=-1)
    nothing = (boxes[..., 2] < boxes[..., 0]) | (torch.arange(shape[2], device=maps.device) == 0)
    return torch.where(nothing[..., None], 0.0, boxes)


def _neighbours(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Both ends of each edge of the eight-connected grid, as pixel numbers (E,)."""
    at = torch.arange(height * width).view(height, width)
    pairs = (
        (at[:, :-1], at[:, 1:]), (at[:-1], at[1:]), (at[:-1, :-1], at[1:, 1:]), (at[:-1, 1:], at[1:, :-1]),
    )  # fmt: skip
    return torch.cat([one.flatten() for one, _ in pairs]), torch.cat([other.flatten() for _, other in pairs])


def _components(first: np.ndarray, second: np.ndarray, weight: np.ndarray, count: int, k: float) -> np.ndarray:
    """Components 1, 2, ... of `count` pixels, from edges in rising order (the paper's algorithm 1)."""
    parent = list(range(count))
    size = [1] * count
    bound = [k] * count  # Int(C) + k / |C|; Int of one pixel is 0
    for a, b, w in zip(first.tolist(), second.tolist(), weight.tolist(), strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and w <= bound[a] and w <= bound[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            bound[a] = w + k / size[a]

    # Small regions, section 5: along what is left of the edges, still from the lightest to the heaviest.
    roots = _roots(parent)
    a_roots, b_roots = roots[first], roots[second]
    sizes = np.asarray(size)
    left = (a_roots != b_roots) & (np.minimum(sizes[a_roots], sizes[b_roots]) < LEAST)
    for a, b in zip(a_roots[left].tolist(), b_roots[left].tolist(), strict=True):
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a != b and (size[a] < LEAST or size[b] < LEAST):
            parent[b] = a
            size[a] += size[b]
    return np.unique(_roots(parent), return_inverse=True)[1] + 1


def _roots(parent: list[int]) -> np.ndarray:
    roots = np.asarray(parent)
    while not np.array_equal(roots, above := roots[roots]):
        roots = above
    return roots
