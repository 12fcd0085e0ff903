"""Mean Teacher (Tarvainen & Valpola, NeurIPS 2017, arXiv 1703.01780) on pixels: agree with the EMA teacher, softly.

Nothing is thresholded: the mean squared error between the student's probabilities on the strong view and the teacher's
on the weak one, over all pixels, with a weight that rises while the teacher is young.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from l2l.methods.consistency import (
    ask,
    both_decodings,
    draw,
    labelled_loss,
    labels_only,
    peak_rates,
    predict,
    strong,
    unlabelled_rows,
)
from l2l.training.parts import Parts


class MeanTeacher:
    """x labelled, u unlabelled; _w weak, _s strong."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "mean_teacher")

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        u_s = strong(parts, u_w, "strong u", step)

        target = predict(parts, parts.teacher, u_w)

        x, u = ask(parts, parts.network, x_s, u_s)
        loss_x, logs = labelled_loss(x, x_s)
        loss_u, told = both_decodings("loss_u", u, lambda logits: (logits.sigmoid() - target).square().mean((1, 2)))
        since = step - config.train.burn_in * config.train.steps
        weight = ramp(since / max(1.0, config.rivals.ramp * config.train.steps))
        logs |= told | {"ramp": weight, "accept": 1.0, "accept_front": 1.0}  # all is believed, as far as it is sure
        return loss_x + config.train.unlabelled_weight * weight * loss_u, logs


def ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) for t in [0, 1], 1 from there on: from 0.007 up to 1."""
    return math.exp(-5 * (1 - min(max(t, 0.0), 1.0)) ** 2)
