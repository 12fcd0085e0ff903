"""Training on the prior: every unlabelled pair is taught P cut at 0.5, all of it believed.

The plainest use of a frozen model's pointing, and the rival that asks whether acceptance is worth anything. Pairs
without a prior are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from l2l.errors import InputError
from l2l.methods.consistency import (
    ask,
    draw,
    labelled_loss,
    labels_only,
    peak_rates,
    pseudo_loss,
    strong,
    unlabelled_rows,
)
from l2l.training.parts import Parts


class PriorTraining:
    """x labelled, u unlabelled; _w weak, _s strong; P prior."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "prior_training")
        if not parts.pool.present[self.unlabelled].any():
            raise InputError("prior_training learns from priors of unlabelled pairs, here are none: add --prior")

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        u_s = strong(parts, u_w, "strong u", step)

        label = (u_s.proposals.soft > 0.5).float()
        accept = u_s.proposals.present.float()[:, None, None].expand_as(label)

        x, u = ask(parts, parts.network, x_s, u_s)
        loss_x, logs = labelled_loss(x, x_s)
        loss_u, told = pseudo_loss(u, label, accept)
        return loss_x + config.train.unlabelled_weight * loss_u, logs | told
