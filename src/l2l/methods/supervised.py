"""Labels only: the same network, views and schedule, and no unlabelled pair.

It reads the priors of its labelled pairs, so it can be used with a prior and without one, like the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from l2l.methods.consistency import labels_only, peak_rates, strong
from l2l.training.parts import Parts


class Supervised:
    """Cross-entropy and dice on the labelled pairs; as many pairs a step as other methods pass gradients through."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.extra = nn.Module()

    def learning_rates(self) -> Mapping[str, float]:
        return peak_rates(self.parts)

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        parts, config = self.parts, self.parts.config
        count = config.train.labelled + config.train.unlabelled
        rows = parts.refs_at("labelled", step, count, parts.labelled_refs)
        x_w = parts.weak(rows, "labelled", step, swap=config.sesm.swap, drop=config.sesm.drop)
        return labels_only(parts, strong(parts, x_w, "strong", step))
