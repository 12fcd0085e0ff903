from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from l2l.labelling.policy import ACCEPT, DOUBT, FACTS, MAPS, AcceptancePolicy, State, expected_gain
from l2l.labelling.reward import gain_reward
from l2l.labelling.rple import (
    Rple,
    bernoulli_entropy,
    choose,
    coverage_shift,
    divergence,
    exact_gradient,
    leave_one_out,
    policy_gradient,
    project,
)  # fmt: skip

CELLS = torch.tensor([[[0.4, -1.2], [1.1, -0.3]], [[0.0, 2.0], [-0.7, 0.5]]])
SAMPLES = torch.tensor([0.3, -0.8])
REWARD = torch.tensor([[[0.5, -1.0], [0.2, 0.8]], [[-0.3, 0.6], [1.0, -0.9]]])

logits = hnp.arrays("float64", st.integers(1, 30), elements=st.floats(-30, 30)).map(torch.from_numpy)
shares = st.floats(0.02, 0.98)


def enumerated(cells: Tensor, samples: Tensor, reward: Tensor) -> Tensor:
    """The objective, from the probability and the worth of every action there is; mean over samples."""
    total = torch.zeros(())
    for look, rates, worths in zip(samples.sigmoid(), cells.sigmoid(), reward, strict=True):
        rates, worths = rates.flatten(), worths.flatten()
        for choice in product((0.0, 1.0), repeat=len(rates)):
            action = torch.tensor(choice)
            chance = torch.where(action > 0, rates, 1 - rates).prod()
            worth = (action * worths).sum()
            # The cells are judged as if the sample was looked at, the sample for what its cells bring.
            total = total + chance * worth + chance.detach() * look * worth
    return total / len(samples)


def one_sum(cells: Tensor, samples: Tensor, reward: Tensor, *, count: int, generator: torch.Generator) -> Tensor:
    """The rival: every decision of a sample is credited with the sample's whole reward."""
    rate = cells.detach().sigmoid()
    take = (torch.rand(count, *cells.shape, generator=generator) < rate).float()
    advantage = leave_one_out((take * reward).sum((2, 3)))
    log_cells = take * cells.sigmoid().log() + (1 - take) * (1 - cells.sigmoid()).log()
    return -(advantage * log_cells.sum((2, 3))).mean()


def test_the_estimate_is_unbiased() -> None:
    cells, samples = CELLS.clone().requires_grad_(), SAMPLES.clone().requires_grad_()
    true = torch.autograd.grad(enumerated(cells, samples, REWARD), (cells, samples))
    rng = torch.Generator().manual_seed(0)
    # Many estimates at once: copies of the batch, whose gradients do not meet. `loss` is a mean over the batch.
    copies, count = 6000, 4
    wide_cells = CELLS.repeat(copies, 1, 1).requires_grad_()
    wide_samples = SAMPLES.repeat(copies).requires_grad_()
    outcome = policy_gradient(wide_cells, wide_samples, REWARD.repeat(copies, 1, 1), count=count, generator=rng)
    found = torch.autograd.grad(-outcome.loss * copies, (wide_cells, wide_samples))
    for estimates, exact in zip(found, true, strict=True):
        estimates = estimates.unflatten(0, (copies, 2))
        error = estimates.std(0) / copies**0.5
        assert (error < 0.02).all()  # or the next line would let anything pass
        assert ((estimates.mean(0) - exact).abs() < 4.5 * error).all()


def test_the_closed_form_is_the_objective() -> None:
    cells, samples = CELLS.clone().requires_grad_(), SAMPLES.clone().requires_grad_()
    true = torch.autograd.grad(enumerated(cells, samples, REWARD), (cells, samples))
    found = torch.autograd.grad(-exact_gradient(cells, samples, REWARD).loss, (cells, samples))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, true, strict=True))


def test_values_are_those_of_the_rewards() -> None:
    rng = torch.Generator().manual_seed(1)
    outcome = policy_gradient(CELLS, SAMPLES, REWARD, count=20_000, generator=rng)
    expected = (CELLS.sigmoid() * REWARD).sum((1, 2))
    spread = (CELLS.sigmoid() * (1 - CELLS.sigmoid()) * REWARD**2).sum((1, 2)).sqrt()
    assert torch.allclose(outcome.sample_value, expected, atol=float(5 * spread.max() / 20_000**0.5))
    assert float(outcome.spread) == pytest.approx(float(spread.mean()), rel=0.03)


def test_local_credit_varies_far_less() -> None:
    rng = torch.Generator().manual_seed(2)
    cells = torch.randn(1, 16, 16, generator=rng)
    reward = torch.randn(1, 16, 16, generator=rng) / 256
    samples = torch.zeros(1)
    kinds: dict[str, list[Tensor]] = {"local": [], "one sum": []}
    for _ in range(120):
        mine = cells.clone().requires_grad_()
        loss = policy_gradient(mine, samples, reward, count=8, generator=rng).loss
        kinds["local"].append(torch.autograd.grad(loss, mine)[0])
        loss = one_sum(mine, samples, reward, count=8, generator=rng)
        kinds["one sum"].append(torch.autograd.grad(loss, mine)[0])
    found = {name: torch.stack(gradients) for name, gradients in kinds.items()}
    variance = {name: float(gradients.var(0).mean()) for name, gradients in found.items()}
    assert variance["one sum"] > 50 * variance["local"]
    exact = -(cells.sigmoid() * (1 - cells.sigmoid()) * reward)  # both mean the same
    for name, gradients in found.items():
        off = (gradients.mean(0) - exact) / (gradients.std(0) / len(gradients) ** 0.5).clamp_min(1e-9)
        assert float((off**2).mean()) < 1.6, name


def test_the_baseline_helps_where_chances_are_even() -> None:
    """It does for chances of 2/3 and less: above, (2 pi - 1)^2 exceeds (1 - pi)^2 and no baseline would vary less."""
    cells, reward = torch.zeros(1, 6, 6), torch.ones(1, 6, 6)
    rng, with_it, without = torch.Generator().manual_seed(3), [], []
    for _ in range(200):
        mine = cells.clone().requires_grad_()
        loss = policy_gradient(mine, torch.zeros(1), reward, count=8, generator=rng).loss
        with_it.append(torch.autograd.grad(loss, mine)[0])
        take = (torch.rand(8, 1, 6, 6, generator=rng) < cells.sigmoid()).float()
        without.append(-(take * reward * (take - cells.sigmoid())).mean(0))  # d log pi / d logit = a - pi
    assert float(torch.stack(without).mean()) == pytest.approx(float(torch.stack(with_it).mean()), rel=0.05)
    assert torch.stack(with_it).var(0).mean() < 0.5 * torch.stack(without).var(0).mean()


def test_a_draw_depends_on_its_generator_alone() -> None:
    first, again, other = (
        policy_gradient(CELLS, SAMPLES, REWARD, count=4, generator=torch.Generator().manual_seed(seed)).loss
        for seed in (5, 5, 6)
    )
    assert first == again != other


@given(hnp.arrays("float64", st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(-5, 5)))
def test_leave_one_out_is_the_distance_to_the_others(values: object) -> None:
    reward = torch.as_tensor(values)
    count = len(reward)
    plain = [reward[k] - torch.cat([reward[:k], reward[k + 1 :]]).mean(0) for k in range(count)]
    assert torch.allclose(leave_one_out(reward), torch.stack(plain), atol=1e-9)


def test_equal_actions_have_no_advantage() -> None:
    assert not leave_one_out(torch.full((5, 3), 0.7)).abs().gt(1e-6).any()
    sure, rng = torch.full((1, 2, 2), 40.0, requires_grad=True), torch.Generator().manual_seed(0)
    loss = policy_gradient(sure, torch.tensor([40.0]), torch.ones(1, 2, 2), count=4, generator=rng).loss
    assert not torch.autograd.grad(loss, sure)[0].any()


@given(logits, shares, shares)
def test_the_mean_lands_in_the_band(field: Tensor, one: float, other: float) -> None:
    low, high = sorted((one, other))
    now = float(field.sigmoid().mean())
    shift = coverage_shift(field, low, high)
    mean = float((field + shift).sigmoid().mean())
    assert low - 1e-6 <= mean <= high + 1e-6
    if low <= now <= high:
        assert shift == 0
    else:  # nearest: it stops at the band's border
        assert mean == pytest.approx(low if now < low else high, abs=1e-6)
        assert (shift > 0) == (now < low)


@given(logits, shares, shares, st.floats(0.01, 3))
def test_the_shift_falls_as_the_logits_rise(field: Tensor, one: float, other: float, rise: float) -> None:
    low, high = sorted((one, other))
    assert coverage_shift(field + rise, low, high) <= coverage_shift(field, low, high) + 1e-6
    assert coverage_shift(field, low, high) <= coverage_shift(field, high, high) + 1e-6


@given(logits, shares, st.data())
def test_weights_count_as_repetitions(field: Tensor, target: float, data: st.DataObject) -> None:
    weight = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(field), max_size=len(field))))
    shift = coverage_shift(field, target, target, weight.double())
    if weight.sum() == 0:
        assert shift == 0
    else:
        repeated = field.repeat_interleave(weight)
        assert float((repeated + shift).sigmoid().mean()) == pytest.approx(target, abs=1e-6)


def test_shifts_of_extreme_fields() -> None:
    for field in (torch.full((9,), -30.0), torch.full((9,), 30.0), torch.tensor([-30.0] * 4 + [30.0] * 5)):
        shift = coverage_shift(field, 0.3, 0.4)
        assert shift.isfinite() and shift.dtype == field.dtype
        assert 0.3 - 1e-4 <= float((field + shift).sigmoid().mean()) <= 0.4 + 1e-4
    assert coverage_shift(torch.zeros(3), 0.9, 0.95, torch.zeros(3)) == 0
    assert torch.equal(project(torch.zeros(3), 0.9, 0.95, torch.zeros(3)), torch.zeros(3))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("band", [(0.7, 0.9), (0.1, 0.3), (0.2, 0.9)])
def test_the_projection_has_the_gradient_of_a_fresh_solve(band: tuple[float, float], weighted: bool) -> None:
    rng = torch.Generator().manual_seed(4)
    field = torch.randn(7, generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 0.0], dtype=torch.float64) if weighted else None
    outside = torch.randn(7, generator=rng, dtype=torch.float64)
    (found,) = torch.autograd.grad((outside * project(field, *band, weight).sigmoid()).sum(), field)
    small = 1e-5
    for place in range(7):
        ends = []
        for sign in (1, -1):
            moved = field.detach().clone()
            moved[place] += sign * small
            ends.append(float((outside * (moved + coverage_shift(moved, *band, weight)).sigmoid()).sum()))
        assert float(found[place]) == pytest.approx((ends[0] - ends[1]) / (2 * small), abs=1e-8)


def test_an_active_constraint_takes_away_what_all_share() -> None:
    field = torch.linspace(-2, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    tilt = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)

    def gradient(reward: Tensor, low: float, high: float) -> Tensor:
        return torch.autograd.grad((reward * project(field, low, high).sigmoid()).sum(), field)[0]

    same = torch.full((3, 4), 0.8, dtype=torch.float64)
    assert gradient(same, 0.1, 0.9).abs().min() > 0.05  # inside the band, more is better
    assert gradient(same, 0.7, 0.9).abs().max() < 1e-12
    assert torch.allclose(gradient(tilt + 5, 0.7, 0.9), gradient(tilt, 0.7, 0.9), atol=1e-12)
    assert gradient(tilt, 0.7, 0.9).abs().max() > 0.01


@given(st.floats(-60, 60))
def test_entropy_is_the_definition(logit: float) -> None:
    value = torch.tensor(logit, dtype=torch.float64)
    p, q = value.sigmoid(), (-value).sigmoid()
    assert float(bernoulli_entropy(value)) == pytest.approx(float(-p * p.log() - q * q.log()), abs=1e-8)
    assert bernoulli_entropy(torch.tensor([0.0, 300.0, -300.0])).tolist() == pytest.approx([0.693147, 0, 0], abs=1e-5)


def state_of(batch: int, *, seed: int = 0, side: int = 8) -> State:
    rng = torch.Generator().manual_seed(seed)
    maps = torch.rand(batch, MAPS, side, side, generator=rng)
    return State(
        maps, torch.rand(batch, FACTS, generator=rng), torch.randn(batch, 6, generator=rng), maps[:, 1] > 0.6
    )


BANDS = ((0.4, 0.6), (0.7, 0.8), (0.9, 0.95))


def rple_of(bands: tuple[tuple[float, float], ...] = BANDS, *, bias: float = 0.0) -> Rple:
    torch.manual_seed(0)
    rple = Rple(policy=AcceptancePolicy(words=6), bands=bands, memory=32)
    with torch.no_grad():  # a policy that went astray: it accepts nothing, or all
        rple.policy.pixel.bias.fill_(bias)
        rple.policy.sample[-1].bias.fill_(bias)
        rple.policy.pixel.weight.normal_(std=0.5)
    return rple


@pytest.mark.parametrize("bias", [-25.0, 0.0, 25.0])
def test_coverage_of_the_pool_is_guaranteed(bias: float) -> None:
    rple, held = rple_of(bias=bias), 3
    for step in range(4):
        state = state_of(11, seed=step)
        cells, samples = rple.judge(state, remember=slice(held, None))
        pool, label = cells[held:].detach().sigmoid(), state.label[held:]
        assert 0.7 - 1e-3 <= float(pool[label].mean()) <= 0.8 + 1e-3
        assert 0.9 - 1e-3 <= float(pool[~label].mean()) <= 0.95 + 1e-3
        if step == 0:  # later, those of the steps before count too
            assert 0.4 - 1e-3 <= float(samples[held:].detach().sigmoid().mean()) <= 0.6 + 1e-3
    fresh = rple.policy(state_of(11, seed=3))[1].detach()
    assert torch.allclose(rple.recent[:8], fresh[held:])
    assert rple.recent.isnan().sum() == 0 and len(rple.recent) == 32
    assert (rple.shift * bias <= 0).all()


def test_the_sample_band_is_over_recent_samples() -> None:
    rple = rple_of(((0.5, 0.5), (0.01, 0.99), (0.01, 0.99)))
    everyone = torch.empty(0)
    for step in range(4):
        state = state_of(8, seed=step)
        before = rple.recent[~rple.recent.isnan()].clone()
        raw, samples = rple.policy(state)[1].detach(), rple.judge(state)[1].detach()
        shift = (samples - raw).mean()
        everyone = torch.cat([raw, before])
        assert float((everyone + shift).sigmoid().mean()) == pytest.approx(0.5, abs=1e-4)
    assert len(everyone) == 32


def test_without_foreground_nothing_breaks() -> None:
    rple, state = rple_of(bias=-5.0), state_of(4)
    empty = State(state.maps, state.facts, state.sentence, torch.zeros_like(state.label))
    cells, samples = rple.judge(empty)
    (cells.sum() + samples.sum()).backward()
    assert cells.isfinite().all() and float(cells.detach().sigmoid().mean()) == pytest.approx(0.9, abs=1e-3)
    assert all(one.grad is None or one.grad.isfinite().all() for one in rple.parameters())


def test_deciding_uses_the_stored_shift_and_changes_nothing() -> None:
    rple = rple_of()
    for step in range(3):
        rple.judge(state_of(6, seed=step))
    rple.shift.copy_(torch.tensor([0.5, -1.0, 2.0]))
    before, state = copy.deepcopy(rple.state_dict()), state_of(5, seed=9)
    cells, samples = rple.decide(state)
    raw_cells, raw_samples = rple.policy.eval()(state)
    assert torch.allclose(samples, (raw_samples + 0.5).sigmoid())
    assert torch.allclose(cells[state.label], (raw_cells - 1)[state.label].sigmoid())
    assert torch.allclose(cells[~state.label], (raw_cells + 2)[~state.label].sigmoid())
    alone = rple.decide(state[2:3])  # each sample by itself
    assert torch.allclose(alone[0], cells[2:3], atol=1e-6) and torch.allclose(alone[1], samples[2:3], atol=1e-6)
    after = rple.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].nan_to_num(9), after[name].nan_to_num(9)) for name in before)
    assert not cells.requires_grad and not samples.requires_grad


def test_the_other_rules_accept_by_confidence() -> None:
    state = state_of(6)
    fixed = Rple(policy=AcceptancePolicy(words=6), bands=BANDS, rule="threshold", threshold=0.9)
    cells, samples = fixed.decide(state)
    assert torch.equal(cells > 0, state.sure >= 0.9) and 0 < float(cells.mean()) < 1 and samples.eq(1).all()
    learned = Rple(policy=AcceptancePolicy(words=6), bands=BANDS, rule="confidence", wrong=3.0)
    raw_cells, raw_samples = learned.policy.eval()(state)
    cells, samples = learned.decide(state)
    assert torch.equal(cells > 0, raw_cells.sigmoid() > 0.75) and torch.equal(samples > 0, raw_samples > 0)


def test_the_policy_starts_by_accepting_cells_and_by_what_samples_are_expected_to_teach() -> None:
    state = state_of(6)
    cells, samples = AcceptancePolicy(words=6).eval()(state)
    worth = state.facts[:, -1].exp() * (2 * state.facts[:, 0]).sigmoid() ** DOUBT
    assert cells.eq(ACCEPT).all() and torch.equal(samples.argsort(), worth.argsort())


def test_the_choice_starts_by_chance_where_nobody_can_say_what_a_label_teaches() -> None:
    policy, state = AcceptancePolicy(words=6).eval(), state_of(6)
    policy.telling.fill_(0)
    assert policy(state)[1].eq(0).all()


def test_the_expected_gain_is_that_of_a_calibrated_label() -> None:
    """The mean of `gain_reward` over truths drawn from the proposal (nearly: a ratio's mean is not that of means)."""
    rng = torch.Generator().manual_seed(0)
    proposal, model = torch.rand(2, 3, 12, 12, generator=rng)
    draws = torch.rand(2000, 3, 12, 12, generator=rng) < proposal
    gain = torch.stack([gain_reward(proposal, truth, model).sum((1, 2)) for truth in draws]).mean(0)
    assert torch.allclose(expected_gain(proposal, model), gain, atol=0.005)
    assert expected_gain(proposal, proposal).eq(0).all()


def test_samples_are_chosen_without_replacement_and_by_their_odds() -> None:
    logits, rng = torch.tensor([0.0, 2.0, -30.0, 1.0, 30.0]), torch.Generator().manual_seed(0)
    firsts = torch.zeros(5)
    for _ in range(3000):
        chosen = choose(logits[:4], 2, generator=rng)
        assert len(chosen) == 2 and chosen.unique().numel() == 2
        firsts[chosen[0]] += 1
    assert torch.allclose(firsts[:4] / 3000, logits[:4].softmax(0), atol=0.03)
    assert choose(logits, 1, generator=rng).tolist() == [4]
    assert sorted(choose(logits, 9, generator=rng).tolist()) == [0, 1, 2, 3, 4]


def test_a_fixed_threshold_chooses_samples_by_chance() -> None:
    logits, rng = torch.linspace(-50, 50, 20), torch.Generator().manual_seed(0)
    fixed = Rple(policy=AcceptancePolicy(words=6), bands=BANDS, rule="threshold")
    assert rple_of().choose(logits, 5, rng).tolist() == [19, 18, 17, 16, 15]
    assert fixed.choose(logits, 5, rng).sort().values.tolist() != [15, 16, 17, 18, 19]


@given(st.floats(-30, 30), st.floats(-5, 5))
def test_divergence_is_that_of_torch(logit: float, reference: float) -> None:
    from torch.distributions import Bernoulli, kl_divergence

    found = divergence(torch.tensor([logit], dtype=torch.float64), reference)
    one, other = (Bernoulli(logits=torch.tensor([x], dtype=torch.float64)) for x in (logit, reference))
    assert torch.allclose(found, kl_divergence(one, other), atol=1e-6) and float(found) > -1e-9


def test_what_earns_nothing_stays_accepted_and_what_costs_is_refused() -> None:
    """The policy that maximises reward - temperature x divergence is sigma(its start + reward / temperature)."""
    reward, temperature = torch.tensor([0.0, 0.2, -0.2, -0.6]), 0.1
    logits = torch.full((4,), ACCEPT, requires_grad=True)
    for _ in range(4000):
        loss = (temperature * divergence(logits, ACCEPT) - logits.sigmoid() * reward).sum()
        loss.backward()
        with torch.no_grad():
            logits -= 20 * logits.grad
            logits.grad = None
    assert torch.allclose(logits.detach(), ACCEPT + reward / temperature, atol=0.05)
