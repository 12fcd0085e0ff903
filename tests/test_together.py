"""Sentences of one record hear one another: the pairs, the pooling, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import make_world, small_config
from torch import Tensor

from l2l.config import Config
from l2l.labelling.records import agreed, pooled
from l2l.labelling.rple import Rple
from l2l.labelling.sesm import SESM, hard_iou
from l2l.model.network import Answer, Network
from l2l.proposals.proposal import Proposals
from l2l.training.loop import Run, train_step
from l2l.training.parts import Parts
from l2l.training.prepare import prepare
from l2l.training.probe import Probe


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(make_world(tmp_path_factory.mktemp("together"), count=20), unlabelled=16, probe_pairs=256)


@pytest.fixture(scope="module")
def parts(config: Config) -> Parts:
    return Run.start(config, prepare(config)).parts


def test_another_sentence_is_of_the_same_record_and_in_the_same_view(parts: Parts) -> None:
    pool = parts.pool
    rows = torch.arange(len(pool))
    several = torch.tensor([len(pool.pairs_of[ref]) > 1 for ref in pool.ref_of.tolist()])
    assert several.any() and not several.all()
    places, other = parts.another(rows, "unlabelled", 5)
    assert torch.equal(places, several.nonzero()[:, 0])  # every sentence of scenes may be mirrored
    assert torch.equal(pool.ref_of[other.rows], pool.ref_of[rows[places]]) and (other.rows != rows[places]).all()
    shown = parts.weak(rows, "unlabelled", 5)
    assert torch.equal(other.image, shown.image[places])
    assert not torch.equal(other.tokens, shown.tokens[places])
    again, _ = parts.another(rows, "unlabelled", 5)
    assert torch.equal(places, again)


def test_a_sentence_that_may_not_be_mirrored_is_not_heard_in_a_mirror(parts: Parts) -> None:
    rows = torch.arange(len(parts.pool))
    mirrored = parts.view(rows, "unlabelled", 5)[0].mirrored
    places, other = parts.another(rows, "unlabelled", 5)
    assert mirrored[places].any()
    # none of the others may be mirrored; the pairs themselves are as they were
    pool = dataclasses.replace(parts.pool, mirrorable=parts.pool.mirrorable.clone())
    pool.mirrorable[other.rows[mirrored[places]]] = False
    changed = dataclasses.replace(parts, pool=pool, _streams={})
    view = parts.view(rows, "unlabelled", 5)
    object.__setattr__(changed, "view", lambda *_: view)
    left, heard = changed.another(rows, "unlabelled", 5)
    assert len(left) < len(places)
    assert not (mirrored[left] & ~pool.mirrorable[heard.rows]).any()


def test_every_other_sentence_can_be_drawn(parts: Parts) -> None:
    pool = dataclasses.replace(parts.pool, pairs_of=((0, 1, 2),), ref_of=torch.zeros(3, dtype=torch.int64))
    rows = torch.tensor([0, 1, 2, 0, 1, 2])
    pick = torch.tensor([0.0, 0.0, 0.0, 0.99, 0.99, 0.99])
    assert dataclasses.replace(parts, pool=pool).other_sentence(rows, pick).tolist() == [1, 2, 0, 2, 0, 1]


def answer(proposal: Tensor, score: Tensor) -> Answer:
    elevated = type("Elevated", (), {"score": score})()
    return Answer(None, proposal, proposal, elevated, proposal, proposal)  # type: ignore[arg-type]


def test_the_better_one_is_heard_more() -> None:
    own, other = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    score = torch.tensor([0.0, 1.0, -1.0])
    places = torch.tensor([0, 2])
    even = agreed(answer(own, score), answer(other, score[places]), places).proposal
    assert even is not None
    assert torch.equal(even[1], own[1])  # nobody else speaks of that one
    assert torch.allclose(even[places], (own[places] + other) / 2)
    surer = agreed(answer(own, score), answer(other, score[places] + 5), places).proposal
    assert surer is not None and torch.allclose(surer[places], other, atol=1e-3)


@pytest.mark.parametrize("together", [True, False])
def test_labels_hear_the_others_only_where_they_are_asked_to(config: Config, together: bool) -> None:
    config = config.replace("sesm", together=together)
    prepared = prepare(config)
    run = Run.start(config, prepared)
    heard: list[int] = []
    answer = run.parts.answer

    def counted(network: torch.nn.Module, image: Tensor, *given: object) -> Answer:
        heard.append(len(image))
        return answer(network, image, *given)  # type: ignore[arg-type]

    object.__setattr__(run.parts, "answer", counted)
    train_step(run)
    assert len(heard) == (3 if together else 2)  # teacher, (other sentences,) student
    probe = Probe.draw(run.parts, prepared.truth, prepared.truth_known)
    assert probe is not None and isinstance(run.method.extra, Rple)
    told = probe.judged(run.parts, run.method.extra)
    refs = run.parts.pool.ref_of[probe.rows]
    pairs = (refs[:, None] == refs).triu(1).nonzero()
    two = [(a, b) for a, b in pairs.tolist() if len(run.parts.pool.pairs_of[int(refs[a])]) == 2]
    assert two
    first, second = (torch.tensor([pair[side] for pair in two]) for side in (0, 1))
    same = hard_iou(told.fused[first] > 0.5, told.fused[second] > 0.5)
    assert (same > 0.99).all() if together else (same < 0.9).any()


def test_a_run_of_single_sentences_is_the_same_either_way(config: Config, tmp_path: Path) -> None:
    """Where no record has two sentences there is nothing to hear."""
    prepared = prepare(config)
    pool = prepared.pool
    alone = dataclasses.replace(
        pool, pairs_of=tuple((row,) for row in range(len(pool))), ref_of=torch.arange(len(pool)),
        labelled=pool.labelled[pool.ref_of], masks=pool.masks[pool.ref_of],
        samples=tuple(pool.samples[ref] for ref in pool.ref_of.tolist()),
    )  # fmt: skip
    prepared = dataclasses.replace(prepared, pool=alone)
    losses = [train_step(Run.start(config.replace("sesm", together=one), prepared))["loss"] for one in (True, False)]
    assert losses[0] == losses[1]


def test_a_record_has_one_mask_and_is_judged_anew() -> None:
    torch.manual_seed(0)
    network = Network(segmenter=torch.nn.Identity(), sesm=SESM(width=4))  # type: ignore[arg-type]
    q, guided = torch.randn(4, 3, 5) * 3, torch.randn(4, 3, 5) * 3
    proposals = Proposals(torch.rand(4, 3, 5), torch.tensor([0.9, 0.4, 0.6, 0.6]), torch.ones(4, dtype=torch.bool))
    elevated = network.sesm.fuse(network.sesm.reliability(proposals, q), proposals, q, guided)
    said = Answer(None, q, q, elevated, guided, elevated.fused, True)  # type: ignore[arg-type]
    record = torch.tensor([7, 2, 7, 5])

    made = pooled(network, said, proposals, record, prior=True)
    assert made.elevated is not None and made.proposal is not None
    assert torch.equal(made.elevated.answer[[1, 3]], elevated.answer[[1, 3]])
    assert torch.equal(made.elevated.score[[1, 3]], elevated.score[[1, 3]])
    share = (2 * elevated.score[[0, 2]]).softmax(0)
    mean = (share[:, None, None] * elevated.fused[[0, 2]].clamp(-8, 8)).sum(0)
    for at in (0, 2):
        assert torch.allclose(made.proposal[at], mean, atol=1e-5)
    anew = network.sesm.expected(made.proposal, elevated.rho, proposals, q)[[0, 2]]
    assert torch.allclose(made.elevated.score[[0, 2]], (share * anew).sum().expand(2), atol=1e-5)

    alone = pooled(network, said, proposals, record, prior=False)
    assert alone.elevated is not None
    assert torch.equal(alone.q[0], alone.q[2]) and torch.equal(alone.q[1], q[1])
    assert torch.allclose(alone.elevated.kappa[0], network.sesm.unprompted(alone.q)[0], atol=1e-5)


def test_a_record_has_one_mask_where_one_sentence_is_all_that_counts() -> None:
    """Its weight is then 1 to the last bit, and it is still not alone."""
    torch.manual_seed(0)
    network = Network(segmenter=torch.nn.Identity(), sesm=SESM(width=4))  # type: ignore[arg-type]
    q, guided = torch.randn(2, 3, 5) * 30, torch.randn(2, 3, 5) * 30
    proposals = Proposals(torch.rand(2, 3, 5), torch.tensor([0.9, 0.4]), torch.ones(2, dtype=torch.bool))
    elevated = network.sesm.fuse(network.sesm.reliability(proposals, q), proposals, q, guided)
    elevated = dataclasses.replace(elevated, answer=3 * elevated.fused, score=torch.tensor([30.0, -30.0]))
    said = Answer(None, q, q, elevated, guided, 3 * elevated.fused, True)  # type: ignore[arg-type]
    made = pooled(network, said, proposals, torch.zeros(2, dtype=torch.long), prior=True)
    assert elevated.answer.abs().max() > 8 and torch.equal(made.best[0], made.best[1])
