"""SESM, the self-evolving segmentation module: prior and model in, fused proposal, guidance and reliability out.

It starts as the identity on the proposal and has to earn each departure: the gate between prior and model opens with
what the two reliabilities (rho of the prior, kappa of the model's own prediction) say, and the pixel correction starts
at zero. It evolves because the model's prediction Q does. It can overrule the prior: where rho is small, Q speaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l.model.guidance import Guidance
from l2l.model.segmenter import Encoded
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class Elevated:
    """What SESM makes of a batch."""

    fused: Tensor
    """Logits (B, h, w) of the fused proposal, before guidance."""
    rho: Tensor
    """Logits (B,) of the prior's reliability: the expected IoU of the proposal with the truth; very low if absent."""
    kappa: Tensor
    """Logits (B,) of the model's own reliability: the expected IoU of Q with the truth."""
    score: Tensor
    """Logits (B,) of the expected IoU of the fused proposal after guidance."""
    follow: Tensor
    """(B,) in [0, 1]: how much of the fused proposal is the guided answer."""
    base: Tensor
    """Log odds (B, h, w) that the guided answer starts from: the proposal, or Q where there is none."""
    gate: Tensor
    """(B,) in [0, 1]: how much of the fused proposal comes from the prior."""
    guidance: list[Tensor]
    """One map (B, D, h_k, w_k) per stage; empty in the ablation without guidance."""


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Soft intersection over union of maps (B, h, w) in [0, 1] -> (B,) in [0, 1]: sum of minima over sum of maxima."""
    return torch.minimum(a, b).sum((1, 2)) / torch.maximum(a, b).sum((1, 2)).clamp_min(1e-6)


def entropy(p: Tensor) -> Tensor:
    """Entropy of Bernoulli probabilities, in bits: 0 when sure, 1 at 0.5."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


def to_logit(p: Tensor, limit: float = 4.0) -> Tensor:
    """Log odds, clamped to [-limit, limit] so that a hard map stays open to argument."""
    return torch.logit(p.float(), eps=1e-6).clamp(-limit, limit)


BOTH, PRIOR, MODEL = 0, 1, 2  # whom the fusion listens to
EVIDENCE = 12
PACE = 4.0  # in and out of the judge: a run is a few hundred of Adam's steps, each of a fixed small size
LOOK = 4  # channels through which the correction sees the picture


def evidence(proposal: Tensor, q: Tensor, score: Tensor, present: Tensor) -> Tensor:
    """What can be said of a sample from the two maps alone, (B, EVIDENCE) float32, roughly in [-1, 1].

    Agreement of prior and model, how sure each is, how large, and how well each one's region is filled by the other.
    """
    here = present.float()
    inside_p = (q * proposal).sum((1, 2)) / proposal.sum((1, 2)).clamp_min(1e-3)
    inside_q = (q * proposal).sum((1, 2)) / q.sum((1, 2)).clamp_min(1e-3)
    own = (q * q).sum((1, 2)) / q.sum((1, 2)).clamp_min(1e-3)  # mean confidence of Q where Q is
    sure = (proposal * proposal).sum((1, 2)) / proposal.sum((1, 2)).clamp_min(1e-3)
    peak = q.flatten(1).amax(1)
    spread = entropy(q).mean((1, 2))
    unsure_p = entropy(proposal).mean((1, 2))
    area_p, area_q = (proposal.mean((1, 2)) + 1e-4).log10() / 4, (q.mean((1, 2)) + 1e-4).log10() / 4
    agree = soft_iou(proposal, q)
    stacked = [score, agree, inside_p, inside_q, sure, unsure_p, area_p]
    return torch.stack([here, *(one * here for one in stacked), own, peak, spread, area_q], dim=1)


class SESM(nn.Module):
    """Fuse the proposal with the model's prediction.

    Args:
        width: channels D of the segmenter's decoder maps.
        inner: channels of the reliability head and of the pixel correction.
        fuses: without, the proposal is taken as it is, and Q where there is none, and the guided answer is the last
            word: how the other methods use a prior, and an ablation of this one.
        guides: ablation; without, nothing of the prior reaches the segmenter.

    `voice` says whom the fusion listens to, and is the drift guard's to set (see `labelling.guard`): `BOTH`, the
    proposal alone (`PRIOR`; Q where there is none) or the model alone (`MODEL`). It is saved with the weights.
    """

    voice: Tensor

    def __init__(self, *, width: int, inner: int = 16, fuses: bool = True, guides: bool = True):
        super().__init__()
        self.fuses, self.guides = fuses, guides
        self.register_buffer("voice", torch.tensor(BOTH))
        self.judge = nn.Sequential(nn.Linear(EVIDENCE, inner), nn.GELU(), nn.Linear(inner, 4))
        nn.init.zeros_(self.judge[-1].weight)
        nn.init.zeros_(self.judge[-1].bias)
        # The gate's two numbers are kept small and used many times as large, so that Adam's steps of fixed size can
        # move them within a run: sigmoid(10 x 0.3) = 0.95 of the prior at the start, while rho and kappa are alike.
        self.gate_slope = nn.Parameter(torch.tensor(0.3))
        self.gate_start = nn.Parameter(torch.tensor(0.3))
        self.sharpness = nn.Parameter(torch.zeros(2))  # log scale of either map's log odds
        self.look = nn.Conv2d(width, LOOK, 1)
        self.correct = nn.Sequential(
            nn.Conv2d(LOOK + 7, inner, 3, padding=1), nn.GELU(), nn.Conv2d(inner, inner, 3, padding=1), nn.GELU(),
            nn.Conv2d(inner, 1, 1),
        )  # fmt: skip
        nn.init.zeros_(self.correct[-1].weight)
        nn.init.zeros_(self.correct[-1].bias)
        self.guide = Guidance(width=width)

    def forward(self, encoded: Encoded, proposals: Proposals, q: Tensor, *, voice: int | None = None) -> Elevated:
        """q: the model's own prediction, logits (B, h, w), without a gradient. voice: if it is not to be its own."""
        voice = PRIOR if not self.fuses else int(self.voice) if voice is None else voice
        present = proposals.present.float()
        soft, model = proposals.soft.float(), q.detach().float().sigmoid()
        rho, kappa, score, follow = self._reliability(proposals, soft, model)
        gate = present * torch.sigmoid(10 * (self.gate_slope * (rho - kappa).detach() + self.gate_start))
        if voice != BOTH:
            gate = present if voice == PRIOR else torch.zeros_like(present)
            score = torch.where(gate > 0, rho, kappa)
            follow = torch.full_like(follow, -20.0)
        log_prior = to_logit(soft) * self.sharpness[0].exp()
        log_model = q.detach().float().clamp(-6, 6) * self.sharpness[1].exp()
        share = gate[:, None, None]
        mixed = share * log_prior + (1 - share) * log_model
        fused = mixed
        if voice == BOTH:
            fused = fused + self._correction(encoded, log_prior, log_model, soft, model, gate, rho)
        trust = rho.sigmoid() * present
        # What is fused is learned from held-out labels alone (losses on `fused`, `rho`, `kappa`), not through guidance:
        # on images the segmenter has memorised, Q would look infallible.
        base = torch.where(proposals.present[:, None, None], to_logit(soft), q.detach().float().clamp(-6, 6))
        guidance: list[Tensor] = []
        if self.guides:  # from the prior, not from what is fused: there Q is the answer on all pictures known by heart
            guidance = self.guide(encoded.maps, soft * present[:, None, None], base.sigmoid(), trust.detach())
        return Elevated(fused, rho, kappa, score, follow.sigmoid(), base, gate, guidance)

    def _reliability(self, proposals: Proposals, soft: Tensor, model: Tensor) -> tuple[Tensor, ...]:
        """rho, kappa, score and follow, a logit each per sample, from the evidence of the maps alone.

        What the region looks like and what the sentence says is in Q already, and a few dozen labels are soon learned
        by heart by anything that sees features: the judge has a few hundred weights.
        """
        facts = evidence(soft, model, proposals.score, proposals.present)
        rho, kappa, score, follow = (PACE * self.judge(PACE * facts).float()).unbind(1)
        return torch.where(proposals.present, rho, rho.new_tensor(-9.0)), kappa, score, follow

    def _correction(
        self, encoded: Encoded, log_prior: Tensor, log_model: Tensor, soft: Tensor, model: Tensor, gate: Tensor,
        rho: Tensor,
    ) -> Tensor:  # fmt: skip
        """What the pixels of the picture say beyond the mixture: log odds (B, h, w), zero before training."""
        seen = self.look(encoded.maps[0].detach())
        scalars = torch.stack([gate, rho.detach().sigmoid()], dim=1)[:, :, None, None].expand(-1, -1, *soft.shape[1:])
        maps = torch.stack([log_prior / 4, log_model / 4, soft, model, (soft - model).abs()], dim=1)
        return self.correct(torch.cat([seen, maps.to(seen.dtype), scalars.to(seen.dtype)], dim=1))[:, 0].float()
