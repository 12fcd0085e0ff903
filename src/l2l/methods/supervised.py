"""Labels only: the same network, views and schedule, and no unlabelled pair.

It reads the priors of its labelled pairs, so it can be used with a prior and without one, like the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from l2l.data.augment import strong_view
from l2l.training.losses import segmentation_loss
from l2l.training.parts import Parts
from l2l.training.pool import normalise


class Supervised:
    """Cross-entropy and dice on the labelled pairs; as many pairs a step as other methods pass gradients through."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()

    def learning_rates(self) -> Mapping[str, float]:
        config = self.parts.config
        return {"segmenter": config.train.rate, "sesm": config.sesm.rate, "extra": config.train.rate}

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        count = config.train.labelled + config.train.unlabelled
        rows = parts.refs_at("labelled", step, count, parts.labelled_refs)
        x = parts.weak(rows, "labelled", step, swap=config.sesm.swap, drop=config.sesm.drop)
        assert x.mask is not None
        with parts.autocast():
            answer = parts.network(
                normalise(strong_view(x.image, parts.rng("strong", step))), x.tokens,
                x.proposals if parts.pool.present.any() else None,
            )  # fmt: skip
        loss_q = segmentation_loss(answer.q, x.mask).mean()
        logs = {"loss_x": loss_q.item()}
        if answer.guided is None:
            return loss_q, logs
        loss_m = segmentation_loss(answer.guided, x.mask).mean()
        return loss_q + loss_m, {**logs, "loss_x_guided": loss_m.item()}
