"""Sentences of one record speak of the same referent: what is said to one of them, another may know better.

A record (`Sample`) carries one sentence or several. Each has a prior and an answer of its own, and these err apart, so
their log-linear pool is better than any of them: by five to eight points of IoU where there are two (docs/LOG.md). It
is weighed by what each answer is expected to be worth.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from l2l.labelling.sesm import BOTH
from l2l.model.network import Answer, Network
from l2l.proposals.proposal import Proposals

SHARP = 2.0  # weights are the odds of the expected IoUs to this power


def agreed(answer: Answer, other: Answer, places: Tensor) -> Answer:
    """Answers whose pseudo-labels are pooled, in log odds, with those to another sentence about the same referent.

    Args:
        answer: to B pairs. other: to N sentences. places: (N,), which of the B each of these goes with.
    """
    assert answer.proposal is not None and answer.elevated is not None
    assert other.proposal is not None and other.elevated is not None
    share = torch.sigmoid(SHARP * (other.elevated.score - answer.elevated.score[places]))[:, None, None]
    proposal = answer.proposal.clone()
    proposal[places] = (1 - share) * proposal[places].clamp(-8, 8) + share * other.proposal.clamp(-8, 8)
    return dataclasses.replace(answer, proposal=proposal)


def consent(record: Tensor, score: Tensor) -> Tensor:
    """How much each sentence hears each of its record's, (N, N), rows sum to 1; weights as in `agreed`.

    Args:
        record: integers (N,). score: logits (N,) of the expected IoU of the answers.
    """
    apart = record[:, None] != record
    return (SHARP * score.float()).expand(len(score), -1).masked_fill(apart, -torch.inf).softmax(1)


def pooled(network: Network, answer: Answer, proposals: Proposals, record: Tensor, *, prior: bool) -> Answer:
    """Answers to all sentences of some records, N of them: each record's has one mask, and is judged anew.

    Args:
        record: integers (N,), whose sentence it is. prior: whether masks are those with the prior (`Answer.best`), or
            the network's own.

    Returns:
        The answers, in which the mask, its reliability and the pseudo-label are those of the record.
    """
    sesm, elevated = network.sesm, answer.elevated
    assert elevated is not None and answer.proposal is not None and answer.guided is not None
    share = consent(record, elevated.score if prior else elevated.kappa)
    alone = (record[:, None] == record).sum(1) == 1  # stays as it is, to the bit

    def mean(maps: Tensor) -> Tensor:
        whole = (share @ maps.float().clamp(-8, 8).flatten(1)).view_as(maps)
        return torch.where(alone[:, None, None], maps.float(), whole)

    def judged(before: Tensor, anew: Tensor) -> Tensor:
        return torch.where(alone, before.float(), share @ anew.float())

    proposal = mean(answer.proposal)
    if not prior:
        q = mean(answer.q)
        kappa = judged(elevated.kappa, sesm.unprompted(q))
        return dataclasses.replace(
            answer, q=q, proposal=proposal, elevated=dataclasses.replace(elevated, kappa=kappa)
        )
    score = elevated.score
    if int(sesm.voice) == BOTH and sesm.fuses:  # else it is that of one voice
        score = sesm.expected(proposal, elevated.rho, proposals, answer.q)
    told = dataclasses.replace(elevated, answer=mean(elevated.answer), score=judged(elevated.score, score))
    return dataclasses.replace(answer, guided=mean(answer.guided), proposal=proposal, elevated=told)
