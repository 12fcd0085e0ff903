"""SESM, the self-evolving segmentation module: prior and model in, fused proposal, guidance and reliability out.

Three voices speak of a pair: the proposal P, the model's own prediction Q, and the guided answer M (`model.network`),
which starts as P and learns end to end when to depart from it. M is learned on pictures that the segmenter knows by
heart, where Q is always right; so it trusts the prior too little elsewhere. SESM mends that with what labels honestly
say: the fused proposal is a log-linear pool of the voices (Heskes, "Selecting weighting factors in logarithmic opinion
pools", NIPS 1997), the weights of which depend on the prior's reliability rho alone.
- How good the prior is, *all* labels say, for it has learned from none of them: rho is its own score, calibrated on
  them. From there SESM starts as a rule: rho's log odds weigh the prior's voice beside M. A weight below zero takes
  from M what it has believed of a prior that is likely wrong; that needs a score that tells which priors those are.
  Where it does not (`tells`), the prior is heard for what even a poor one is worth: an object is where it says far more
  often than by chance; and Q is heard less, for its agreement is then all that rho knows, and would count twice.
- How good Q and M are, only held-out labels say, and a dozen numbers are learned from them, under a ridge that makes
  each departure earn its place: anything larger learned a few dozen labels by heart (docs/LOG.md).
- What is meant and where its outline runs are two questions. The fused proposal answers the first. The outline is drawn
  by all voices that mean the same: where they err there, each errs by itself, and a voice that was overruled has no
  part in it. That is for those who ask; the segmenter learns from the fused proposal: soft outlines teach it to be
  vague.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l.model.guidance import Guidance
from l2l.model.segmenter import Encoded
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class Heard:
    """What SESM makes of a prior before the segmenter is guided by it."""

    rho: Tensor
    """Logits (B,) of the prior's reliability: the expected IoU of the proposal with the truth; very low if absent."""
    base: Tensor
    """Log odds (B, h, w) that the guided answer starts from: the proposal, or Q where there is none."""
    guidance: list[Tensor]
    """One map (B, D, h_k, w_k) per stage; empty in the ablation without guidance."""


@dataclass(frozen=True, slots=True)
class Elevated:
    """What SESM makes of a batch."""

    fused: Tensor
    """Logits (B, h, w) of the fused proposal, the pool of all voices."""
    answer: Tensor
    """Logits (B, h, w): what the fused proposal means, with the outline of all voices that mean the same."""
    rho: Tensor
    """Logits (B,), as `Heard` has them."""
    kappa: Tensor
    """Logits (B,) of the model's own reliability: the expected IoU of Q with the truth."""
    alone: Tensor
    """Logits (B,): the same, as it is where no prior is at hand to compare with."""
    score: Tensor
    """Logits (B,) of the expected IoU of the answer."""
    weights: Tensor
    """(B, 4): of P, Q and M in the fused proposal, and what is added everywhere."""


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """Soft intersection over union of maps (B, h, w) in [0, 1] -> (B,) in [0, 1]: sum of minima over sum of maxima."""
    return torch.minimum(a, b).sum((1, 2)) / torch.maximum(a, b).sum((1, 2)).clamp_min(1e-6)


def hard_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boolean maps (B, h, w) -> (B,) float; 1 where both are empty."""
    union = (a | b).sum((1, 2)).float()
    return torch.where(union > 0, (a & b).sum((1, 2)) / union.clamp_min(1), 1.0)


def came_out(logits: Tensor, mask: Tensor) -> Tensor:
    """IoU (B,) of answers, logits (B, h, w), with masks (B, h, w), the foreground share of each cell: less than it will
    be at the picture's own resolution (see `SESM.finer`); 1 where both are empty."""
    answer = logits > 0
    nothing = ~answer.any((1, 2)) & (mask == 0).all((1, 2))
    return torch.where(nothing, 1.0, soft_iou(answer.float(), mask))


def entropy(p: Tensor) -> Tensor:
    """Entropy of Bernoulli probabilities, in bits: 0 when sure, 1 at 0.5."""
    p = p.float().clamp(1e-6, 1 - 1e-6)
    return -(p * p.log2() + (1 - p) * (1 - p).log2())


def to_logit(p: Tensor, limit: float = 4.0) -> Tensor:
    """Log odds, clamped to [-limit, limit] so that a hard map stays open to argument."""
    return torch.logit(p.float(), eps=1e-6).clamp(-limit, limit)


def alike(logits: Tensor, other: Tensor) -> Tensor:
    """How far two answers, logits (B, h, w), mean the same object, (B,) in [0, 1]: sigmoid((IoU - `SAME`) / 0.1). That
    shows in their overlap; which of them is better drawn does not."""
    return torch.sigmoid((hard_iou(logits > 0, other > 0) - SAME) / 0.1)


def outlined(logits: Tensor, voices: Sequence[tuple[Tensor, Tensor | float]]) -> Tensor:
    """An answer as the voices draw it that mean the same: the mean of their log odds, and of its own with a small
    weight, which is the last word where none of them does.

    Args:
        logits: (B, h, w). voices: of each its logits (B, h, w), and its weight, a number or (B,).

    Returns:
        Logits (B, h, w).
    """
    total, weight = OWN * logits, torch.full_like(logits[:, 0, 0], OWN)
    for said, counts in voices:
        share = counts * alike(logits, said)
        total, weight = total + share[:, None, None] * said, weight + share
    return total / weight[:, None, None]


def short_of_one(iou: Tensor) -> Tensor:
    """Expected IoUs that a factor has raised, any shape, so that they stay below 1, which is for what somebody has
    seen, and in order: as they are up to `NEARLY`; what goes beyond nears `MOST`."""
    rest = MOST - NEARLY
    return torch.where(iou > NEARLY, MOST - rest * torch.exp((NEARLY - iou) / rest), iou)


NEARLY, MOST = 0.95, 0.999
BOTH, PRIOR, MODEL = 0, 1, 2  # whom the fusion listens to
TELLING = 1.0  # standard deviation of calibrated log odds from which a score tells right priors from wrong ones
SAME = 0.6  # IoU from which on two answers are taken to mean the same object
OUTLINE = (4.0, 1.0, 1.0)  # weights of P, Q and M where an outline runs: P is soft where it does not know
OWN = 0.05  # ... of the fused proposal itself
DRAWN = (0.65, 2.0)  # keep, draw where regions are objects (see `proposals.regions.drawn`)
PIECES, OBJECTS = 0.5, 0.7  # IoU of the best region with a mask: up to here regions are pieces, from here on objects
HEARD = 1.1  # what is added to the prior's weight where its score says nothing at all
FEW = 16.0  # held-out referents that move a score half as far as they would
MEETS = 0.84  # IoU of proposals that meet their object, in worlds where scores start right; see `SESM.settle`
AHEAD = 0.8  # log odds by which a score without a prior is learned too high on the way, times what is ahead of the run
PACE = 10.0  # weights are kept a tenth as large as they are used: a run is a few hundred of Adam's steps of fixed size


class Judge(nn.Module):
    """A linear function of a few facts that starts somewhere known, and says how far it has moved.

    Args:
        start: its first weights, the last one for the constant.
    """

    start: Tensor

    def __init__(self, *start: float):
        super().__init__()
        self.register_buffer("start", torch.tensor(start), persistent=False)
        self.moved = nn.Parameter(torch.zeros(len(start)))

    def forward(self, facts: Tensor) -> Tensor:
        """(B, N) -> (B,) float32."""
        # no matrix product: under autocast that is bfloat16
        return (facts.float() * self.weights[:-1]).sum(-1) + self.weights[-1]

    @property
    def weights(self) -> Tensor:
        """As they are used, the constant last."""
        return self.start + PACE * self.moved

    def ridge(self) -> Tensor:
        """Squared distance from the start."""
        return (PACE * self.moved).square().sum()


def calibrated(score: Tensor, iou: Tensor, *, ridge: float = 1.0) -> tuple[float, float]:
    """Slope and constant of the line in a prior's own log odds that foretells IoU best (Platt, "Probabilistic outputs
    for support vector machines", 1999; the targets are IoUs).

    By Newton's method with the Hessian's upper bound in its place (Boehning & Lindsay 1988), which cannot overshoot.

    Args:
        score, iou: (N,) in [0, 1]. ridge: weight of the squared distance from the score itself, slope and height at
            the mean log odds, in samples: scores that are all alike say nothing of the slope.
    """
    odds = torch.logit(score.double(), eps=0.02)
    if not len(odds):
        return 1.0, 0.0
    middle = odds.mean()
    facts = torch.stack([odds - middle, torch.ones_like(odds)], dim=1)
    start = torch.stack([torch.ones_like(middle), middle])
    line, kept = start.clone(), ridge * torch.eye(2, dtype=torch.float64)
    stride = torch.linalg.inv(facts.T @ facts / 4 + kept)
    for _ in range(500):
        slope = facts.T @ ((facts @ line).sigmoid() - iou.double()) + kept @ (line - start)
        line = line - stride @ slope
    return float(line[0]), float(line[1] - line[0] * middle)


def fill(p: Tensor) -> Tensor:
    """Mean confidence of maps (B, h, w) where they are, (B,), as -2 to 2: how sure, and how much of one piece."""
    return 4 * (p * p).sum((1, 2)) / p.sum((1, 2)).clamp_min(1e-3) - 2


def agreement(a: Tensor, b: Tensor) -> Tensor:
    """`soft_iou` of maps (B, h, w) as -2 to 2."""
    return 4 * soft_iou(a, b) - 2


class SESM(nn.Module):
    """Fuse the proposal with what the model says, unguided and guided.

    Args:
        width: channels D of the segmenter's decoder maps.
        fuses: without, the proposal is taken as it is, and Q where there is none, and the guided answer is the last
            word: how the other methods use a prior, and an ablation of this one.
        guides: ablation; without, nothing of the prior reaches the segmenter.
        weighs: ablation; without, the fused proposal is the guided answer.

    `voice` says whom the fusion listens to, and is the drift guard's to set (see `labelling.guard`): `BOTH`, the
    proposal alone (`PRIOR`; Q where there is none) or the model alone (`MODEL`). It is saved with the weights.
    """

    voice: Tensor
    line: Tensor
    tells: Tensor
    finer: Tensor
    meets: Tensor
    taught: Tensor
    ahead: Tensor

    def __init__(self, *, width: int, fuses: bool = True, guides: bool = True, weighs: bool = True):
        super().__init__()
        self.fuses, self.guides, self.weighs = fuses, guides, weighs
        self.register_buffer("voice", torch.tensor(BOTH))
        self.register_buffer("line", torch.tensor([1.0, 0.0]))  # rho in the log odds of the prior's own score
        self.register_buffer("tells", torch.tensor(1.0))  # in [0, 1]: how far that score tells right from wrong
        self.register_buffer("finer", torch.tensor(1.0))  # IoU in pictures over IoU in cells, see `promised`
        self.register_buffer("meets", torch.tensor(MEETS))  # IoU of proposals that meet their object
        self.register_buffer("taught", torch.tensor(0.0))  # held-out referents that teach it
        self.register_buffer("ahead", torch.tensor(0.0))  # share of the run that comes after they are released
        self.lowered = 1.0  # a factor of the score, see `settle`
        self.trust = Judge(0.0)  # what Q's agreement adds to rho
        # what such facts foretold on the pools of other worlds, with 1 % and 5 % of the labels alike (docs/LOG.md)
        self.own = Judge(1.2, 0.8, 0.55, -0.7)  # kappa beside a prior
        self.alone = Judge(1.5, -1.35)  # kappa without one
        self.expect = Judge(1.4, 0.2, 0.25, 0.3, -0.1, -1.35)  # score
        # weights of P, Q, M, and a bias, each a slope in the log odds of rho and a constant
        self.pool = nn.ModuleList(Judge(*one) for one in ((0.5, 0.0), (0.0, 0.0), (0.0, 0.75), (0.0, 0.0)))
        self.draw = Judge(1.0, 0.0)  # keep, draw; see `suit`
        self.guide = Guidance(width=width)

    @property
    def drawing(self) -> dict[str, Tensor]:
        """How far a label keeps to the fused proposal and is drawn to regions, scalars `keep` and `draw` (see
        `proposals.regions.drawn`). Held-out labels move them, and not far (docs/LOG.md)."""
        keep, draw = self.draw.weights
        return {"keep": keep, "draw": draw}

    def calibrate(self, score: Tensor, iou: Tensor) -> None:
        """Let rho be what labelled pairs say of the prior's own score, and see how far that tells them apart. The prior
        has learned from none of them, so they may be *all* labels, those that the segmenter learns from too.

        Args:
            score, iou: (N,) in [0, 1], of the proposals of labelled pairs.
        """
        slope, constant = calibrated(score.cpu(), iou.cpu())
        self.line.copy_(torch.tensor((slope, constant)))
        if len(score) > 1:
            spread = slope * torch.logit(score.double(), eps=0.02).std()
            self.tells.copy_((spread / TELLING).clamp(0, 1))

    def suit(self, held: Tensor) -> None:
        """Let labels be drawn to regions as far as regions are objects in these pictures: fully from a mean IoU of
        `OBJECTS` on, not at all (until held-out labels ask for it) below `PIECES`.

        Args:
            held: (N,) in [0, 1], IoU of the best region with each known mask (`proposals.regions.best_iou`).
        """
        if len(held):
            far = ((held.mean() - PIECES) / (OBJECTS - PIECES)).clamp(0, 1)
            self.draw.start.copy_(torch.stack([1 - far * (1 - DRAWN[0]), far * DRAWN[1]]))

    def reliability(self, proposals: Proposals, q: Tensor) -> Tensor:
        """rho, logits (B,): what the prior says of itself, corrected by what labels say of such scores and by how far Q
        agrees. Without fusion it is the score alone: nobody teaches it more."""
        facts = torch.logit(proposals.score.float(), eps=0.02)
        if self.fuses:
            same = agreement(proposals.soft.float(), q.detach().float().sigmoid())
            facts = facts * self.line[0] + self.line[1] + same * self.trust.weights[0]
        return torch.where(proposals.present, facts, facts.new_tensor(-9.0))

    def listen(self, encoded: Encoded, proposals: Proposals, q: Tensor) -> Heard:
        """q: the model's own prediction, logits (B, h, w); no gradient goes back into it, nor into rho from here."""
        rho = self.reliability(proposals, q)
        present = proposals.present
        soft = proposals.soft.float() * present[:, None, None]
        base = torch.where(present[:, None, None], to_logit(proposals.soft), q.detach().float().clamp(-6, 6))
        guidance: list[Tensor] = []
        if self.guides:  # from the prior and its score alone: on pictures known by heart Q is the answer, and rho tells
            guidance = self.guide(encoded.maps, soft, base.sigmoid(), proposals.score.float() * present)
        return Heard(rho, base, guidance)

    def fuse(
        self, rho: Tensor, proposals: Proposals, q: Tensor, guided: Tensor, *, voice: int | None = None
    ) -> Elevated:
        """The fused proposal; what is learned here is learned from held-out labels alone, and nothing flows back.

        Args:
            rho: from `reliability`. q, guided: logits (B, h, w). voice: if it is not to be its own.
        """
        voice = int(self.voice) if voice is None else voice
        if voice == BOTH and not self.fuses:
            voice = PRIOR
        here = proposals.present.float()
        soft = proposals.soft.float()
        q, guided = (one.detach().float().clamp(-6, 6) for one in (q, guided))
        log_prior, model = to_logit(soft) * here[:, None, None], q.sigmoid()
        known = (rho.detach() * here).clamp(-4, 4)
        of_p, of_q, of_m, bias = (judge(known[:, None]) for judge in self.pool)
        weights = torch.stack([of_p + HEARD * (1 - self.tells), of_q * self.tells, of_m, bias], dim=1)  # (B, 4)
        if not self.weighs:
            weights = torch.eye(4, device=q.device)[2].expand_as(weights)
        only = torch.eye(4, device=q.device)
        weights = torch.where(here[:, None] > 0, weights, only[2])  # without a prior: M, which then starts from Q
        if voice != BOTH:
            weights = torch.where(((here > 0) & (voice == PRIOR))[:, None], only[0], only[1])
        share = weights[:, :, None, None]
        fused = share[:, 0] * log_prior + share[:, 1] * q + share[:, 2] * guided + share[:, 3]
        answer = fused
        if self.weighs and voice == BOTH:
            answer = outlined(fused, [(log_prior, OUTLINE[0] * here), (q, OUTLINE[1]), (guided, OUTLINE[2])])

        same = agreement(soft, model) * here
        kappa = self.own(torch.stack([fill(model), same, known * same / 2], dim=1))
        alone = self.unprompted(q)
        kappa = torch.where(proposals.present, kappa, alone)
        score = self.expected(fused.detach(), rho, proposals, q)
        if voice != BOTH:
            score = torch.where((here > 0) & (voice == PRIOR), rho, alone if voice == MODEL else kappa)
        return Elevated(fused, answer, rho, kappa, alone, score, weights)

    def expected(self, logits: Tensor, rho: Tensor, proposals: Proposals, q: Tensor) -> Tensor:
        """Logits (B,) of the expected IoU of an answer, (B, h, w), given what is known of the pair.

        Args:
            rho: from `reliability`. q: logits (B, h, w).
        """
        said, model, here = logits.sigmoid(), q.detach().float().clamp(-6, 6).sigmoid(), proposals.present.float()
        known = (rho.detach() * here).clamp(-4, 4)
        like_prior, like_model = agreement(proposals.soft.float(), said) * here, agreement(model, said)
        facts = torch.stack([fill(said), known, like_prior, known * like_prior / 2, like_model], dim=1)
        score = self.expect(facts)
        return score if self.lowered == 1 else torch.logit(score.sigmoid() * self.lowered, eps=1e-6)

    def unprompted(self, q: Tensor) -> Tensor:
        """kappa where no prior is at hand, logits (B,), of the model's own prediction, logits (B, h, w)."""
        return self.alone(fill(q.detach().float().clamp(-6, 6).sigmoid())[:, None])

    def promised(self, score: Tensor) -> Tensor:
        """The expected IoU of an answer as people are told it, in [0, 1]: at the picture's own resolution, where an
        outline runs through cells. What is learned is the IoU in cells (`came_out`), lower by a factor that good and
        bad answers share; known masks say which, with the prior for an answer (`methods.known.finer`).

        Args:
            score: logits, any shape.
        """
        return short_of_one(score.float().sigmoid() * self.finer)

    @torch.no_grad()
    def settle(self) -> None:
        """Make of scores learned on the way scores of the end, in place: for those who ask a run, not for its training.

        Judges start where the end of other runs was, and held-out labels have moved them at a time when the segmenter
        was less sure of itself: without a prior that alone is `AHEAD` by a run's whole length. What is left of such a
        move counts as far as it rests on many referents. Where it starts, a mask that meets its object has an IoU of
        `MEETS`; where proposals that meet theirs have less, what is not learned of the score is lower by as much.
        """
        counts = self.taught / (self.taught + FEW)
        self.lowered = float((self.meets / MEETS).clamp(max=1) ** (1 - counts))
        for judge, usual in ((self.expect, 0.0), (self.alone, AHEAD * self.ahead)):
            judge.moved[-1] -= usual / PACE
            judge.moved.mul_(counts)

    def ridge(self) -> Tensor:
        """How far the judges have moved from where they started, squared."""
        judges = (one for one in self.modules() if isinstance(one, Judge))
        return torch.stack([one.ridge() for one in judges]).sum()
