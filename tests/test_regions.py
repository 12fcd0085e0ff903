"""The bank of regions: what looks like one thing is one region, every time, and warped like its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from l2l.data.augment import Geometry
from l2l.proposals import regions
from l2l.proposals.regions import (
    best_iou,
    compose,
    drawn,
    in_view,
    nearest,
    oversegment,
    pooled,
    prompted,
    region_bank,
    region_counts,
)


def disc() -> tuple[torch.Tensor, torch.Tensor]:
    """A red disc on green with a little noise: uint8 (1, 3, 32, 48), and bool (1, 16, 24), the disc at half size."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(24), indexing="ij")
    inside = ((y - 7.5) ** 2 + (x - 10.5) ** 2 < 5**2)[None]
    red, green = torch.tensor([200, 40, 40])[:, None, None], torch.tensor([40, 160, 60])[:, None, None]
    picture = torch.where(inside.repeat_interleave(2, 1).repeat_interleave(2, 2), red, green)
    noise = torch.randint(-3, 4, picture.shape, generator=torch.Generator().manual_seed(0))
    return (picture + noise).to(torch.uint8)[None], inside


def test_two_colours_are_two_regions() -> None:
    picture, inside = disc()
    maps = oversegment(picture)
    assert maps.dtype == torch.int16 and maps.shape == (1, len(regions.SCALES), 16, 24)
    coarse = maps[:, -1]
    assert coarse.unique().tolist() == [1, 2]
    red = coarse == coarse[0, 8, 10]
    assert ((red & inside).sum() / (red | inside).sum()).item() > 0.9


def test_coarser_scales_have_fewer_regions_and_none_is_tiny() -> None:
    pictures = torch.randint(0, 256, (3, 3, 8, 12), generator=torch.Generator().manual_seed(1))
    pictures = pictures.repeat_interleave(6, 2).repeat_interleave(6, 3).to(torch.uint8)
    maps = oversegment(pictures)
    counts = maps.amax((2, 3)).float().mean(0)
    assert (counts.diff() <= 0).all() and counts[0] > counts[-1]
    sizes = region_counts(maps, torch.zeros(3, *maps.shape[2:]))[1]
    assert sizes[sizes > 0].min() >= regions.LEAST and (sizes.sum(2) == maps[0, 0].numel()).all()


def test_the_same_picture_gives_the_same_regions_alone_or_among_others() -> None:
    rng = torch.Generator().manual_seed(2)
    pictures = torch.randint(0, 256, (3, 3, 33, 30), generator=rng).to(torch.uint8)
    whole = oversegment(pictures)
    assert whole.shape[2:] == (17, 15)
    assert torch.equal(whole, oversegment(pictures)) and torch.equal(whole[1:2], oversegment(pictures[1:2]))


def test_the_bank_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2L_CACHE", str(tmp_path))
    picture, _ = disc()
    first = region_bank(picture)
    with monkeypatch.context() as patch:
        patch.setattr(regions, "oversegment", lambda images: pytest.fail("made again"))
        assert torch.equal(region_bank(picture), first)
    other = picture.clone()
    other[0, 0, 0, 0] += 1
    region_bank(other)  # one level of one pixel: other pictures, another key
    assert len(list(tmp_path.glob("regions-*.npy"))) == 2


def test_counts_are_those_of_a_loop() -> None:
    rng = torch.Generator().manual_seed(3)
    maps = torch.randint(0, 5, (2, 3, 6, 7), generator=rng)
    p = torch.rand(2, 6, 7, generator=rng) > 0.5
    inside, sizes = region_counts(maps.to(torch.int16), p)
    for b, s, r in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(1, 5)).tolist():
        m = maps[b, s] == r
        assert sizes[b, s, r] == m.sum() and inside[b, s, r] == (m & p[b]).sum()
    assert (inside[..., 0] == 0).all() and (sizes[..., 0] == 0).all()  # 0 is no region


def test_maps_are_warped_as_pictures_are() -> None:
    maps = torch.randint(1, 6, (3, 2, 12, 20), generator=torch.Generator().manual_seed(4)).to(torch.int16)
    view = Geometry(
        torch.tensor([False, True, True]), torch.tensor([1.0, 1.0, 0.8]),
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.1, -0.2]]),
    )  # fmt: skip
    seen = in_view(maps, view, (12, 20))
    assert torch.equal(seen[0], maps[0].long()) and torch.equal(seen[1], maps[1].flip(2).long())
    for region in range(1, 6):  # bilinear, as masks are: at least half a region where the map says it is that region
        share = view.apply((maps == region).float())
        assert (share[2][seen[2] == region] > 0.24).all() and (seen[2] == region)[share[2] > 0.76].all()
    assert (seen[2] == 0).any()  # beyond the frame


def box_of(inside: torch.Tensor, grow: float = 0.0) -> torch.Tensor:
    """The tight box of a bool (1, h, w) as shares, each side moved outwards by `grow` of the box."""
    rows, columns = inside[0].any(1).nonzero()[:, 0], inside[0].any(0).nonzero()[:, 0]
    height, width = inside.shape[1:]
    box = torch.tensor([[columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]])
    side = (box[:, 2:] - box[:, :2]) * grow
    return box + torch.cat([-side, side], dim=1)


def test_a_box_prompts_the_region_that_fills_it() -> None:
    picture, inside = disc()
    maps, fallback = oversegment(picture).long(), torch.full((1, 16, 24), 0.2)
    found = prompted(maps, box_of(inside), fallback)
    assert ((found > 0.5) == inside).float().mean() > 0.97 and found.min() >= 0.03 - 1e-6 and found.max() <= 0.97 + 1e-6
    nowhere = prompted(maps, torch.tensor([[0.0, 0.0, 0.12, 0.12]]), fallback)
    assert torch.allclose(nowhere, fallback, atol=0.01)  # no region fits: as it was
    wide = prompted(maps, box_of(inside, 0.16), fallback)  # at the edge of fitting: in between, hence unsure
    assert 0.2 < float(wide[inside].mean()) < float(found[inside].mean())


def test_pooling_gives_each_region_its_mean() -> None:
    maps = torch.randint(1, 5, (2, 3, 6, 7), generator=torch.Generator().manual_seed(5))
    belief = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(6))
    found = pooled(maps, belief)
    for b, s, r in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(1, 5)).tolist():
        own = maps[b, s] == r
        assert torch.allclose(found[b, s][own], belief[b][own].mean())


def test_the_best_region_is_found_whatever_its_scale() -> None:
    maps = torch.zeros(2, 2, 4, 6, dtype=torch.int64)
    maps[:, 0, :, :3], maps[:, 1, :2] = 1, 1  # the left half; the upper half
    left, upper = torch.zeros(2, 3), torch.zeros(2, 3)
    left[:, :1], upper[0] = 1, 1  # a third of the width, so two of three half cells
    found = best_iou(torch.stack([left, upper]), maps)
    assert torch.allclose(found, torch.tensor([8 / 12, 1.0]))
    assert best_iou(torch.ones(1, 2, 3), torch.zeros(1, 2, 4, 6, dtype=torch.int64)).item() == 0  # no region at all


def test_an_answer_is_drawn_to_the_region_it_must_have_meant() -> None:
    picture, inside = disc()
    maps = oversegment(picture).long()
    share = torch.nn.functional.avg_pool2d(inside[:, None].float(), 2)[:, 0]  # (1, 8, 12)
    ragged = torch.where(share > 0.5, 3.0, -4.0)
    ragged[:, 3, 5] = -1.0  # a hole
    found = drawn(ragged, maps, keep=0.5, draw=2.0)
    assert (found.sigmoid() - share).abs().mean() < 0.8 * (ragged.sigmoid() - share).abs().mean()
    assert found[0, 3, 5] == -0.5 + 2 and found[0, 0, 0] == -2 - 2
    assert torch.equal(drawn(ragged, maps, keep=1.0, draw=0.0), ragged)
    speck = torch.full_like(ragged, -4.0)
    speck[:, 0, 0] = 2.0  # like no region, and the background around it is nothing it meant: left alone
    assert torch.equal(drawn(speck, maps, keep=0.5, draw=2.0), speck)
    draw = torch.tensor(0.5, requires_grad=True)
    (drawn(ragged, maps, keep=0.5, draw=draw).sigmoid() - share).square().sum().backward()
    assert draw.grad is not None and draw.grad < 0  # where regions are objects, more of it brings labels nearer
    assert drawn(torch.full_like(ragged, -20.0), maps, keep=0.5, draw=2.0).isfinite().all()


def test_a_label_is_composed_of_what_lies_inside() -> None:
    """One picture of 4 x 4 half cells: region 1 above, 2 and 3 below."""
    maps = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]])[None, None]
    corner = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # a half of region 1
    share, iom, cpi = compose(corner, maps, least_iou=0.4, cover=0.7)
    assert iom.all() and not cpi.any() and share.tolist() == [[[1, 1], [0, 0]]]
    share, iom, cpi = compose(corner, maps, least_iou=0.6, cover=0.7)  # SemiRES: region 1 is all around it
    assert not iom.any() and cpi.all() and share.tolist() == [[[1, 1], [0, 0]]]
    share, iom, cpi = compose(corner, maps, least_iou=0.6, cover=0.7, around=False)
    assert not iom.any() and not cpi.any() and share.eq(0).all()
    most = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    share, iom, cpi = compose(most, maps, least_iou=0.6, cover=0.7, around=False)
    assert not iom.any() and cpi.all() and share.tolist() == [[[0, 0], [1, 1]]]


def test_maps_of_another_size_keep_their_regions() -> None:
    maps = torch.arange(1, 7).view(1, 1, 2, 3)
    assert torch.equal(nearest(maps, (4, 6)), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
