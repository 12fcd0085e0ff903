"""A bank of regions from SAM's "everything" masks: what a grid of points gets, sifted and dealt into layers.

The automatic mask generation of "Segment Anything" (Kirillov et al., ICCV 2023, appendix B) without its crops, and with
duplicates told by the IoU of masks rather than of boxes. It takes the place of `regions.region_bank`, in its format;
but these regions are no partition: where SAM saw nothing, there is none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from l2l.data.cache import cached
from l2l.data.images import digest, load
from l2l.proposals.regions import LEAST, SCALES
from l2l.proposals.sam import Sam, in_picture

LAYERS = len(SCALES)
STABLE = 0.95  # least IoU of a mask cut at logits of 1 and of -1
SAME = 0.7  # IoU of masks from which the less sure one is a duplicate
ROOM = 0.1  # share of the smaller of two masks that may be common to both in one layer
VERSION = 1  # of the maps in the cache: raise it when they change


def mask_bank(
    sam: Sam, pictures: Sequence[str], size: tuple[int, int], *, points: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:  # fmt: skip
    """Region maps of many pictures, made of their originals; each picture is kept in the cache by itself as well, so
    that work cut off goes on where it was.

    Args:
        pictures: N addresses, see `data.images.load`. size: (H, W) that the network sees. points: side of the grid.

    Returns:
        int16 (N, LAYERS, H/2, W/2) (halves round up): the region of each pixel, 1, 2, ...; 0 for no region.
    """
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    about = repr((VERSION, sam.fingerprint, half, points, sam.family.least_iou, STABLE, SAME, ROOM, LEAST))
    keys = [_digest(about, digest(picture)) for picture in pictures]

    def build() -> np.ndarray:
        out = np.empty((len(pictures), LAYERS, *half), np.int16)
        for row, (picture, key) in enumerate(zip(pictures, keys, strict=True)):
            make = partial(regions_of, sam, picture, half, points)
            out[row] = cached(f"sam/{key[:2]}/masks-{key}", make).numpy()
            if progress:
                progress(row + 1, len(pictures))
        return out

    return cached(f"masks-{_digest(*keys)}", build)


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def regions_of(sam: Sam, picture: str, size: tuple[int, int], points: int) -> np.ndarray:
    """int16 (LAYERS, h, w) of one picture."""
    sam.set_image(load(picture))
    masks, sure = everything(sam, size, points=points)
    kept = distinct(masks, sure)
    return dealt(masks[kept], sure[kept]).numpy()


def everything(sam: Sam, size: tuple[int, int], *, points: int) -> tuple[Tensor, Tensor]:
    """What SAM sees in the picture that was set, duplicates and all.

    Args:
        size: (h, w) of the masks. points: side of the grid of points that it is asked about.

    Returns:
        Masks bool (K, h, w) of at least `regions.LEAST` pixels, and the IoU (K,) that SAM expects of them; on the CPU.
    """
    spots = (torch.arange(points) + 0.5) / points
    grid = torch.stack(torch.meshgrid(spots, spots, indexing="xy"), dim=-1).view(-1, 1, 2)
    masks, sure = [], []
    for some in grid.split(sam.batch):
        logits, iou = (each.flatten(0, 1) for each in sam.masks(points=some))
        hopeful = iou > sam.family.least_iou
        logits, iou = logits[hopeful], iou[hopeful]
        firm = stability(logits, sam.covered) > STABLE
        found = in_picture(logits[firm].sigmoid(), sam.covered, size) > 0.5
        large = found.sum((1, 2)) >= LEAST
        masks.append(found[large].cpu())
        sure.append(iou[firm][large].cpu())
    return torch.cat(masks), torch.cat(sure)


def stability(logits: Tensor, covered: tuple[float, float]) -> Tensor:
    """How little masks (K, s, s) depend on where they are cut: the IoU (K,) of {logit > 1} and {logit > -1}, inside the
    picture; 0 for an empty mask."""
    height, width = (math.ceil(share * side) for share, side in zip(covered, logits.shape[1:], strict=True))
    seen = logits[:, :height, :width]
    return (seen > 1).sum((1, 2)) / (seen > -1).sum((1, 2)).clamp_min(1)


def common(masks: Tensor) -> Tensor:
    """Pixels that each two of masks bool (K, h, w) have in common, float (K, K); each one's size on the diagonal."""
    flat = masks.flatten(1).float()
    return flat @ flat.T


def distinct(masks: Tensor, sure: Tensor) -> Tensor:
    """Places (K',) of the masks that are no duplicate of a surer one that is kept, the surest first.

    Args:
        masks: bool (K, h, w), none of them empty. sure: (K,).
    """
    shared = common(masks)
    sizes = shared.diagonal()
    same = shared / (sizes[:, None] + sizes - shared) > SAME
    gone = torch.zeros(len(masks), dtype=torch.bool)
    kept = []
    for place in sure.argsort(descending=True, stable=True).tolist():
        if not gone[place]:
            kept.append(place)
            gone |= same[place]
    return torch.tensor(kept, dtype=torch.int64)


def layer_of(masks: Tensor, layers: int = LAYERS) -> Tensor:
    """The layer of each mask (K,): the smallest come first, and each goes to the finest layer where it has room, which
    is where it shares little with any other; if there is none, to where it shares least, the coarsest of such.

    So a part, the thing it belongs to, and a group of such things come to lie in three layers.

    Args:
        masks: bool (K, h, w), none of them empty.
    """
    shared = common(masks).double()  # one pixel of ten is a share of `ROOM`, and not a little more
    sizes = shared.diagonal()
    shared = shared / torch.minimum(sizes[:, None], sizes)
    layer = torch.full((len(masks),), -1)
    for place in sizes.argsort(stable=True).tolist():
        crowd = [float(shared[place][layer == at].amax()) if (layer == at).any() else 0.0 for at in range(layers)]
        least = min(reversed(range(layers)), key=crowd.__getitem__)
        layer[place] = next((at for at in range(layers) if crowd[at] <= ROOM), least)
    return layer


def dealt(masks: Tensor, sure: Tensor, layers: int = LAYERS) -> Tensor:
    """Masks that overlap, as maps of regions that do not: where two meet in one layer, the surer one has the pixels.

    Args:
        masks: bool (K, h, w), none of them empty. sure: (K,).

    Returns:
        int16 (layers, h, w): 1, 2, ... by layer, 0 for no region.
    """
    maps = torch.zeros(layers, *masks.shape[1:], dtype=torch.int16)
    layer, count = layer_of(masks, layers), [0] * layers
    for place in sure.argsort(stable=True).tolist():
        at = int(layer[place])
        count[at] += 1
        maps[at][masks[place]] = count[at]
    return maps
