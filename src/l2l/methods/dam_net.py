"""DAM-Net, from the one line that is public: two strong views, confidence 0.7, attention-feature consistency.

Two strong views of each unlabelled pair learn the same confident label, which the student gives on the weak view. The
consistency between labelled and unlabelled batches is our reading (`attention_consistency`): each unlabelled referent
attends over the labelled referents of the batch, and its two views must attend alike.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
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

TEMPERATURE = 0.1  # of the attention, over cosines


class DamNet:
    """x labelled, u unlabelled; _w weak, _s1 and _s2 strong."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()
        self.unlabelled = unlabelled_rows(parts, "dam_net")

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        x_s, u_w = draw(parts, step, self.unlabelled)
        if u_w is None:
            return labels_only(parts, x_s)
        u_s1, u_s2 = strong(parts, u_w, "strong u", step), strong(parts, u_w, "strong u 2", step)

        label, accept = above_threshold(predict(parts, parts.network, u_w), config.rivals.threshold)

        x, u_1, u_2 = ask(parts, parts.network, x_s, u_s1, u_s2)
        loss_x, logs = labelled_loss(x, x_s)
        loss_1, told = pseudo_loss(u_1, label, accept)
        loss_2, _ = pseudo_loss(u_2, label, accept)
        assert x_s.mask is not None
        known, front = referent(x.features, x_s.mask), label * accept
        loss_a = attention_consistency(
            referent(u_1.features, front), referent(u_2.features, front), known, front.sum((1, 2)) > 0
        )
        loss_u = (loss_1 + loss_2) / 2
        loss = loss_x + config.train.unlabelled_weight * (loss_u + config.rivals.attention * loss_a)
        return loss, logs | told | {"loss_attention": loss_a.item()}


def referent(features: Tensor, front: Tensor) -> Tensor:
    """Unit mean feature of each foreground: features (B, D, h, w), front (B, h, w) in [0, 1] -> (B, D) float32."""
    weight = front[:, None]
    mean = (features.float() * weight).sum((2, 3)) / weight.sum((2, 3)).clamp_min(1e-6)
    return F.normalize(mean, dim=1)


def attention_consistency(first: Tensor, second: Tensor, known: Tensor, valid: Tensor) -> Tensor:
    """Half the symmetric KL divergence between the attention of two views, mean over valid samples; 0 if none is.

    Args:
        first, second: (U, D) unit features of the unlabelled referents in either view. known: (X, D) of the labelled.
        valid: (U,) bool.
    """
    a, b = ((one @ known.T / TEMPERATURE).log_softmax(1) for one in (first, second))
    each = 0.5 * ((a.exp() - b.exp()) * (a - b)).sum(1)
    return (each * valid).sum() / valid.sum().clamp_min(1)
