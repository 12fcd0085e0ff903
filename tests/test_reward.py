from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from l2l.labelling.reward import (
    agreement_reward,
    boundary,
    gain_reward,
    held_out_direction,
    truth_reward,
    utility_reward,
    weights,
)

masks = hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))


def naive_boundary(mask: np.ndarray) -> np.ndarray:
    out = np.zeros_like(mask)
    for sample, row, column in np.ndindex(mask.shape):
        near = mask[sample, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        out[sample, row, column] = bool((near != mask[sample, row, column]).any())
    return out


@given(masks)
def test_the_boundary_is_that_of_a_plain_search(mask: np.ndarray) -> None:
    assert np.array_equal(boundary(torch.from_numpy(mask)).numpy(), naive_boundary(mask))


@given(masks, st.integers(0, 99), st.floats(0.01, 0.99), st.floats(0, 2))
def test_weights_sum_to_one(mask: np.ndarray, seed: int, background: float, edge: float) -> None:
    label = torch.from_numpy(mask)
    truth = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    for count in (
        weights(label, background=background, edge=edge), weights(label, truth, background=background, edge=edge),
    ):  # fmt: skip
        assert (count > 0).all()
        assert torch.allclose(count.sum((1, 2)), torch.ones(len(mask)), atol=1e-5)


def test_weights_favour_objects_and_outlines() -> None:
    label, truth = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    label[:, 1:6, 1:6] = True
    truth[:, 1:6, 1:8] = True
    count = weights(label, truth, background=0.1, edge=0.5)[0]
    inside, missed, outline, far = count[3, 3], count[3, 6], count[1, 1], count[8, 8]
    object_ = (label | truth)[0]
    assert float(count[object_].sum()) == pytest.approx(0.9) and float(count[~object_].sum()) == pytest.approx(0.1)
    assert inside > far
    assert float(missed / inside) == pytest.approx(1)  # what the label misses counts as much as what it finds
    assert float(outline / inside) == pytest.approx(1.5)
    assert weights(label)[0, 3, 6] < weights(label)[0, 3, 3] / 5  # without the truth it is background


@given(st.floats(0.1, 9))
def test_accepting_breaks_even_where_the_docstring_says(wrong: float) -> None:
    label = torch.ones(1, 4, 4, dtype=torch.bool)
    right, lost = truth_reward(label, label, wrong=wrong), truth_reward(label, ~label, wrong=wrong)
    assert (right > 0).all() and (lost < 0).all()
    assert float(right.sum()) == pytest.approx(1) and float(lost.sum()) == pytest.approx(-wrong, rel=1e-4)
    chance = wrong / (1 + wrong)
    assert float((chance * right + (1 - chance) * lost).sum()) == pytest.approx(0, abs=1e-5)


def test_signs_follow_the_truth_pixel_by_pixel() -> None:
    rng = torch.Generator().manual_seed(0)
    label, truth = torch.rand(2, 3, 8, 8, generator=rng) < 0.5
    reward = truth_reward(label, truth)
    assert torch.equal(reward > 0, label == truth)
    assert not (reward == 0).any()


def test_a_soft_label_is_worth_what_it_knows() -> None:
    truth = torch.tensor([[[True, True, True, True]]])
    label = torch.tensor([[[1.0, 0.9, 0.5, 0.1]]])
    reward = truth_reward(label, truth) / weights(label > 0.5, truth)
    assert torch.allclose(reward, torch.tensor([[[1.0, 0.96, 0.0, -2.24]]]), atol=1e-5)
    for p in (0.2, 0.5, 0.7, 0.95):  # what is calibrated is worth accepting, however unsure
        soft = torch.full((1, 1, 1), p)
        right, wrong = (float(truth_reward(soft, torch.tensor([[[one]]]))) for one in (True, False))
        assert p * right + (1 - p) * wrong >= -1e-6


def layer(batch: int = 3, side: int = 6, width: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(features, weights of a last layer, logits, random labels)."""
    rng = torch.Generator().manual_seed(3)
    features = torch.randn(batch, width, side, side, generator=rng)
    linear = torch.randn(width, generator=rng).requires_grad_()
    logits = torch.einsum("bdhw,d->bhw", features, linear) - 0.4
    return features, linear, logits, torch.rand(batch, side, side, generator=rng) < 0.4


def balanced(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy in which foreground and background of each sample weigh the same."""
    total = torch.zeros(())
    for row, target in zip(logits, truth, strict=True):
        each = F.binary_cross_entropy_with_logits(row, target.float(), reduction="none")
        total = total + sum(each[part].mean() for part in (target, ~target) if part.any())
    return total / len(logits)


@pytest.mark.parametrize("without", ["nothing", "foreground", "background"])
def test_the_direction_is_the_gradient_of_the_balanced_loss(without: str) -> None:
    features, linear, logits, truth = layer()
    if without != "nothing":
        truth[1] = without == "background"
    (true,) = torch.autograd.grad(balanced(logits, truth), linear)
    assert torch.allclose(held_out_direction(logits.detach(), features, truth), true, atol=1e-6)


def test_utility_is_the_inner_product_of_two_gradients() -> None:
    features, linear, logits, label = layer()
    held = layer(batch=2)
    direction = held_out_direction(held[2].detach(), held[0], held[3])
    gain = torch.empty(label.shape)
    for place in np.ndindex(*label.shape):
        loss = F.binary_cross_entropy_with_logits(logits[place], label[place].float())
        (own,) = torch.autograd.grad(loss, linear, retain_graph=True)
        gain[place] = own @ direction
    expected = weights(label) * (gain / gain.abs().mean()).clamp(-3, 3)
    found = utility_reward(label, logits.detach(), features, direction)
    assert torch.allclose(found, expected, atol=1e-6)
    assert (found < 0).any() and (found > 0).any()
    # a larger network's gradients are not worth more
    assert torch.allclose(utility_reward(label, logits.detach(), features, 50 * direction), found, atol=1e-6)


def test_a_step_along_useful_pixels_lowers_the_held_out_loss() -> None:
    features, linear, logits, label = layer()
    held_features, _, _, truth = layer(batch=2)

    def held(vector: Tensor) -> Tensor:
        return balanced(torch.einsum("bdhw,d->bhw", held_features, vector) - 0.4, truth)

    held_logits = (torch.einsum("bdhw,d->bhw", held_features, linear) - 0.4).detach()
    direction = held_out_direction(held_logits, held_features, truth)
    useful = utility_reward(label, logits.detach(), features, direction) > 0
    each = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
    losses = {}
    for name, chosen in (("useful", useful), ("harmful", ~useful)):
        (step,) = torch.autograd.grad(each[chosen].sum(), linear, retain_graph=True)
        losses[name] = float((held(linear - 0.01 * step / step.norm()) - held(linear)).detach())
    assert losses["useful"] < 0 < losses["harmful"]


def test_utility_without_a_direction_is_zero() -> None:
    features, _, logits, label = layer()
    assert not utility_reward(label, logits.detach(), features, torch.zeros(5)).any()


@given(st.integers(0, 10_000))
def test_agreement_stays_in_its_bounds(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    maps = torch.rand(3, 4, 5, 5, generator=rng).round(decimals=1)  # some are 0 and 1
    rho, label = torch.rand(4, generator=rng), torch.rand(4, 5, 5, generator=rng) < 0.5
    each = agreement_reward(label, maps[0], maps[1], maps[2], rho) / weights(label)
    assert each.isfinite().all()
    assert (each <= rho[:, None, None] + 1e-4).all() and (each >= -rho[:, None, None] - 1 - 1e-4).all()
    assert (agreement_reward(label, maps[0], maps[1], maps[2], torch.zeros(4)) <= 0).all()  # no prior, nothing gained


def test_agreement_is_what_it_says() -> None:
    label, sure = torch.ones(1, 4, 4, dtype=torch.bool), torch.ones(1, 4, 4)
    half = torch.full((1, 4, 4), 0.5)

    def worth(proposal: Tensor, model: Tensor, fused: Tensor, rho: float) -> float:
        return float(agreement_reward(label, proposal, model, fused, torch.tensor([rho])).sum())

    assert worth(sure, sure, sure, 0.8) == pytest.approx(0.8, abs=1e-4)  # both say the same and are sure
    assert worth(sure, 0 * sure, sure, 0.8) == pytest.approx(-0.8, abs=1e-4)  # they contradict one another
    assert worth(sure, half, sure, 0.8) == pytest.approx(0, abs=1e-4)
    assert worth(sure, sure, half, 0.8) == pytest.approx(-0.2, abs=1e-4)  # a label at 0.5 costs one bit


@given(st.integers(0, 10_000), st.floats(0, 1), st.booleans())
def test_a_gain_is_the_iou_that_the_model_does_not_have(seed: int, share: float, hard: bool) -> None:
    """Over the cells of a sample it sums to the soft IoU of the label less that of the model, one cell added."""
    rng = torch.Generator().manual_seed(seed)
    label, known, truth = torch.rand(3, 2, 5, 6, generator=rng)
    y = truth < share
    if hard:
        label, known = (label > 0.5).float(), (known > 0.5).float()

    def iou(p: torch.Tensor) -> torch.Tensor:
        both = (p * y).sum((1, 2))
        return (both + 1) / ((p + y.float()).sum((1, 2)) - both + 1)

    gain = gain_reward(label, y, known)
    assert torch.allclose(gain.sum((1, 2)), iou(label) - iou(known), atol=1e-5)
    assert gain_reward(known, y, known).eq(0).all()  # nothing new, nothing gained


@pytest.mark.parametrize("right, pays", [(10, False), (30, True), (50, True)])
def test_of_a_poor_answer_cells_pay_that_are_wrong_more_often_than_right(right: int, pays: bool) -> None:
    """The model meets 50 cells of 150, and 50 more: IoU 1/4. So what is added pays if one cell of five is right."""
    y, known = torch.zeros(2, 300)
    y[:150], known[100:200] = 1, 1
    label = known.clone()
    label[:right] = 1
    label[200 : 300 - right] = 1  # of a hundred, or fewer, that are added
    gain = gain_reward(label.view(1, 10, 30), y.view(1, 10, 30) > 0, known.view(1, 10, 30))
    assert (float(gain.sum()) > 0) == pays


def test_a_threshold_refuses_what_has_most_to_teach() -> None:
    """Label and model agree on the left and are right; on the right the label is unsure, and better than the model."""
    truth = torch.tensor([[[True, True, False, False]]])
    label, model = torch.tensor([[[0.95, 0.65, 0.05, 0.35]]]), torch.tensor([[[0.95, 0.2, 0.05, 0.8]]])
    gain = gain_reward(label, truth, model)
    assert torch.equal(gain[0, 0] > 0, torch.tensor([False, True, False, True]))
