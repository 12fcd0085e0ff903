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
    proposal: Tensor | None = None
    """Logits (B, h, w) of the fused proposal, what is offered as a pseudo-label: `guided`, but for ablations."""

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
        guided = self.guide(encoded, elevated)
        return Answer(encoded, q, features, elevated, guided, guided if self.sesm.fuses else elevated.fused)

    def guide(self, encoded: Encoded, elevated: Elevated, *, honest: bool = False) -> Tensor:
        """Guided logits (B, h, w): the fused proposal, moved by the decoder as far as SESM says it may be followed.

        On pictures it has learned by heart the decoder is always right; how far it is to be followed elsewhere is
        learned from held-out labels alone (`honest`), like everything else in SESM but its guidance.
        """
        if not elevated.guidance:
            return elevated.fused if honest else elevated.fused.detach()
        added, _ = self.segmenter.decode(encoded, elevated.guidance)
        added = added - self.segmenter.classify.bias.float().detach()  # a correction has no bias towards background
        follow = elevated.follow if honest else elevated.follow.detach()
        return follow[:, None, None] * added + elevated.fused.detach()
