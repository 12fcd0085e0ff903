from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l2l.priors.prior import Box, Prior
from l2l.proposals.affinity import box_kernel, propose
from l2l.proposals.proposal import Proposals
from l2l.rle import Rle

SIDE, CELLS = 96, (24, 24)
DISCS = [
    (48, 48, 20, (0.8, 0.2, 0.2), (0.4, 0.4, 0.4)),
    (30, 60, 15, (0.2, 0.3, 0.8), (0.5, 0.45, 0.4)),
    (60, 30, 12, (0.9, 0.8, 0.2), (0.3, 0.35, 0.3)),
    (48, 48, 8, (0.2, 0.6, 0.3), (0.6, 0.6, 0.6)),
]


def disc(
    x: int, y: int, radius: int, colour: tuple[float, ...], ground: tuple[float, ...]
) -> tuple[Tensor, Tensor, Box]:
    """(picture (3, SIDE, SIDE) with some noise, its true mask, its tight box)."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    mask = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    picture = torch.where(mask[None], torch.tensor(colour)[:, None, None], torch.tensor(ground)[:, None, None])
    picture = picture + 0.05 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    tight = ((x - radius) / SIDE, (y - radius) / SIDE, (x + radius) / SIDE, (y + radius) / SIDE)
    return picture.clamp(0, 1), mask, tight


def small(mask: Tensor) -> Tensor:
    return F.interpolate(mask[None, None].float(), size=CELLS, mode="area")[0, 0] > 0.5


def filled(box: Box) -> Tensor:
    spots = (torch.arange(CELLS[0]) + 0.5) / CELLS[0]
    return ((spots > box[1]) & (spots < box[3]))[:, None] & ((spots > box[0]) & (spots < box[2]))


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def boxes(*given_: Box, scores: tuple[float, ...] | None = None) -> Prior:
    return Prior(boxes=given_, scores=scores or (0.9,) * len(given_))


def grown(box: Box, by: float) -> Box:
    x, y, across, down = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]
    sides = (x - across * by / 2, y - down * by / 2, x + across * by / 2, y + down * by / 2)
    return tuple(min(max(side, 0.0), 1.0) for side in sides)  # type: ignore[return-value]


@pytest.mark.parametrize("scene", DISCS)
@pytest.mark.parametrize("by", [0.9, 1.0, 1.2])
def test_the_right_box_finds_the_object(scene: tuple, by: float) -> None:
    picture, mask, tight = disc(*scene)
    box = grown(tight, by)
    found = propose([boxes(box)], picture[None], CELLS)[0]
    assert found.shape == CELLS and found.dtype == torch.float32
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert iou(found > 0.5, small(mask)) > 0.75
    assert iou(found > 0.5, small(mask)) > iou(filled(box), small(mask))


def test_the_colours_decide_not_the_box_alone() -> None:
    picture, mask, tight = disc(*DISCS[0])
    plain = torch.full_like(picture, 0.4)
    by_colour, by_box = propose([boxes(grown(tight, 1.2))] * 2, torch.stack([picture, plain]), CELLS)
    assert iou(by_colour > 0.5, small(mask)) > iou(by_box > 0.5, small(mask)) + 0.1


def test_a_box_on_something_else_leaves_the_object_out() -> None:
    picture, mask, _ = disc(*DISCS[1])
    found = propose([boxes((0.6, 0.05, 0.95, 0.35))], picture[None], CELLS)[0]
    assert not (found > 0.5)[small(mask)].any() and (found > 0.5).any()


@given(st.floats(0.05, 1), st.floats(0.05, 1))
@settings(max_examples=25)
def test_further_boxes_stay_below_the_cut(one: float, other: float) -> None:
    picture, mask, tight = disc(*DISCS[0])
    elsewhere, best = (0.02, 0.02, 0.2, 0.2), max(one, other)
    found = propose([boxes(elsewhere, tight, scores=(best, min(one, other)))], picture[None], CELLS)[0]
    assert float(found[small(mask)].max()) < 0.5 and float(found[small(mask)].mean()) > 0.02
    assert torch.equal(found > 0.5, propose([boxes(elsewhere)], picture[None], CELLS)[0] > 0.5)


def test_no_prior_is_flat() -> None:
    picture, _, tight = disc(*DISCS[0])
    found = propose([Prior(), boxes(tight), Prior(note="no answer")], picture[None].expand(3, -1, -1, -1), CELLS)
    absent = Proposals.absent(1, *CELLS).soft[0]
    assert torch.equal(found[0], absent) and torch.equal(found[2], absent)
    assert not torch.equal(found[1], absent)
    assert torch.equal(propose([Prior()], picture[None], CELLS)[0], absent)


def test_a_mask_is_taken_as_it_is() -> None:
    picture, mask, tight = disc(*DISCS[0])
    for drawn in (mask.numpy(), np.ascontiguousarray(mask.numpy()[::2, ::2])):  # at any size
        prior = Prior(mask=Rle.encode(drawn), boxes=((0.0, 0.0, 0.1, 0.1),), scores=(0.9,))
        found = propose([prior], picture[None], CELLS)[0]
        assert torch.equal(found > 0.5, small(torch.from_numpy(drawn)))
        assert float(found.min()) == pytest.approx(0.03) and float(found.max()) == pytest.approx(0.97)


def test_a_point_finds_what_it_stands_on() -> None:
    picture, mask, _ = disc(*DISCS[2])
    x, y = DISCS[2][0] / SIDE, DISCS[2][1] / SIDE
    found = propose([Prior(points=((x, y),))], picture[None], CELLS)[0]
    assert iou(found > 0.5, small(mask)) > 0.6
    corners = [Prior(points=(place,)) for place in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0))]
    edge = propose(corners, picture[None].expand(3, -1, -1, -1), CELLS)
    assert edge.isfinite().all() and edge[0, 1, 1] > 0.5 and edge[1, -2, -2] > 0.5 and edge[2, -2, 1] > 0.5


sides = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda pair: pair[1] > pair[0])


@given(sides, sides, st.sampled_from(["noise", "black", "white"]))
@settings(max_examples=40)
def test_any_box_on_any_picture_is_finite(across: list[float], down: list[float], ground: str) -> None:
    picture = {
        "noise": torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0)),
        "black": torch.zeros(1, 3, 40, 56), "white": torch.ones(1, 3, 40, 56),
    }[ground]  # fmt: skip
    found = propose([boxes((across[0], down[0], across[1], down[1]))], picture, (10, 14))[0]
    assert found.isfinite().all() and float(found.min()) >= 0 and float(found.max()) <= 1


def test_a_tiny_box_still_points() -> None:
    picture, _, _ = disc(*DISCS[0])
    for x, y in ((0.27, 0.7), (0.0, 0.0), (1 - 1e-6, 0.5)):
        found = propose([boxes((x, y, x + 1e-6, y + 1e-6))], picture[None], CELLS)[0]
        row, column = divmod(int(found.argmax()), CELLS[1])
        assert found.isfinite().all() and float((found > 0.5).float().mean()) < 0.05
        assert abs(row - y * CELLS[0]) <= 1.5 and abs(column - x * CELLS[1]) <= 1.5


def test_an_object_of_two_cells_is_found() -> None:
    picture, mask, tight = disc(50, 37, 4, (0.9, 0.1, 0.1), (0.5, 0.5, 0.5))
    found = propose([boxes(tight)], picture[None], CELLS)[0]
    assert (found > 0.5)[small(mask)].all() and 2 <= int((found > 0.5).sum()) <= 9


@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.0, 0.4, 1.0, 0.6), (0.45, 0.0, 0.6, 1.0)])
def test_boxes_from_border_to_border(box: Box) -> None:
    picture, _, _ = disc(*DISCS[0])
    found = propose([boxes(box)], picture[None], CELLS)[0]
    assert found.isfinite().all() and (found > 0.5).any() and not (found > 0.5)[~filled(grown(box, 1.3))].any()


def test_a_batch_is_its_members() -> None:
    drawn = [disc(*scene) for scene in DISCS]
    pictures = torch.stack([picture for picture, _, _ in drawn])
    priors = [
        boxes(drawn[0][2]), Prior(), boxes(drawn[2][2], drawn[1][2], scores=(0.8, 0.4)), Prior(points=((0.5, 0.5),)),
    ]  # fmt: skip
    together = propose(priors, pictures, CELLS)
    alone = [propose([prior], picture[None], CELLS)[0] for prior, picture in zip(priors, pictures, strict=True)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)
    again = propose(priors, pictures, CELLS)
    assert torch.equal(together, again)


def test_the_kernel_is_half_at_the_outline() -> None:
    kernel, around = box_kernel(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), 40, 40)
    assert float(kernel[0, 20, 9:11].mean()) == pytest.approx(0.5, abs=0.05) and float(kernel[0, 20, 20]) > 0.99
    assert float(kernel[0, 0, 0]) < 0.01 and float(around[0, 20, 20]) < 0.01
    assert float(around[0, 20, 5]) > float(around[0, 20, 0]) > 0.1  # the nearer, the more it counts
