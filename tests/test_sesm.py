from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l2l.labelling.sesm import (
    AHEAD,
    BOTH,
    FEW,
    HEARD,
    MEETS,
    MODEL,
    PACE,
    PRIOR,
    SESM,
    Elevated,
    calibrated,
    entropy,
    outlined,
    short_of_one,
    soft_iou,
    to_logit,
)
from l2l.model.segmenter import Encoded
from l2l.proposals.proposal import Proposals

WIDTH, WORDS, BATCH, SIDE = 8, 6, 4, 8


def encoded(seed: int = 0) -> Encoded:
    rng = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(BATCH, WIDTH, SIDE >> k, SIDE >> k, generator=rng) for k in range(4))
    return Encoded(maps, torch.randn(BATCH, WORDS, generator=rng))


def proposals(seed: int = 0, *, present: bool = True) -> Proposals:
    if not present:
        return Proposals.absent(BATCH, SIDE, SIDE)
    rng = torch.Generator().manual_seed(seed)
    soft = torch.rand(BATCH, SIDE, SIDE, generator=rng)
    return Proposals(soft, torch.rand(BATCH, generator=rng), torch.ones(BATCH, dtype=torch.bool))


def fresh(**parts: bool) -> SESM:
    torch.manual_seed(0)
    return SESM(width=WIDTH, **parts).eval()


def stirred() -> SESM:
    """One whose every parameter matters: nothing rests at zero."""
    sesm = fresh()
    with torch.no_grad():
        for name, one in sesm.named_parameters():
            one.add_((0.3 if name.startswith("guide") else 0.03) * torch.randn_like(one))
    return sesm


def noise(seed: int = 0, *, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(100 + seed))


def elevate(sesm: SESM, given_: Proposals, q: Tensor, guided: Tensor, **how: int) -> Elevated:
    return sesm.fuse(sesm.reliability(given_, q), given_, q, guided, **how)


@given(st.integers(0, 1000), st.floats(-40, 40))
def test_it_starts_as_a_rule_that_needs_no_labels(seed: int, q: float) -> None:
    """The guided answer, and the prior as far as it is sure of itself; the guided answer alone without a prior."""
    guided, given_, flat = noise(seed, scale=3).clamp(-6, 6), proposals(seed), torch.full((BATCH, SIDE, SIDE), q)
    weight = 0.5 * torch.logit(given_.score, eps=0.02)[:, None, None]
    found = elevate(fresh(), given_, flat, guided).fused
    assert torch.allclose(found, weight * to_logit(given_.soft) + 0.75 * guided, atol=1e-5)
    assert torch.allclose(elevate(fresh(), proposals(present=False), flat, guided).fused, guided)


def test_rho_starts_as_the_priors_own_score() -> None:
    given_ = proposals()
    rho = fresh().reliability(given_, noise())
    assert torch.allclose(rho.sigmoid(), given_.score.clamp(0.02, 0.98), atol=1e-5)


def test_presence_is_decided_sample_by_sample() -> None:
    some, present = proposals(), torch.tensor([True, False, True, False])
    mixed, sesm = Proposals(some.soft, some.score, present), stirred()
    found, whole = elevate(sesm, mixed, noise(), noise(1)), elevate(sesm, some, noise(), noise(1))
    assert torch.allclose(found.fused[present], whole.fused[present])
    assert torch.allclose(found.fused[~present], noise(1)[~present])


@pytest.mark.parametrize("heard", ["prior", "model"])
def test_it_can_overrule_the_guided_answer(heard: str) -> None:
    sesm, given_, q, guided = fresh(), proposals(), noise(), noise(1)
    with torch.no_grad():  # what training does when held-out labels say so
        sesm.pool[0].moved[0] = -0.5 / PACE
        sesm.pool[2].moved[-1] = -0.75 / PACE
        sesm.pool[0 if heard == "prior" else 1].moved[-1] = 1 / PACE
    fused = elevate(sesm, given_, q, guided).fused
    assert torch.equal(fused > 0, (given_.soft > 0.5) if heard == "prior" else (q > 0))


def test_an_outline_is_drawn_by_those_who_mean_the_same() -> None:
    left = torch.full((1, SIDE, SIDE), -2.0)
    left[:, :, : SIDE // 2] = 2.0
    nearly = left.clone()
    nearly[:, 0] = -2.0  # the upper edge is missing
    assert torch.equal(outlined(nearly, [(-left, 4.0)]) > 0, nearly > 0)  # who means another object has no say
    assert torch.equal(outlined(nearly, [(left, 4.0)]) > 0, left > 0)
    assert torch.equal(outlined(nearly, [(left, torch.tensor([0.0]))]), nearly)
    two = outlined(left, [(left, 1.0), (nearly, 3.0), (-left, 4.0)])
    assert torch.equal(two > 0, nearly > 0), "three to one"


def test_the_answer_means_what_the_fused_proposal_means_and_a_missing_prior_draws_nothing() -> None:
    sesm, given_ = fresh(), proposals()
    q, guided = noise(), noise(1)
    here, gone = elevate(sesm, given_, q, guided), elevate(sesm, proposals(present=False), q, guided)
    assert torch.allclose(gone.answer, outlined(gone.fused, [(q, 1.0), (guided, 1.0)]))
    assert torch.allclose(here.answer, outlined(here.fused, [(to_logit(given_.soft), 4.0), (q, 1.0), (guided, 1.0)]))
    for voice in (PRIOR, MODEL):
        heard = elevate(sesm, given_, q, guided, voice=voice)
        assert torch.equal(heard.answer, heard.fused)


def test_the_less_reliable_prior_can_weigh_less() -> None:
    sesm, some = fresh(), proposals()
    scores = torch.tensor([0.1, 0.4, 0.6, 0.9])
    weights = elevate(sesm, Proposals(some.soft, scores, some.present), noise(), noise(1)).weights[:, 0]
    assert (weights.diff() > 0.1).all()


def test_guidance_is_zero_at_the_start() -> None:
    found = fresh().listen(encoded(), proposals(), noise())
    assert [one.shape for one in found.guidance] == [one.shape for one in encoded().maps]
    assert all(not one.any() for one in found.guidance)
    assert torch.equal(found.base, to_logit(proposals().soft))
    assert torch.equal(fresh().listen(encoded(), proposals(present=False), noise()).base, noise())
    assert all(one.any() for one in stirred().listen(encoded(), proposals(), noise()).guidance)


def reached(sesm: SESM, loss: Tensor) -> set[str]:
    sesm.zero_grad()
    loss.backward()
    return {name.split(".")[0] for name, one in sesm.named_parameters() if one.grad is not None and one.grad.any()}


def test_the_decoder_teaches_guidance_alone() -> None:
    sesm = stirred()
    loss = torch.stack([one.square().sum() for one in sesm.listen(encoded(), proposals(), noise()).guidance]).sum()
    assert reached(sesm, loss) == {"guide"}


def test_held_out_labels_teach_the_rest() -> None:
    sesm, known = stirred(), (proposals(), noise(), noise(1))
    assert reached(sesm, elevate(sesm, *known).fused.square().sum()) == {"pool"}
    for part, name in (("rho", "trust"), ("kappa", "own"), ("alone", "alone"), ("score", "expect")):
        assert reached(sesm, getattr(elevate(sesm, *known), part).sum()) == {name}


def test_nothing_flows_back_into_the_model() -> None:
    sesm, q, guided = stirred(), noise().requires_grad_(), noise(1).requires_grad_()
    elevated = elevate(sesm, proposals(), q, guided)
    (elevated.fused.sum() + elevated.rho.sum() + elevated.kappa.sum() + elevated.score.sum()).backward()
    assert q.grad is None and guided.grad is None


def test_what_is_absent_is_not_trusted_and_cannot_whisper() -> None:
    """The score that stands beside a missing prior is not read."""
    nothing = Proposals.absent(BATCH, SIDE, SIDE)
    scored = Proposals(nothing.soft, torch.ones(BATCH), nothing.present)
    for sesm in (fresh(), stirred()):
        one, other = (elevate(sesm, given_, noise(), noise(1)) for given_ in (nothing, scored))
        assert (one.rho.sigmoid() < 1e-3).all() and torch.equal(one.fused, other.fused)
        assert torch.equal(one.kappa, other.kappa) and torch.equal(one.score, other.score)
        heard = [sesm.listen(encoded(), given_, noise()).guidance for given_ in (nothing, scored)]
        assert all(torch.equal(a, b) for a, b in zip(*heard, strict=True))


def test_ridge_measures_the_way_gone() -> None:
    assert fresh().ridge().item() == 0
    sesm = fresh()
    with torch.no_grad():
        sesm.trust.moved[0] = 2 / PACE
    assert sesm.ridge().item() == pytest.approx(4)


@pytest.mark.parametrize("prior", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("model", [-500.0, 0.0, 500.0])
def test_degenerate_maps_stay_finite(prior: float, model: float) -> None:
    sesm, q = stirred(), torch.full((BATCH, SIDE, SIDE), model)
    given_ = Proposals(torch.full_like(q, prior), torch.ones(BATCH), torch.ones(BATCH, dtype=torch.bool))
    elevated = elevate(sesm, given_, q, q)
    guidance = sesm.listen(encoded(), given_, q).guidance
    everything = [elevated.fused, elevated.rho, elevated.kappa, elevated.score, elevated.weights, *guidance]
    assert all(one.isfinite().all() for one in everything)
    torch.stack([one.sum() for one in everything]).sum().backward()
    assert all(one.grad.isfinite().all() for one in sesm.parameters() if one.grad is not None)


@given(st.integers(0, 1000))
def test_soft_iou_and_entropy_are_what_they_say(seed: int) -> None:
    a, b = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    agree = soft_iou(a, b)
    assert ((agree >= 0) & (agree <= 1)).all() and torch.equal(agree, soft_iou(b, a))
    assert torch.allclose(soft_iou(a, a), torch.ones(3))
    hard, other = a > 0.5, b > 0.5
    plain = (hard & other).sum((1, 2)) / (hard | other).sum((1, 2)).clamp_min(1)
    assert torch.allclose(soft_iou(hard.float(), other.float()), plain)
    assert torch.allclose(entropy(a), entropy(1 - a), atol=1e-4)
    assert ((entropy(a) >= 0) & (entropy(a) <= 1 + 1e-6)).all()


def test_known_values() -> None:
    zeros, ones, half = torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.full((1, 4, 4), 0.5)
    assert float(soft_iou(zeros, ones)) == 0 and float(soft_iou(half, ones)) == 0.5
    assert soft_iou(zeros, zeros).isfinite().all()
    assert entropy(torch.tensor([0.0, 0.5, 0.25, 1.0])).tolist() == pytest.approx([0, 1, 0.8112781, 0], abs=1e-4)
    assert to_logit(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-4, 0, 4]


@pytest.mark.parametrize("voice", [PRIOR, MODEL])
def test_the_guard_can_silence_one_voice(voice: int) -> None:
    sesm, q, guided = stirred(), noise(), noise(1)
    mixed = Proposals(proposals().soft, proposals().score, torch.tensor([True, True, False, True]))
    both = elevate(sesm, mixed, q, guided).fused
    sesm.voice.fill_(voice)
    elevated = elevate(sesm, mixed, q, guided)
    heard = mixed.soft > 0.5 if voice == PRIOR else q > 0
    heard[2] = (q > 0)[2]  # nothing to hear from an absent prior
    assert torch.equal(elevated.fused > 0, heard)
    if voice == PRIOR:
        assert torch.equal(elevated.score, torch.where(elevated.weights[:, 0] > 0, elevated.rho, elevated.kappa))
    else:  # and nothing of the prior is heard of what it is worth
        assert torch.equal(elevated.score, elevated.alone)
    assert torch.allclose(elevate(sesm, mixed, q, guided, voice=BOTH).fused, both)  # as if it were not silenced


def test_the_ablations_take_parts_away() -> None:
    q, guided = noise(), noise(1)
    plain = elevate(fresh(fuses=False), proposals(), q, guided)
    assert torch.equal(plain.fused > 0, proposals().soft > 0.5)
    assert fresh(guides=False).listen(encoded(), proposals(), q).guidance == []
    sesm = fresh(weighs=False)
    with torch.no_grad():
        sesm.pool[0].moved.fill_(1)
    assert torch.allclose(elevate(sesm, proposals(), q, guided).fused, guided)


@given(st.floats(0.3, 3), st.floats(-2, 2), st.integers(0, 50))
def test_calibration_finds_the_line_that_labels_follow(slope: float, constant: float, seed: int) -> None:
    score = 0.05 + 0.9 * torch.rand(20_000, generator=torch.Generator().manual_seed(seed))
    expected = torch.sigmoid(slope * torch.logit(score) + constant)
    right = (torch.rand(len(score), generator=torch.Generator().manual_seed(seed + 1)) < expected).float()
    assert calibrated(score, right) == pytest.approx((slope, constant), abs=0.15)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=6))
def test_calibration_of_few_labels_stays_finite_and_near(pairs: list[tuple[float, float]]) -> None:
    score, iou = (torch.tensor([one[k] for one in pairs]) for k in (0, 1))
    found = torch.tensor(calibrated(score, iou))
    assert found.isfinite().all() and found.abs().max() < 10
    if not pairs:
        assert found.tolist() == [1.0, 0.0]


def test_a_score_that_says_nothing_does_not_turn_the_prior_into_evidence_against() -> None:
    """Two of five are right. A score that tells which leaves the rule as it is; one that does not lifts its weight."""
    right = torch.tensor([1.0, 0, 0, 1, 0] * 40)
    telling, blank = fresh(), fresh()
    telling.calibrate(0.5 + 0.3 * right, right)
    blank.calibrate(torch.full((200,), 0.7), right)
    assert float(telling.tells) == 1 and float(blank.tells) == 0
    for sesm in (telling, blank):
        given_ = proposals()
        if sesm is blank:
            given_ = replace(given_, score=torch.full_like(given_.score, 0.7))
        rho, weight = sesm.reliability(given_, noise()), elevate(sesm, given_, noise(), noise(1)).weights[:, 0]
        assert torch.allclose(weight, 0.5 * rho.clamp(-4, 4) + HEARD * (1 - sesm.tells), atol=1e-5)
    assert weight.min() > 0.5 > rho.sigmoid().max()  # wrong more often than right, and heard


def test_where_the_score_says_nothing_the_model_is_not_heard_twice() -> None:
    """rho knows nothing but how far Q agrees then."""
    sesm, given_ = stirred(), proposals()
    for tells in (1.0, 0.5, 0.0):
        sesm.tells.fill_(tells)
        weights = elevate(sesm, given_, noise(), noise(1)).weights
        whole = sesm.pool[1](sesm.reliability(given_, noise()).clamp(-4, 4)[:, None])
        assert torch.allclose(weights[:, 1], tells * whole, atol=1e-5) and whole.abs().min() > 0


@pytest.mark.parametrize(("held", "keep", "draw"), [(0.3, 1.0, 0.0), (0.6, 0.825, 1.0), (0.8, 0.65, 2.0)])
def test_labels_are_drawn_to_regions_as_far_as_these_are_objects(held: float, keep: float, draw: float) -> None:
    sesm = SESM(width=8)
    sesm.suit(torch.tensor([held - 0.1, held + 0.1]))
    assert [round(one.item(), 4) for one in sesm.drawing.values()] == [keep, draw]
    assert sesm.ridge() == 0  # that is where it starts, not where it has moved
    sesm.suit(torch.zeros(0))  # no mask, nothing known
    assert round(sesm.drawing["draw"].item(), 4) == draw


def test_what_labels_say_of_the_prior_is_kept_with_the_weights() -> None:
    sesm, other, given_ = fresh(), fresh(), proposals()
    sesm.calibrate(torch.full((40,), 0.8), torch.zeros(40))  # sure of itself and always wrong
    before = fresh().reliability(given_, noise()).sigmoid()
    after = sesm.reliability(given_, noise()).sigmoid()
    assert (after < before).all() and after[given_.score > 0.6].max() < 0.3
    other.load_state_dict(sesm.state_dict())
    assert torch.equal(other.reliability(given_, noise()).sigmoid(), after)
    assert torch.equal(other.tells, sesm.tells) and float(sesm.tells) == 0


@given(st.lists(st.floats(0, 1.3), min_size=2, max_size=9, unique=True))
def test_raised_scores_stay_below_one_and_in_order(scores: list[float]) -> None:
    raised = torch.tensor(sorted(scores), dtype=torch.float64)
    found = short_of_one(raised)
    assert (found.diff() >= 0).all() and found.max() <= 0.999 and found.min() >= 0
    assert torch.equal(found[raised <= 0.95], raised[raised <= 0.95])
    assert (found <= raised).all()


def test_scores_settle_towards_the_end_of_other_runs_the_fewer_labels_taught_them() -> None:
    """Half of what `FEW` referents taught stays, all of what very many did, nothing of what nobody did; without a prior
    less what every run learns too high on its way. Nothing else moves."""
    for taught, kept in ((0.0, 0.0), (FEW, 0.5), (1e9, 1.0)):
        sesm = stirred()
        sesm.taught.fill_(taught)
        sesm.ahead.fill_(0.6)
        before = {name: value.clone() for name, value in sesm.state_dict().items()}
        sesm.settle()
        after = sesm.state_dict()
        assert torch.allclose(after["expect.moved"], kept * before["expect.moved"])
        usual = torch.tensor([0.0, 0.6 * AHEAD / PACE])
        assert torch.allclose(after["alone.moved"], kept * (before["alone.moved"] - usual))
        for name in before.keys() - {"expect.moved", "alone.moved"}:
            assert torch.equal(after[name], before[name])
    q, answer = noise(), elevate(sesm, proposals(), noise(), noise(1))
    low, same = sesm.unprompted(q), stirred()
    assert torch.allclose(same.unprompted(q) - low, torch.tensor(0.6 * AHEAD), atol=1e-5)
    assert torch.equal(answer.answer, elevate(same, proposals(), noise(), noise(1)).answer)


def test_scores_start_lower_where_even_good_proposals_meet_their_objects_less() -> None:
    """As much lower as proposals that meet theirs are, of what was not learned; and the voice of one keeps its own."""
    x, q, m = proposals(), noise(), noise(1)
    for met, taught, lower in ((MEETS / 2, 0.0, 0.5), (MEETS / 2, FEW, 0.5**0.5), (MEETS / 2, 1e12, 1), (0.97, 0.0, 1)):
        sesm = stirred()
        sesm.meets.fill_(met)
        sesm.taught.fill_(taught)
        sesm.settle()
        same = stirred()
        same.taught.fill_(taught)
        same.settle()
        told, usual = (elevate(one, x, q, m) for one in (sesm, same))
        assert torch.allclose(told.score.sigmoid(), usual.score.sigmoid() * lower, atol=1e-5)
        assert torch.equal(told.kappa, usual.kappa) and torch.equal(told.alone, usual.alone)
        for voice in (PRIOR, MODEL):
            sesm.voice.fill_(voice)
            same.voice.fill_(voice)
            assert torch.equal(elevate(sesm, x, q, m).score, elevate(same, x, q, m).score)
