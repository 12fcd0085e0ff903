"""Segmenter and SESM together: the weights that a run trains, averages, saves and predicts with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from l2l.labelling.sesm import SESM, Elevated
from l2l.model.segmenter import Encoded, Segmenter
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything one pass says of a batch."""

    encoded: Encoded
    q: Tensor
    """Logits (B, h, w) without guidance: the model's own opinion."""
    features: Tensor
    """(B, D, h, w): what the last layer read `q` from."""
    elevated: Elevated | None = None
    guided: Tensor | None = None
    """Logits (B, h, w) with guidance; `None` where no proposals were given."""

    @property
    def best(self) -> Tensor:
        """The guided logits where there are any."""
        return self.q if self.guided is None else self.guided


class Network(nn.Module):
    """One encoding, two decodings: unguided (Q), then guided by what SESM makes of the proposals and Q."""

    def __init__(self, *, segmenter: Segmenter, sesm: SESM):
        super().__init__()
        self.segmenter, self.sesm = segmenter, sesm

    def forward(self, image: Tensor, tokens: Tensor, proposals: Proposals | None = None) -> Answer:
        """image (B, 3, H, W) normalised, tokens (B, L); without proposals only `q` is answered."""
        encoded = self.segmenter.encode(image, tokens)
        q, features = self.segmenter.decode(encoded)
        if proposals is None:
            return Answer(encoded, q, features)
        elevated = self.sesm(encoded, proposals, q)
        guided, _ = self.segmenter.decode(encoded, elevated.guidance)
        return Answer(encoded, q, features, elevated, guided)
