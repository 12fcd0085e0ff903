from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2l.labelling.sesm import hard_iou
from l2l.training.losses import reliability_loss, segmentation_loss

seeds = st.integers(0, 10_000)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(logits, soft targets, soft acceptance), each (3, 4, 5)."""
    rng = np.random.RandomState(seed)
    accepted = rng.random_sample((3, 4, 5)) * (rng.random_sample((3, 4, 5)) < 0.7)
    return 3 * rng.standard_normal((3, 4, 5)), rng.random_sample((3, 4, 5)).round(1), accepted


def plain_loss(logits: np.ndarray, target: np.ndarray, accepted: np.ndarray) -> list[float]:
    losses = []
    for z, y, a in zip(logits, target, accepted, strict=True):
        p = 1 / (1 + np.exp(-z))
        cross = -(a * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum() / max(a.sum(), 1)
        dice = 1 - (2 * (a * p * a * y).sum() + 1) / ((a * p).sum() + (a * y).sum() + 1)
        losses.append(cross + dice)
    return losses


@given(seeds)
def test_the_loss_is_that_of_plain_numpy(seed: int) -> None:
    logits, target, accepted = drawn(seed)
    z, y, a = (torch.from_numpy(part).float() for part in (logits, target, accepted))
    assert segmentation_loss(z, y, a).tolist() == pytest.approx(plain_loss(logits, target, accepted), abs=1e-4)
    everything = plain_loss(logits, target, np.ones_like(target))
    assert segmentation_loss(z, y).tolist() == pytest.approx(everything, abs=1e-4)
    assert torch.allclose(segmentation_loss(z, y), segmentation_loss(z, y, torch.ones_like(y)))


def test_nothing_accepted_is_nothing_lost() -> None:
    logits = torch.tensor([[[90.0, -90.0]], [[1.0, 2.0]]], requires_grad=True)
    accepted = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]])
    loss = segmentation_loss(logits, torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]), accepted)
    assert float(loss[0].detach()) == 0 and loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert not logits.grad[0].any() and logits.grad[1, 0, 0] > 0
    assert logits.grad[1, 0, 1] == 0  # a refused cell teaches nothing


def test_a_loss_has_its_minimum_at_the_target() -> None:
    target = torch.zeros(1, 6, 6)
    target[:, 2:5, 1:4] = 1
    right = (target * 2 - 1) * 12
    assert float(segmentation_loss(right, target)) < 1e-3
    assert float(segmentation_loss(-right, target)) > 10
    assert float(segmentation_loss(right, 0 * target)) > float(segmentation_loss(-abs(right), 0 * target))
    assert segmentation_loss(torch.full((1, 3, 3), 500.0), torch.zeros(1, 3, 3)).isfinite().all()


def test_half_the_cells_bear_half_the_weight() -> None:
    logits, target, _ = (torch.from_numpy(part).float() for part in drawn(1))
    half = torch.zeros_like(target)
    half[:, :2] = 1
    assert torch.allclose(segmentation_loss(logits, target, half), segmentation_loss(logits[:, :2], target[:, :2]))


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6))
def test_the_best_reliability_is_the_expected_iou(ious: list[float]) -> None:
    iou, valid = torch.tensor(ious), torch.ones(len(ious), dtype=torch.bool)

    def at(p: float) -> float:
        return float(reliability_loss(torch.logit(torch.tensor(p)).expand(len(ious)), iou, valid))

    mean = float(iou.mean())
    assert at(mean) < min(at(max(mean - 0.03, 0.01)), at(min(mean + 0.03, 0.99)))
    logit = torch.logit(torch.tensor(mean)).requires_grad_()
    reliability_loss(logit.expand(len(ious)), iou, valid).backward()
    assert logit.grad is not None and abs(float(logit.grad)) < 1e-5


def test_only_valid_samples_count() -> None:
    logits = torch.tensor([0.3, -9.0, 1.0], requires_grad=True)
    iou, valid = torch.tensor([0.6, 1.0, 0.2]), torch.tensor([True, False, True])
    loss = reliability_loss(logits, iou, valid)
    alone = reliability_loss(logits[valid], iou[valid], torch.ones(2, dtype=torch.bool))
    assert torch.allclose(loss, alone)
    loss.backward()
    assert logits.grad is not None and logits.grad[1] == 0
    none = reliability_loss(logits, iou, torch.zeros(3, dtype=torch.bool))
    assert float(none.detach()) == 0


@given(hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))))
def test_hard_iou_is_that_of_numpy(pair: np.ndarray) -> None:
    a, b = pair
    union, inter = (a | b).sum((1, 2)), (a & b).sum((1, 2))
    plain = [i / u if u else 1.0 for i, u in zip(inter, union, strict=True)]
    assert hard_iou(torch.from_numpy(a), torch.from_numpy(b)).tolist() == pytest.approx(plain)
