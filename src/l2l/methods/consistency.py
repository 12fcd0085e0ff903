"""What all methods but L2L share: the pairs of a step, one pass for several views, their losses.

Everything is drawn from the streams that `l2l` uses, so every method meets the same unlabelled pairs at the same step,
in the same weak and strong views. Where the run has priors the networks read them, and there are two answers to each
pair, unguided and guided; without priors there is one. The mixture inside SESM gets no loss here: that is L2L's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from l2l.data.augment import strong_view
from l2l.errors import InputError
from l2l.model.network import Answer, Network
from l2l.model.segmenter import Encoded
from l2l.proposals.proposal import Proposals
from l2l.training.losses import segmentation_loss
from l2l.training.parts import Parts
from l2l.training.pool import Batch


def peak_rates(parts: Parts) -> Mapping[str, float]:
    """Peak learning rate of each part."""
    config = parts.config
    return {"segmenter": config.train.rate, "sesm": config.sesm.rate, "extra": config.train.rate}


def unlabelled_rows(parts: Parts, method: str) -> Tensor:
    """(N,) rows of the pairs without a label. Raises `InputError` if there are none."""
    rows = (~parts.pool.labelled[parts.pool.ref_of]).nonzero()[:, 0]
    if not len(rows):
        raise InputError(f"{method} learns from unlabelled pairs, here are none: lower --rate or add --unlabelled FILE")
    return rows


def draw(parts: Parts, step: int, rows: Tensor) -> tuple[Batch, Batch | None]:
    """x_s, labelled pairs in their strong view, and u_w, unlabelled ones of `rows` in their weak view.

    Some priors of x are swapped or dropped, as `supervised` has it. During burn-in u_w is `None`: labels only.
    """
    config = parts.config
    refs = parts.refs_at("labelled", step, config.train.labelled, parts.labelled_refs)
    x_w = parts.weak(refs, "labelled", step, swap=config.sesm.swap, drop=config.sesm.drop)
    x_s = strong(parts, x_w, "strong x", step)
    if step < config.train.burn_in * config.train.steps:
        return x_s, None
    return x_s, parts.weak(parts.rows_at("unlabelled", step, config.train.unlabelled, rows), "unlabelled", step)


def strong(parts: Parts, batch: Batch, name: str, step: int) -> Batch:
    """x_s, u_s: the same pairs and pixels, with changes of light, blur and noise drawn under that name."""
    return dataclasses.replace(batch, image=strong_view(batch.image, parts.rng(name, step)))


def ask(parts: Parts, network: Network, *views: Batch) -> list[Answer]:
    """One pass over all views together; an answer for each of them (without `elevated`)."""
    proposals = None
    if parts.pool.present.any():
        every = [view.proposals for view in views]
        proposals = Proposals(
            torch.cat([one.soft for one in every]), torch.cat([one.score for one in every]),
            torch.cat([one.present for one in every]),
        )  # fmt: skip
    whole = parts.answer(
        network, torch.cat([view.image for view in views]), torch.cat([view.tokens for view in views]), proposals
    )
    answers, start = [], 0
    for view in views:
        own = slice(start, start + len(view.rows))
        guided = None if whole.guided is None else whole.guided[own]
        encoded = Encoded((), whole.encoded.sentence[own])
        answers.append(Answer(encoded, whole.q[own], whole.features[own], guided=guided))
        start = own.stop
    return answers


@torch.no_grad()
def predict(parts: Parts, network: Network, u_w: Batch) -> Tensor:
    """p (B, h, w), probabilities that labels are made of: guided where there are priors, in evaluation mode."""
    training = network.training
    network.eval()
    [answer] = ask(parts, network, u_w)
    network.train(training)
    return answer.best.float().sigmoid()


def above_threshold(p: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Hard label and which cells are believed: those whose confidence max(p, 1 - p) reaches the threshold; floats."""
    return (p > 0.5).float(), (torch.maximum(p, 1 - p) >= threshold).float()


def both_decodings(name: str, answer: Answer, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, float]]:
    """`loss` of logits (B, h, w) -> (B,), its mean over the unguided answer plus, where there is one, the guided."""
    loss_q = loss(answer.q).mean()
    if answer.guided is None:
        return loss_q, {name: loss_q.item()}
    loss_m = loss(answer.guided).mean()
    return loss_q + loss_m, {name: loss_q.item(), f"{name}_guided": loss_m.item()}


def labelled_loss(answer: Answer, x: Batch) -> tuple[Tensor, dict[str, float]]:
    """loss_x against the masks of labelled pairs."""
    mask = x.mask
    assert mask is not None
    return both_decodings("loss_x", answer, lambda logits: segmentation_loss(logits, mask))


def labels_only(parts: Parts, x_s: Batch) -> tuple[Tensor, dict[str, float]]:
    """A step that learns from labels alone."""
    [x] = ask(parts, parts.network, x_s)
    return labelled_loss(x, x_s)


def pseudo_loss(
    answer: Answer, label: Tensor, accept: Tensor, sample: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """loss_u against pseudo-labels.

    Args:
        label, accept: (B, h, w) in [0, 1], the label and how far each of its cells is believed.
        sample: (B,) weight of each sample; 1 if not given.
    """
    weight = torch.ones_like(label[:, 0, 0]) if sample is None else sample
    loss, logs = both_decodings("loss_u", answer, lambda logits: weight * segmentation_loss(logits, label, accept))
    front = (accept * label).sum() / label.sum().clamp_min(1e-6)
    return loss, logs | {"accept": float(accept.mean()), "accept_front": float(front)}
