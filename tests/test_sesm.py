from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from l2l.labelling.sesm import EVIDENCE, MODEL, PRIOR, SESM, Elevated, entropy, evidence, soft_iou, to_logit
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


def fresh() -> SESM:
    torch.manual_seed(0)
    return SESM(width=WIDTH).eval()


def stirred() -> SESM:
    """One whose every parameter matters: nothing rests at zero."""
    sesm = fresh()
    with torch.no_grad():
        for name, one in sesm.named_parameters():
            little = name.startswith(("gate", "judge"))  # or the gate is shut, and nothing passes
            one.add_((0.03 if little else 0.3) * torch.randn_like(one))
    return sesm


@given(st.integers(0, 1000), st.floats(-40, 40))
def test_it_starts_as_the_identity_on_the_prior(seed: int, q: float) -> None:
    given_ = proposals(seed)
    fused = fresh()(encoded(seed), given_, torch.full((BATCH, SIDE, SIDE), q)).fused
    confident = (given_.soft - 0.5).abs() > 0.1
    assert torch.equal((fused > 0)[confident], (given_.soft > 0.5)[confident])
    assert ((fused.sigmoid() - given_.soft).abs() < 0.12).all()


def test_without_a_prior_the_model_speaks() -> None:
    q = 5 * torch.randn(BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    elevated = fresh()(encoded(), proposals(present=False), q)
    assert torch.equal(elevated.fused > 0, q > 0)
    assert torch.allclose(elevated.fused, q.clamp(-6, 6), atol=1e-5)
    assert not elevated.gate.any()


def test_presence_is_decided_sample_by_sample() -> None:
    some, q = proposals(), torch.randn(BATCH, SIDE, SIDE)
    present = torch.tensor([True, False, True, False])
    mixed = fresh()(encoded(), Proposals(some.soft, some.score, present), q)
    assert ((mixed.gate > 0.9) == present).all()
    assert torch.allclose(mixed.fused[~present], q[~present].clamp(-6, 6), atol=1e-5)
    assert torch.allclose(mixed.fused[present], fresh()(encoded(), some, q).fused[present], atol=1e-5)


def test_it_can_overrule_the_prior() -> None:
    sesm, prior = fresh(), proposals()
    with torch.no_grad():  # what training does when priors turn out to be wrong
        sesm.judge[-1].bias.copy_(torch.tensor([-1.0, 1.0, 0.0, 0.0]))
    q = torch.where(prior.soft > 0.5, -6.0, 6.0)
    elevated = sesm(encoded(), prior, q)
    assert (elevated.gate < 0.05).all()
    assert torch.equal(elevated.fused > 0, q > 0)


def test_guidance_is_zero_at_the_start() -> None:
    found = fresh()(encoded(), proposals(), torch.randn(BATCH, SIDE, SIDE))
    assert [one.shape for one in found.guidance] == [one.shape for one in encoded().maps]
    assert all(not one.any() for one in found.guidance)
    later = stirred()(encoded(), proposals(), torch.randn(BATCH, SIDE, SIDE))
    assert all(one.any() for one in later.guidance)


def reached(sesm: SESM, loss: Tensor) -> set[str]:
    sesm.zero_grad()
    loss.backward()
    return {name.split(".")[0] for name, one in sesm.named_parameters() if one.grad is not None and one.grad.any()}


def elevate(sesm: SESM, q: Tensor | None = None) -> Elevated:
    q = torch.randn(BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) if q is None else q
    return sesm(encoded(), proposals(), q)


def test_the_decoder_teaches_guidance_alone() -> None:
    sesm = stirred()
    loss = torch.stack([one.square().sum() for one in elevate(sesm).guidance]).sum()
    assert reached(sesm, loss) == {"guide"}


def test_held_out_labels_teach_the_rest() -> None:
    sesm = stirred()
    assert {"gate_slope", "gate_start", "sharpness", "look", "correct"} <= reached(sesm, elevate(sesm).fused.sum())
    assert "guide" not in reached(sesm, elevate(sesm).fused.sum())
    judged = elevate(sesm)
    assert reached(sesm, judged.rho.sum() + judged.kappa.sum()) == {"judge"}


def test_nothing_flows_back_into_the_model() -> None:
    sesm, known = stirred(), encoded()
    maps = tuple(one.requires_grad_() for one in known.maps)
    q = torch.randn(BATCH, SIDE, SIDE, requires_grad=True)
    elevated = sesm(Encoded(maps, known.sentence.requires_grad_()), proposals(), q)
    (elevated.fused.sum() + elevated.rho.sum() + elevated.kappa.sum()).backward()
    assert q.grad is None and known.sentence.grad is None and all(one.grad is None for one in maps)


def test_what_is_absent_is_not_trusted() -> None:
    for sesm in (fresh(), stirred()):
        rho = sesm(encoded(), proposals(present=False), torch.zeros(BATCH, SIDE, SIDE)).rho
        assert (rho.sigmoid() < 1e-3).all()
    assert (elevate(fresh()).rho.sigmoid() > 0.1).all()


def test_an_absent_prior_cannot_whisper() -> None:
    """The score that stands beside a missing prior is not read."""
    sesm, q = stirred(), torch.randn(BATCH, SIDE, SIDE)
    nothing = Proposals.absent(BATCH, SIDE, SIDE)
    scored = Proposals(nothing.soft, torch.ones(BATCH), nothing.present)
    one, other = sesm(encoded(), nothing, q), sesm(encoded(), scored, q)
    assert torch.equal(one.fused, other.fused) and torch.equal(one.kappa, other.kappa)


@pytest.mark.parametrize("prior", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("model", [-500.0, 0.0, 500.0])
def test_degenerate_maps_stay_finite(prior: float, model: float) -> None:
    sesm, flat = stirred(), torch.full((BATCH, SIDE, SIDE), prior)
    q = torch.full((BATCH, SIDE, SIDE), model, requires_grad=True)
    elevated = sesm(encoded(), Proposals(flat, torch.ones(BATCH), torch.ones(BATCH, dtype=torch.bool)), q)
    everything = [elevated.fused, elevated.rho, elevated.kappa, elevated.gate, *elevated.guidance]
    assert all(one.isfinite().all() for one in everything)
    torch.stack([one.sum() for one in everything]).sum().backward()
    assert all(one.grad.isfinite().all() for one in sesm.parameters() if one.grad is not None)
    facts = evidence(flat, q.detach().sigmoid(), torch.ones(BATCH), torch.ones(BATCH, dtype=torch.bool))
    assert facts.shape == (BATCH, EVIDENCE) and facts.isfinite().all() and facts.abs().max() <= 1.01


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
    sesm, q = stirred(), torch.randn(BATCH, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    mixed = Proposals(proposals().soft, proposals().score, torch.tensor([True, True, False, True]))
    both = sesm(encoded(), mixed, q).fused
    sesm.voice.fill_(voice)
    elevated = sesm(encoded(), mixed, q)
    heard = mixed.soft > 0.5 if voice == PRIOR else q > 0
    heard[2] = (q > 0)[2]  # nothing to hear from an absent prior
    assert torch.equal(elevated.fused > 0, heard) and elevated.follow.max() < 1e-6
    assert torch.equal(elevated.score, torch.where(elevated.gate > 0, elevated.rho, elevated.kappa))
    assert torch.allclose(sesm(encoded(), mixed, q, voice=0).fused, both)  # as if it were not silenced


def test_the_ablations_take_parts_away() -> None:
    torch.manual_seed(0)
    q = torch.randn(BATCH, SIDE, SIDE)
    plain = SESM(width=WIDTH, fuses=False)(encoded(), proposals(), q)
    assert torch.equal(plain.fused > 0, proposals().soft > 0.5) and len(plain.guidance) == 4
    assert SESM(width=WIDTH, guides=False)(encoded(), proposals(), q).guidance == []
