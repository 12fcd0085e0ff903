"""Segmenter and SESM together: the weights that a run trains, averages, saves and predicts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from l2l.labelling.sesm import MODEL, SESM, Elevated, Heard
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
    """Logits (B, h, w) with guidance, the guided answer M; `None` where no proposals were given."""
    proposal: Tensor | None = None
    """Logits (B, h, w) of the fused proposal, what is offered as a pseudo-label."""
    fuses: bool = False
    """Whether the fused proposal is the last word; without SESM the guided answer is."""

    @property
    def best(self) -> Tensor:
        """The best there is: SESM's answer, else the guided logits, else `q`."""
        if self.fuses and self.elevated is not None:
            return self.elevated.answer
        return self.q if self.guided is None else self.guided


class Network(nn.Module):
    """One encoding, two decodings: unguided (Q), then guided by the prior (M); SESM fuses prior, Q and M.

    `guided_share` is the share of the guided decoding's gradient that reaches the encoder, 1 unless a method sets it.
    """

    def __init__(self, *, segmenter: Segmenter, sesm: SESM):
        super().__init__()
        self.guided_share = 1.0
        self.segmenter, self.sesm = segmenter, sesm

    def forward(
        self, image: Tensor, tokens: Tensor, proposals: Proposals | None = None, *, seen: tuple[Any, ...] | None = None
    ) -> Answer:
        """image (B, 3, H, W) normalised, tokens (B, L); without proposals only `q` is answered. `seen`: see
        `Segmenter.encode`."""
        encoded = self.segmenter.encode(image, tokens, seen=seen)
        q, features = self.segmenter.decode(encoded)
        if proposals is None:
            return Answer(encoded, q, features)
        lent = encoded.eased(self.guided_share)
        heard = self.sesm.listen(lent, proposals, q)
        guided = self.guide(lent, heard)
        voice = int(self.sesm.voice)
        elevated = self.sesm.fuse(heard.rho, proposals, q, guided, voice=voice)
        last = self.sesm.fuses or voice == MODEL  # who is not listened to does not answer either
        return Answer(encoded, q, features, elevated, guided, elevated.fused, last)

    def guide(self, encoded: Encoded, heard: Heard) -> Tensor:
        """The guided answer M, logits (B, h, w): the prior, moved by what the guided decoder adds.

        It starts as the prior (Q where there is none) and learns from labels and pseudo-labels, like Q.
        """
        if not heard.guidance:
            return heard.base
        added, _ = self.segmenter.decode(encoded, heard.guidance)
        return heard.base + added - self.segmenter.classify.bias.float().detach()  # no bias towards background
