"""What L2L reads off the known labels before the first step: which are held out, how good the prior is, and whether the
regions of these pictures are objects."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from l2l.data.streams import generator
from l2l.labelling.sesm import MEETS, calibrated, came_out, hard_iou
from l2l.metrics import overlap
from l2l.outlines import upsample
from l2l.proposals.regions import best_iou, nearest
from l2l.training.parts import Parts
from l2l.training.pool import Pool

DRAWS = 64  # random choices of held-out images, the most representative of which is taken
LEAST_HELD_OUT = 8  # referents, about, where that is no more than a third of the images
FEWEST = 6  # held-out referents from which the drift guard lets SESM and the policy learn
KNOWN = 400  # pairs that say what an answer loses in cells
SURE = 2.0  # see `meets`
ENOUGH = 16  # labelled referents that say how good the prior is: its mean IoU is known to within 0.09


def make_folds(parts: Parts) -> list[Tensor]:
    """Refs of the labelled images, dealt into folds by image. One image alone is its own fold, and learned from."""
    refs = drawn_refs(parts)
    images = images_of(parts, refs)
    names = images.unique()
    share = parts.config.sesm.held_out
    if not share or len(names) < 2:
        return [refs]
    # the few numbers of SESM and the policy need few labels, but a handful of referents is too little to go by
    held = max(round(share * len(names)), min(round(LEAST_HELD_OUT * len(names) / len(refs)), len(names) // 3), 1)
    if share > 0.5:  # the larger part
        held = min(len(names) - 1, held)
    order = representative(parts, names, held)
    has = torch.bincount(torch.searchsorted(names, images), minlength=len(names))[order]
    while has[:held].sum() < FEWEST and held < len(names) // 3:  # a picture may have a single referent
        held += 1
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    count = max(2, math.ceil(len(names) / held))
    fold_of = (place // held).clamp_max(count - 1)
    folds = fold_of[torch.searchsorted(names, images)]
    return [refs[folds == fold] for fold in range(count)]


def representative(parts: Parts, names: Tensor, held: int) -> Tensor:
    """An order of the labelled images `names` (N,), which are sorted: random, but for its first `held`, on which the
    prior is much as it is on all of them.

    Of `DRAWS` random orders the one is taken in which the IoU of their proposals, and the IoU less what the score
    foretells, are nearest to their means over all labels (rerandomisation; Morgan & Rubin, Annals of Statistics 2012).
    A handful of referents may else have a prior that is right on one of three, or on all.
    """
    rng = generator(parts.config.train.seed, "folds")
    orders = torch.stack([torch.randperm(len(names), generator=rng) for _ in range(DRAWS)])
    score, iou = (one.cpu() for one in prior_on_labels(parts))
    if not len(iou):
        return orders[0]
    slope, constant = calibrated(score, iou)
    apart = iou - (torch.logit(score, eps=0.02) * slope + constant).sigmoid()
    at = torch.searchsorted(names, parts.pool.image_of[prior_rows(parts)])
    each = torch.stack([torch.ones_like(iou), iou - iou.mean(), apart - apart.mean()], dim=1)
    sums = torch.zeros(len(names), 3).index_add(0, at, each)[orders[:, :held]].sum(1)  # (DRAWS, 3)
    unlike = (sums[:, 1:] / sums[:, :1]).abs().sum(1).nan_to_num(torch.inf)  # NaN: no proposals there
    return orders[unlike.argmin()]


def images_of(parts: Parts, refs: Tensor) -> Tensor:
    """The image of each ref."""
    return parts.pool.image_of[torch.tensor([parts.pool.pairs_of[ref][0] for ref in refs.tolist()])]


def drawn_refs(parts: Parts) -> Tensor:
    """Labelled refs on images of which nobody chose any (`Sample.chosen`); all of them, where that leaves fewer than
    `ENOUGH`. People choose what the prior has got wrong: from that, it would look worse than it is."""
    refs = parts.labelled_refs
    chosen = torch.tensor([parts.pool.samples[ref].chosen for ref in refs.tolist()], dtype=torch.bool)
    images = images_of(parts, refs)
    drawn = refs[~torch.isin(images, images[chosen])]
    return drawn if len(drawn) >= ENOUGH else refs


def prior_rows(parts: Parts) -> Tensor:
    """Rows (N,) of the labelled pairs that have a proposal, as `drawn_refs` has them."""
    pool = parts.pool
    rows = torch.tensor([row for ref in drawn_refs(parts).tolist() for row in pool.pairs_of[ref]])
    return rows[pool.present[rows]]


def prior_on_labels(parts: Parts) -> tuple[Tensor, Tensor]:
    """Own scores (N,) of the proposals of all labelled pairs that have one, and their IoU with the masks. Honest
    whoever has learned from these labels: the prior has not."""
    pool, rows = parts.pool, prior_rows(parts)
    return pool.score[rows].float(), hard_iou(pool.soft[rows] > 127, pool.masks[pool.ref_of[rows]] > 127)


def finer(parts: Parts) -> float:
    """How much higher the IoU of an answer is at the pictures' own resolution than in cells, a factor of at least 1:
    that of the proposals of known pairs, `KNOWN` at most, whose maps are cut and widened as answers are. It is much the
    same for good and bad answers; 1 where no proposal meets what is meant."""
    pool, rows = parts.pool, prior_rows(parts)
    rows = rows[torch.randperm(len(rows), generator=generator(parts.config.train.seed, "finer"))[:KNOWN]]
    cells = wide = 0.0
    for row, ref in zip(rows.tolist(), pool.ref_of[rows].tolist(), strict=True):
        logits, mask = torch.logit(pool.soft[row].float().cpu() / 255, 1e-4), pool.samples[ref].mask()
        cells += float(came_out(logits[None], pool.masks[ref][None].float().cpu() / 255))
        inter, union = overlap(upsample(logits, mask.shape), mask)
        wide += inter / union if union else 1.0
    return max(1.0, wide / cells) if cells else 1.0


def meets(iou: Tensor) -> float:
    """The IoU that proposals have where they meet what is meant: the mean, each counting as much as its own IoU is, so
    that it is the same however often the prior is wrong. `SURE` more that have `MEETS` are presumed, for where few are
    known.

    Args:
        iou: (N,) in [0, 1], of proposals with their masks, as `prior_on_labels` has them.
    """
    return float((iou.square().sum() + SURE * MEETS) / (iou.sum() + SURE))


def misleading(parts: Parts) -> tuple[float, float] | None:
    """Whether the prior points to what is meant no more often than to anything else in the picture, even where it is
    surest: a score that tells makes a prior useful that is mostly wrong. Then the mean IoU of the surest third of its
    proposals with the known masks, and with those of other known referents of the same pictures, which is no less; else
    `None`, also where fewer than `ENOUGH` referents share their picture with another, or where people chose them."""
    pool, rows = parts.pool, prior_rows(parts)
    if any(pool.samples[ref].chosen for ref in pool.ref_of[rows].unique().tolist()):
        return None
    other = pool.rival[rows]
    both = (other >= 0) & pool.labelled[pool.ref_of[other]]
    rows, other = rows[both], other[both]
    if len(pool.ref_of[rows].unique()) < ENOUGH:
        return None
    score = pool.score[rows]
    sure = score >= score.quantile(2 / 3)  # all of them, where scores are blank
    rows, other = rows[sure], other[sure]
    said = pool.soft[rows] > 127
    meant, instead = (float(hard_iou(said, pool.masks[pool.ref_of[of]] > 127).mean()) for of in (rows, other))
    return (meant, instead) if meant <= instead else None


def unprompted(parts: Parts) -> Parts:
    """The same parts, in which no pair has a prior."""
    pool = parts.pool
    nothing = pool.with_proposals(pool.soft, pool.score, torch.zeros_like(pool.present))
    return dataclasses.replace(parts, pool=nothing)


def held_by_regions(pool: Pool, regions: Tensor) -> Tensor:
    """IoU (N,) of the known masks with the region of their picture that is most like each; of those masks in which
    there is anything. Regions have learned from none of them.

    Args:
        regions: integers (images, scales, H', W'), 0 for none.
    """
    rows = torch.tensor([pool.pairs_of[ref][0] for ref in pool.labelled.nonzero()[:, 0].tolist()])
    truth = (pool.masks[pool.ref_of[rows]] > 127).cpu()
    some = truth.any(2).any(1)
    truth, rows = truth[some].float(), rows[some]
    maps = nearest(regions[pool.image_of[rows]].cpu(), (2 * truth.shape[1], 2 * truth.shape[2]))
    return torch.cat([best_iou(*some) for some in zip(truth.split(256), maps.split(256), strict=True)])
