"""RESMatch (arXiv 2402.05589), from its public description: FixMatch made for referring expressions.

- A strong view that keeps the sentence true: `data.augment.strong_view`, which all methods here use, is that already
  (photometric only, never the hue, and a mirrored picture has a mirrored sentence).
- Text augmentation: the strong view's sentence loses some words and its articles, see `strong_sentence`.
- Quality-adaptive weighting: each pseudo-label counts by the mean confidence of its foreground, see `quality`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from l2l.methods.consistency import (
    above_threshold,
    ask,
    draw,
    labelled_loss,
    labels_only,
    peak_rates,
    predict,
    pseudo_loss,
    strong,
    unlabelled_rows,
)
from l2l.model.text import PAD, UNKNOWN
from l2l.training.parts import Parts
from l2l.training.pool import Pool

ARTICLES = frozenset(("the", "a", "an"))


class ResMatch:
    """x labelled, u unlabelled; _w weak, _s strong."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "resmatch")
        self.articles = article_ids(parts.pool)

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        words = strong_sentence(
            u_w.tokens, self.articles, config.rivals.words_lost, parts.rng("strong words", step),
            unknown=parts.pool.vocabulary.unknown, special=parts.pool.vocabulary.special,
        )  # fmt: skip
        u_s = dataclasses.replace(strong(parts, u_w, "strong u", step), tokens=words)

        p = predict(parts, parts.network, u_w)
        label, accept = above_threshold(p, config.rivals.threshold)
        weight = quality(p)

        x, u = ask(parts, parts.network, x_s, u_s)
        loss_x, logs = labelled_loss(x, x_s)
        loss_u, told = pseudo_loss(u, label, accept, weight)
        logs |= told | {"accept_samples": float(weight.mean())}
        return loss_x + config.train.unlabelled_weight * loss_u, logs


def quality(p: Tensor) -> Tensor:
    """Weight of each pseudo-label: the mean of p over its foreground (p > 0.5), 0 where it has none.

    Args:
        p: (B, h, w) probabilities.

    Returns:
        (B,), 0 or in (0.5, 1].
    """
    front = (p > 0.5).float()
    return (p * front).sum((1, 2)) / front.sum((1, 2)).clamp_min(1)


def strong_sentence(
    tokens: Tensor, articles: Tensor, lost: float, rng: torch.Generator, *, unknown: int = UNKNOWN,
    special: Sequence[int] = (),
) -> Tensor:
    """A sentence that says less: half of the sentences without their articles, a share `lost` of the words unknown.

    At least one word of a sentence stays as it was.

    Args:
        tokens: (B, L) int64, padded at the end. articles: (A,) ids.
        unknown: what takes the place of a lost word; with `PAD` the word is left out.
        special: ids that are no words and stay.
    """
    chance = torch.rand(tokens.shape, generator=rng).to(tokens.device)
    bare = (torch.rand(len(tokens), 1, generator=rng) < 0.5).to(tokens.device)

    real = tokens != PAD
    word = real & ~torch.isin(tokens, torch.tensor(special, dtype=torch.int64, device=tokens.device))
    kept = real & ~(bare & torch.isin(tokens, articles.to(tokens.device)))
    kept = torch.where((kept & word).any(1, keepdim=True), kept, real)  # a sentence of articles alone keeps them
    surest = torch.where(kept & word, chance, -1.0).argmax(1, keepdim=True)
    gone = ((chance < lost) & word).scatter(1, surest, False)
    words = torch.where(kept, torch.where(gone, unknown, tokens), PAD)
    return words.gather(1, (words == PAD).long().argsort(dim=1, stable=True))  # close the gaps


def article_ids(pool: Pool) -> Tensor:
    """Ids that the pool's vocabulary has for "the", "a" and "an"; int64 (A,)."""
    return torch.tensor(pool.vocabulary.tokens_of(ARTICLES), dtype=torch.int64)
