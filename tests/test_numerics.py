"""Arithmetic: pure functions beside float64 written out plainly, in three formats; and masks without area, logits and
rewards without bound. What whole batches make of nothing and of everything is in `test_degenerate.py`.

How near is near (`NEAR`): a function is shown maps rounded to a format, as a network in that format gives them, and
must be within so much of the float64 reference *of the unrounded maps*, relative to the largest value there. bfloat16
keeps 8 bits, so its rounding alone costs up to 2^-9 of each number; what is computed from it is computed in float32.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from l2l.generalised import generalised_scores
from l2l.labelling.policy import ACCEPT, FACTS, MAPS, AcceptancePolicy, State, expected_gain
from l2l.labelling.reward import (
    agreement_reward,
    gain_reward,
    held_out_direction,
    truth_reward,
    utility_reward,
    weights,
)
from l2l.labelling.rple import (
    bernoulli_entropy,
    choose,
    coverage_shift,
    divergence,
    exact_gradient,
    leave_one_out,
    policy_gradient,
    project,
)
from l2l.labelling.sesm import SESM, agreement, alike, calibrated, entropy, fill, hard_iou, outlined, soft_iou, to_logit
from l2l.metrics import calibration, iou, overlap, summarise
from l2l.proposals.proposal import Proposals
from l2l.training.losses import reliability_loss, segmentation_loss

NEAR = {torch.float64: 2e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value
FORMATS = pytest.mark.parametrize("kind", NEAR, ids=["float64", "float32", "bfloat16"])
HUGE = 1e4  # a logit or a reward beyond anything that a sound run has


def near(found: Tensor | float, expected: Any, kind: torch.dtype = torch.float32, *, times: float = 1.0) -> None:
    """Finite, and within `NEAR` of the reference."""
    got, want = np.asarray(torch.as_tensor(found).detach().double()), np.asarray(expected, float)
    assert got.shape == want.shape and np.isfinite(got).all()
    apart, size = np.abs(got - want).max(initial=0), np.abs(want).max(initial=0)
    assert apart <= times * NEAR[kind] * max(size, 1e-3), f"{apart:.2g} of {size:.2g}"


def rounded(value: np.ndarray, kind: torch.dtype) -> Tensor:
    """In a format; what is in bfloat16 goes on as float32, as it does behind the network."""
    tensor = torch.from_numpy(value).to(kind)
    return tensor.float() if kind == torch.bfloat16 else tensor


def sigmoid(z: Any) -> Any:
    return np.exp(-np.logaddexp(0, -np.asarray(z, float)))


def logit(p: Any, eps: float) -> Any:
    p = np.clip(p, eps, 1 - eps)
    return np.log(p / (1 - p))


def maps(seed: int, count: int = 1, *, batch: int = 3, side: int = 24) -> list[np.ndarray]:
    """Soft maps with an object in them, (B, h, w), none of them near 0.5 (where rounding would change its side)."""
    rng = np.random.RandomState(seed)
    made = []
    for _ in range(count):
        p = rng.uniform(0.05, 0.4, (batch, side, side))
        for row in range(batch):
            top, left = rng.randint(0, side // 2, 2)
            p[row, top : top + side // 2, left : left + side // 3] += 0.55
        made.append(p)
    return made


def kinds(side: int = 6) -> dict[str, np.ndarray]:
    """Empty, full and one pixel, bool (h, w)."""
    one = np.zeros((side, side), bool)
    one[2, 3] = True
    return {"empty": np.zeros_like(one), "full": np.ones_like(one), "one": one}


PAIRS = [(a, b) for a in kinds() for b in kinds()]


# --- losses ---------------------------------------------------------------------------------------------------------


def plain_loss(z: np.ndarray, y: np.ndarray, a: np.ndarray) -> tuple[float, np.ndarray]:
    """Cross-entropy plus dice of one sample, and the slope in its logits."""
    p, total = sigmoid(z), max(a.sum(), 1)
    cross = (a * (np.logaddexp(0, z) - z * y)).sum() / total
    above, below = 2 * (a * p * a * y).sum() + 1, (a * p).sum() + (a * y).sum() + 1
    slope = a * (p - y) / total + p * sigmoid(-z) * (a * above / below**2 - 2 * a * a * y / below)
    return cross + 1 - above / below, slope


@FORMATS
@pytest.mark.parametrize("mixed", [False, True], ids=["all", "logits"])
def test_the_loss_and_its_gradient(kind: torch.dtype, mixed: bool) -> None:
    """Also of bfloat16 tensors themselves: sums over a mask are not taken in it."""
    y, a, z = maps(0, 3, side=48)
    z = 12 * (z - 0.5)
    a = a * (a > 0.1)
    wide = torch.float32 if mixed and kind == torch.bfloat16 else kind
    logits = torch.from_numpy(z).to(kind).requires_grad_()
    loss = segmentation_loss(logits, torch.from_numpy(y).to(wide), torch.from_numpy(a).to(wide))
    assert loss.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    loss.sum().backward()
    each = [plain_loss(*one) for one in zip(z, y, a, strict=True)]
    near(loss, [value for value, _ in each], kind)
    assert logits.grad is not None
    near(logits.grad, np.stack([slope for _, slope in each]), kind)


@FORMATS
def test_the_reliability_loss(kind: torch.dtype) -> None:
    z, y = np.array([0.3, -9.0, 1.7, 40.0, -40.0]), np.array([0.6, 1.0, 0.25, 1.0, 0.0])
    valid = np.array([True, False, True, True, True])
    logits = torch.from_numpy(z).to(kind).requires_grad_()
    loss = reliability_loss(logits, torch.from_numpy(y).to(kind), torch.from_numpy(valid))
    near(loss, (valid * (np.logaddexp(0, z) - z * y)).sum() / 4, kind)
    loss.backward()
    assert logits.grad is not None and loss.dtype != torch.bfloat16
    near(logits.grad, valid * (sigmoid(z) - y) / 4, kind)


@pytest.mark.parametrize("said, true", PAIRS)
@pytest.mark.parametrize("size", [1.0, HUGE])
def test_the_loss_of_degenerate_masks(said: str, true: str, size: float) -> None:
    z, y = np.where(kinds()[said], size, -size), kinds()[true].astype(float)
    for accepted in kinds().values():
        a = accepted.astype(float)
        logits = torch.tensor(z[None], dtype=torch.float32, requires_grad=True)
        loss = segmentation_loss(logits, torch.tensor(y[None]).float(), torch.tensor(a[None]).float())
        loss.sum().backward()
        value, slope = plain_loss(z, y, a)
        assert logits.grad is not None
        near(loss, [value])
        near(logits.grad, slope[None])
        if not accepted.any():
            assert float(loss.detach()) == 0 and not logits.grad.any()
    if size == HUGE and said == true:  # right and sure: by hand, nothing is lost
        assert float(segmentation_loss(logits.detach(), torch.tensor(y[None]).float())) == pytest.approx(0, abs=1e-6)


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_degenerate_masks_by_hand() -> None:
    """A picture of 36 pixels, each of three answers beside each of three truths."""
    counts = [(*overlap(kinds()[a], kinds()[b]), int(kinds()[a].sum())) for a, b in PAIRS]
    inter, union, said = (np.array(part) for part in zip(*counts, strict=True))
    by_hand = [1, 0, 0, 0, 1, Fraction(1, 36), 0, Fraction(1, 36), 1]
    assert iou(inter, union).tolist() == [pytest.approx(float(one), rel=1e-15) for one in by_hand]
    scores, more = summarise(inter, union), generalised_scores(inter, union, said)
    miou, oiou = float(Fraction(3 * 36 + 2, 36 * 9)), float(Fraction(36 + 3, 5 * 36 + 1 + 2))
    assert (scores.miou, scores.oiou) == (pytest.approx(miou, rel=1e-15), pytest.approx(oiou, rel=1e-15))
    assert (more.giou, more.ciou) == (scores.miou, scores.oiou)
    assert scores.precision["P@0.5"] == pytest.approx(3 / 9) and more.precision["P@0.9"] == pytest.approx(2 / 6)
    assert (more.n_acc, more.t_acc) == (pytest.approx(1 / 3), pytest.approx(4 / 6))


def test_metrics_of_many_pixels_are_exact() -> None:
    """Sums beyond what float32 and float64 count one by one."""
    inter, union = [2**53 + 1, 3, 2**31], [2**54 + 6, 2**24 + 1, 2**31 + 1]
    exact = [Fraction(one, other) for one, other in zip(inter, union, strict=True)]
    scores = summarise(inter, union)
    assert scores.miou == pytest.approx(float(sum(exact) / 3), rel=1e-15)
    assert scores.oiou == pytest.approx(float(Fraction(sum(inter), sum(union))), rel=1e-15)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_correlation_of_scores_that_hardly_differ(kind: type) -> None:
    rng = np.random.RandomState(0)
    x = (0.5 + 1e-3 * rng.randn(50)).astype(kind)
    y = np.clip(0.3 + 40 * (x.astype(float) - 0.5) + 0.02 * rng.randn(50), 0, 1).astype(kind)
    a, b = ([Fraction(float(one)) for one in part] for part in (x, y))
    a, b = ([one - sum(part) / 50 for one in part] for part in (a, b))
    exact = float(sum(p * q for p, q in zip(a, b, strict=True))) / math.sqrt(
        float(sum(p * p for p in a)) * float(sum(q * q for q in b))
    )
    assert calibration(x, y).correlation == pytest.approx(exact, rel=1e-9)


# --- rewards --------------------------------------------------------------------------------------------------------


def plain_weights(label: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """One sample, bool (h, w): objects 0.8 in all, the rest 0.2, outlines half as much again."""
    object_ = label if truth is None else label | truth
    count = np.ones(label.shape)
    for row, column in np.ndindex(*label.shape):
        beside = object_[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        count[row, column] += 0.5 * bool((beside != object_[row, column]).any())
    front, back = count * object_, count * ~object_
    if not front.any() or not back.any():
        return count / count.sum()
    return 0.8 * front / front.sum() + 0.2 * back / back.sum()


def plain_entropy(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))


def plain_gain(label: np.ndarray, truth: np.ndarray, model: np.ndarray) -> np.ndarray:
    """What the label adds to the intersection, less the model's IoU for each cell it adds to the union."""
    p, y, q = (one.astype(float) for one in (label, truth, model))
    union_p, union_q = p + y - p * y, q + y - q * y
    known = ((q * y).sum((1, 2), keepdims=True) + 1) / (union_q.sum((1, 2), keepdims=True) + 1)
    return (p * y - q * y - known * (union_p - union_q)) / (union_p.sum((1, 2), keepdims=True) + 1)


def every(rule: Callable[..., np.ndarray], *parts: np.ndarray) -> np.ndarray:
    """A rule for one sample, over a batch."""
    return np.stack([rule(*one) for one in zip(*parts, strict=True)])


@FORMATS
def test_rewards(kind: torch.dtype) -> None:
    label, model, prior = maps(1, 3)
    truth, hard = maps(2)[0] > 0.5, label > 0.5
    rho = np.array([0.9, 0.0, 0.35])
    p, q, soft = (rounded(one, kind) for one in (label, model, prior))
    y, cut = torch.from_numpy(truth), torch.from_numpy(hard)
    counted = every(plain_weights, hard, truth)
    near(weights(cut, y), counted, kind)
    near(truth_reward(p, y), counted * (1 - 4 * (truth - label) ** 2), kind)
    near(gain_reward(p, y, q), plain_gain(label, truth, model), kind)
    alone = every(plain_weights, hard)
    agree = rho[:, None, None] * (1 - 2 * np.abs(prior - model)) - plain_entropy(label)
    near(agreement_reward(cut, soft, q, p, rounded(rho, kind)), alone * agree, kind)
    near(expected_gain(p, q), plain_gain(label, label, model).sum((1, 2)), kind)


@FORMATS
def test_one_step_utility(kind: torch.dtype) -> None:
    """Features come as the network has them, in bfloat16 too."""
    rng = np.random.RandomState(3)
    p, q = maps(4, 2)
    truth, label = p > 0.5, q > 0.5
    logits, features = rng.randn(*p.shape), rng.randn(3, 8, *p.shape[1:])
    f, z = torch.from_numpy(features).to(kind), rounded(logits, kind).float()
    balanced = truth / truth.sum((1, 2), keepdims=True) + ~truth / (~truth).sum((1, 2), keepdims=True)
    direction = np.einsum("bhw,bdhw->d", (sigmoid(logits) - truth) * balanced / 3, features)
    near(held_out_direction(z, f, torch.from_numpy(truth)), direction, kind)
    gain = (sigmoid(logits) - label) * np.einsum("bdhw,d->bhw", features, direction)
    useful = every(plain_weights, label) * (gain / np.abs(gain).mean()).clip(-3, 3)
    near(utility_reward(torch.from_numpy(label), z, f, torch.from_numpy(direction)), useful, kind)


@pytest.mark.parametrize("said, true", PAIRS)
def test_rewards_of_degenerate_masks(said: str, true: str) -> None:
    label, truth = kinds()[said][None], kinds()[true][None]
    cut, y = torch.from_numpy(label), torch.from_numpy(truth)
    counted = every(plain_weights, label, truth)
    near(weights(cut, y), counted)
    near(truth_reward(cut, y), counted * np.where(label == truth, 1, -3))
    near(gain_reward(cut, y, 1 - cut.float()), plain_gain(label, truth, ~label))
    f = torch.ones(1, 2, 6, 6)
    direction = held_out_direction(torch.zeros(1, 6, 6), f, y)
    by_hand = {"empty": 0.5, "full": -0.5, "one": 0.0}[true]  # sum of share x (1/2 - y)
    assert direction.tolist() == pytest.approx([by_hand] * 2, abs=1e-6)
    assert utility_reward(cut, torch.full((1, 6, 6), HUGE), f, direction).isfinite().all()
    agree = agreement_reward(cut, y.float(), cut.float(), cut.float(), torch.ones(1))
    near(agree, every(plain_weights, label) * (np.where(label == truth, 1, -1) - plain_entropy(label.astype(float))))


# --- the policy's gradient ------------------------------------------------------------------------------------------


def plain_estimate(
    cells: np.ndarray, samples: np.ndarray, reward: np.ndarray, take: np.ndarray, look: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """REINFORCE with a leave-one-out baseline for given actions: loss and its slopes."""
    count, batch = look.shape
    loss, d_cells, d_samples = 0.0, np.zeros_like(cells), np.zeros_like(samples)
    for b in range(batch):
        gained = take[:, b] * reward[b]
        worth = look[:, b] * gained.sum((1, 2))
        for k in range(count):
            others = [other for other in range(count) if other != k]
            credit = gained[k] - gained[others].mean(0)
            own = worth[k] - worth[others].mean()
            sign, side = 2 * take[k, b] - 1, 2 * look[k, b] - 1
            loss -= (credit * -np.logaddexp(0, -sign * cells[b])).sum() + own * -np.logaddexp(0, -side * samples[b])
            d_cells[b] -= credit * (take[k, b] - sigmoid(cells[b]))
            d_samples[b] -= own * (look[k, b] - sigmoid(samples[b]))
    share = batch * count
    return loss / share, d_cells / share, d_samples / share


@pytest.mark.parametrize("scale", [1.0, HUGE], ids=["usual", "huge"])
@pytest.mark.parametrize("worth", [1.0, HUGE], ids=["usual", "huge"])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_the_estimate_for_given_actions(kind: torch.dtype, worth: float, scale: float) -> None:
    rng = np.random.RandomState(5)
    cells, samples, reward = scale * rng.randn(3, 5, 4), scale * rng.randn(3), worth * rng.randn(3, 5, 4)
    draws = torch.Generator().manual_seed(6)
    take = (torch.rand(8, 3, 5, 4, generator=draws).numpy() < sigmoid(cells)).astype(float)
    look = (torch.rand(8, 3, generator=draws).numpy() < sigmoid(samples)).astype(float)
    z, s = (torch.from_numpy(one).to(kind).requires_grad_() for one in (cells, samples))
    again = torch.Generator().manual_seed(6)
    found = policy_gradient(z, s, torch.from_numpy(reward).to(kind), count=8, generator=again)
    loss, d_cells, d_samples = plain_estimate(cells, samples, reward, take, look)
    near(found.loss, loss, kind)
    for slope, expected in zip(torch.autograd.grad(found.loss, (z, s)), (d_cells, d_samples), strict=True):
        near(slope, expected, kind)
    near(found.sample_value, (take * reward).sum((2, 3)).mean(0), kind)


@FORMATS
def test_the_estimate_in_closed_form(kind: torch.dtype) -> None:
    rng = np.random.RandomState(7)
    cells, samples, reward = 3 * rng.randn(3, 5, 4), rng.randn(3), 0.5 + rng.randn(3, 5, 4)
    z, s = (rounded(one, kind).requires_grad_() for one in (cells, samples))
    found = exact_gradient(z, s, rounded(reward, kind))
    p, own = sigmoid(cells), (sigmoid(cells) * reward).sum((1, 2))
    near(found.loss, -(own + sigmoid(samples) * own).mean(), kind)
    expected = -p * (1 - p) * reward / 3, -sigmoid(samples) * sigmoid(-samples) * own / 3
    for slope, wanted in zip(torch.autograd.grad(found.loss, (z, s)), expected, strict=True):
        near(slope, wanted, kind)


@FORMATS
def test_coverage_is_met_in_every_format(kind: torch.dtype) -> None:
    rng = np.random.RandomState(8)
    for field in (rng.randn(400), 30 * rng.randn(400), np.full(9, -HUGE), np.full(9, HUGE), HUGE * rng.randn(400)):
        for low, high in ((0.3, 0.35), (0.8, 0.98)):
            z = rounded(field, kind)
            z.requires_grad_()
            moved = project(z, low, high)
            mean = float(moved.detach().double().sigmoid().mean())
            assert low - 2e-3 <= mean <= high + 2e-3  # 1e4 is kept to 1e-3 in float32; else 1e-6
            if abs(field).max() < 200:
                assert low - 1e-6 <= mean <= high + 1e-6
            (slope,) = torch.autograd.grad(moved.sum(), z)
            assert slope.isfinite().all()
    assert coverage_shift(torch.tensor([HUGE]), 0.2, 0.4, torch.zeros(1)) == 0


def test_entropy_and_divergence_of_any_logit() -> None:
    z = np.array([-HUGE, -88, -20, -3, -1e-3, 0, 0.7, 15, 88, HUGE])
    expected = np.logaddexp(0, -np.abs(z)) + np.abs(z) * sigmoid(-np.abs(z))
    logits = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    found = bernoulli_entropy(logits)
    assert found.tolist() == pytest.approx(expected, abs=4e-6)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    assert slope.tolist() == pytest.approx(-z * sigmoid(z) * sigmoid(-z), abs=4e-6)
    apart = divergence(logits, ACCEPT)
    assert apart.tolist() == pytest.approx(np.logaddexp(0, ACCEPT) - ACCEPT * sigmoid(z) - expected, abs=1e-5)
    (slope,) = torch.autograd.grad(apart.sum(), logits)
    assert slope.isfinite().all() and (apart >= -1e-5).all()


def test_a_choice_among_extremes_and_equal_rewards() -> None:
    odds = torch.tensor([HUGE, -HUGE, 0.0, HUGE / 2, -HUGE / 2])
    for seed in range(20):
        assert choose(odds, 3, generator=torch.Generator().manual_seed(seed)).tolist() == [0, 3, 2]
    reward = torch.full((4, 2, 3), HUGE)
    reward[0, 0, 0] += 1
    near(leave_one_out(reward)[:, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3], times=1e3)  # of 1e4, float32 keeps 1e-3
    assert not leave_one_out(reward)[:, 1].any()


@FORMATS
def test_the_policy_network(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    policy = AcceptancePolicy(words=6).eval()
    with torch.no_grad():
        for one in policy.parameters():
            one.add_(0.3 * torch.randn_like(one))
    rng = np.random.RandomState(9)
    parts = rng.randn(4, MAPS, 6, 6), rng.randn(4, FACTS), rng.randn(4, 6)
    label = torch.from_numpy(parts[0][:, 1] > 0)
    expected = copy.deepcopy(policy).double()(State(*map(torch.from_numpy, parts), label))
    used = policy.double() if kind == torch.float64 else policy
    found = used(State(*(rounded(one, kind) for one in parts), label))
    for one, other in zip(found, expected, strict=True):
        near(one, other.detach().numpy(), kind)


# --- SESM -----------------------------------------------------------------------------------------------------------


@FORMATS
def test_what_sesm_measures(kind: torch.dtype) -> None:
    a, b = maps(10, 2)
    p, q = rounded(a, kind), rounded(b, kind)
    same = np.minimum(a, b).sum((1, 2)) / np.maximum(a, b).sum((1, 2))
    near(soft_iou(p, q), same, kind)
    near(agreement(p, q) + 2, 4 * same, kind)
    near(fill(p), 4 * (a * a).sum((1, 2)) / a.sum((1, 2)) - 2, kind)
    near(entropy(p), plain_entropy(a), kind)
    near(to_logit(p), logit(a, 1e-6).clip(-4, 4), kind)
    z, y = logit(a, 0), logit(b, 0)
    found = outlined(rounded(z, kind), [(rounded(y, kind), 2.0), (rounded(-z, kind), 4.0)])
    near(found, plain_outlined(z, [(y, 2), (-z, 4)]), kind)


def plain_outlined(z: np.ndarray, voices: list[tuple[np.ndarray, float]]) -> np.ndarray:
    out = np.empty_like(z)
    for n, own in enumerate(z):
        total, weight = 0.05 * own, 0.05
        for said, counts in voices:
            either = ((own > 0) | (said[n] > 0)).sum()
            overlap = ((own > 0) & (said[n] > 0)).sum() / either if either else 1.0
            share = counts * sigmoid((overlap - 0.6) / 0.1)
            total, weight = total + share * said[n], weight + share
        out[n] = total / weight
    return out


@pytest.mark.parametrize("said, true", PAIRS)
def test_what_sesm_measures_of_degenerate_maps(said: str, true: str) -> None:
    a, b = kinds()[said], kinds()[true]
    one, other = (torch.from_numpy(part[None]) for part in (a, b))
    both, either = int((a & b).sum()), int((a | b).sum())
    assert hard_iou(one, other).item() == pytest.approx(both / either if either else 1.0)
    assert soft_iou(one.float(), other.float()).item() == pytest.approx(both / either if either else 0.0)
    assert fill(one.float()).item() == pytest.approx(2.0 if a.any() else -2.0)
    z = torch.where(other, HUGE, -HUGE).requires_grad_()
    near(alike(z, torch.where(one, 1.0, -1.0)), [sigmoid(((both / either if either else 1.0) - 0.6) / 0.1)])
    drawn = outlined(z, [(torch.where(one, 1.0, -1.0), torch.tensor([0.4]))])
    near(drawn, plain_outlined(np.where(b, HUGE, -HUGE)[None], [(np.where(a, 1.0, -1.0)[None], 0.4)]))
    drawn.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()


def fused(kind: str) -> tuple[Any, tuple[Tensor, ...]]:
    """SESM's answer about six pairs whose every judge has moved: an empty, a full and a soft prior, none, and logits
    without bound. With `bfloat16` as it is inside a network of that precision."""
    torch.manual_seed(0)
    sesm = SESM(width=8).eval()
    with torch.no_grad():
        for one in sesm.parameters():
            one.add_(0.02 * torch.randn_like(one))
    p, q, m = (torch.from_numpy(one).float() for one in maps(11, 3, batch=6))
    p[0], p[1] = 0, 1
    q, m = torch.logit(q), torch.logit(m)
    q[2], m[2], q[3], m[3] = HUGE, -HUGE, -HUGE, HUGE
    given = Proposals(p, torch.tensor([0.0, 1.0, 0.7, 0.4, 0.9, 0.6]), torch.tensor([True] * 5 + [False]))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
        return sesm.fuse(sesm.reliability(given, q), given, q, m), (p, q, m)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_fused_proposal_is_a_log_linear_pool(kind: str) -> None:
    found, (p, q, m) = fused(kind)
    present = np.array([1.0] * 5 + [0])[:, None, None]
    voices = [logit(p.double().numpy(), 1e-6).clip(-4, 4) * present, q.numpy().clip(-6, 6), m.numpy().clip(-6, 6)]
    share = found.weights.detach().double().numpy()[:, :, None, None]
    pooled = sum(share[:, k] * voice for k, voice in enumerate(voices)) + share[:, 3]
    near(found.fused, pooled)
    for one in (found.answer, found.rho, found.kappa, found.alone, found.score):
        assert one.isfinite().all()


def test_bfloat16_around_sesm_changes_nothing() -> None:
    (narrow, _), (wide, _) = fused("bfloat16"), fused("float32")
    for one in dataclasses.fields(wide):
        assert torch.equal(getattr(narrow, one.name), getattr(wide, one.name))


def plain_calibrated(score: np.ndarray, reached: np.ndarray) -> tuple[float, float]:
    """The same line by Newton's method with the true Hessian, damped."""
    odds = logit(score, 0.02)
    middle = odds.mean()
    facts = np.stack([odds - middle, np.ones_like(odds)], 1)
    start = np.array([1.0, middle])
    line = start.copy()
    for _ in range(300):
        p = sigmoid(facts @ line)
        step = facts.T @ (p - reached) + line - start
        line -= 0.5 * np.linalg.solve((facts * (p * (1 - p))[:, None]).T @ facts + np.eye(2), step)
    return line[0], line[1] - line[0] * middle


@pytest.mark.parametrize("case", ["many", "one", "alike", "never", "always", "extreme"])
def test_calibration_of_few_and_strange_labels(case: str) -> None:
    rng = np.random.RandomState(12)
    score, reached = {
        "many": (rng.rand(40), rng.rand(40)), "one": (np.array([0.5]), np.array([1.0])),
        "alike": (np.full(9, 0.8), rng.rand(9)), "never": (rng.rand(20), np.zeros(20)),
        "always": (rng.rand(20), np.ones(20)), "extreme": (np.array([0.0, 1, 0, 1]), np.array([1.0, 0, 0, 1])),
    }[case]  # fmt: skip
    expected = plain_calibrated(score, reached)
    for kind, close in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        found = calibrated(torch.from_numpy(score).to(kind), torch.from_numpy(reached).to(kind))
        assert found == pytest.approx(expected, abs=close)
    assert calibrated(torch.empty(0), torch.empty(0)) == (1, 0)
