"""FixMatch (Sohn et al., NeurIPS 2020, arXiv 2001.07685) on pixels: confident hard labels from the weak view.

The student labels the weak view itself; a pixel whose confidence reaches the threshold teaches the strong view.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from l2l.training.parts import Parts


class FixMatch:
    """x labelled, u unlabelled; _w weak, _s strong."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "fixmatch")

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        u_s = strong(parts, u_w, "strong u", step)

        label, accept = above_threshold(predict(parts, parts.network, u_w), config.rivals.threshold)

        x, u = ask(parts, parts.network, x_s, u_s)
        loss_x, logs = labelled_loss(x, x_s)
        loss_u, told = pseudo_loss(u, label, accept)
        return loss_x + config.train.unlabelled_weight * loss_u, logs | told
