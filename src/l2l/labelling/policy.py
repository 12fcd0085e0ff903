"""The acceptance policy pi(a|s): one Bernoulli for each stride-4 cell of a pseudo-label and one for the sample.

It starts by accepting nearly everything, and learns what to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.labelling.reward import boundary
from l2l.labelling.sesm import soft_iou, to_logit
from l2l.model.network import Answer
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class State:
    """What the policy sees; nothing here carries a gradient."""

    maps: Tensor
    """(B, MAPS, h, w) float32: what each of the `VOICES` says for the label, in log odds / 4 (fused proposal, model,
    model on the strong view, prior; 0 without one), the label's outline, edges of the picture, and the label as +-1."""
    facts: Tensor
    """(B, FACTS) float32: SESM's expected IoU of label, prior and model (log odds / 2), the prior's weight, the mean of
    the three predictions inside the label, and how far they agree."""
    sentence: Tensor
    """(B, D) float32."""
    label: Tensor
    """bool (B, h, w): the pseudo-label under judgement, the fused proposal cut at 0.5."""

    @property
    def sure(self) -> Tensor:
        """(B, h, w) in [0.5, 1]: confidence max(p, 1 - p) of the fused proposal."""
        return (4 * self.maps[:, 0]).sigmoid()

    @property
    def proposal(self) -> Tensor:
        """(B, h, w) in [0, 1]: the fused proposal."""
        return (4 * self.maps[:, 0] * self.maps[:, -1]).sigmoid()

    def __getitem__(self, rows: slice) -> State:
        return State(self.maps[rows], self.facts[rows], self.sentence[rows], self.label[rows])


ACCEPT = 3.0  # logit of acceptance where nothing has been learned: 0.95
PACE = 4.0  # in front of what is learned: a run is a few hundred of Adam's steps, each of a fixed small size
MAPS = 7
FACTS = 10
VOICES = 4  # the first maps: fused proposal, model, model on the strong view, prior


def edges(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Strength of image edges per stride-4 cell: (B, 3, H, W) -> (B, h, w) in [0, 1]."""
    grey = F.interpolate(image.float().mean(1, keepdim=True), size=(2 * size[0], 2 * size[1]), mode="area")
    across = (grey[..., :, 1:] - grey[..., :, :-1]).abs()
    down = (grey[..., 1:, :] - grey[..., :-1, :]).abs()
    both = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
    return F.adaptive_max_pool2d(both, size)[:, 0].clamp(0, 1)


@torch.no_grad()
def observe(answer: Answer, proposals: Proposals, strong: Tensor, image: Tensor) -> State:
    """Build the state of a batch.

    Args:
        answer: the teacher's, on the weak view, with proposals; its fused proposal is what is judged.
        strong: logits (B, h, w) without prior on the strong view of the same pixels.
        image: the weak view, (B, 3, H, W).
    """
    elevated, proposal = answer.elevated, answer.proposal
    assert elevated is not None and proposal is not None
    proposal, soft = proposal.float(), proposals.soft.float()
    label = proposal > 0
    side = label.float() * 2 - 1  # how far each voice is for the label: log odds, positive where it agrees
    here = proposals.present.float()[:, None, None]
    voices = [proposal.clamp(-6, 6), answer.q.float().clamp(-6, 6), strong.float().clamp(-6, 6), to_logit(soft) * here]
    shape = (proposal.shape[1], proposal.shape[2])
    maps = torch.stack(
        [*(voice * side / 4 for voice in voices), boundary(label).float(), edges(image, shape), side], dim=1
    )
    fused, model, other = proposal.sigmoid(), answer.q.float().sigmoid(), strong.float().sigmoid()
    size = label.float().sum((1, 2)).clamp_min(1)
    inside = [(one * label).sum((1, 2)) / size for one in (fused, model, other)]
    agree = [soft_iou(fused, model), soft_iou(model, other), soft_iou(soft, model) * here[:, 0, 0]]
    told = [one.float().clamp(-4, 4) / 2 for one in (elevated.score, elevated.rho, elevated.kappa)]
    facts = torch.stack([*told, elevated.weights[:, 0].float(), *inside, *agree], dim=1)  # (B, FACTS)
    return State(maps, facts, answer.encoded.sentence.float(), label)


class AcceptancePolicy(nn.Module):
    """Logits of acceptance per cell and per sample.

    Small on purpose: it learns from a few dozen held-out labels. A convolutional policy with 32 channels over raw maps
    ranked cells *worse* than a plain threshold (docs/LOG.md); what helps is to show it each voice turned towards the
    label, so that it need not learn what agreement is.

    Args:
        words: channels D of the sentence vector.
        inner: hidden channels.
    """

    def __init__(self, *, words: int, inner: int = 16):
        super().__init__()
        self.told = nn.Linear(words, 4)
        self.globals = nn.Linear(FACTS + 4, inner)
        self.inward = nn.Conv2d(MAPS, inner, 1)
        self.pixel = nn.Conv2d(inner + VOICES, 1, 1)
        self.sample = nn.Sequential(nn.Linear(FACTS + 4, inner), nn.GELU(), nn.Linear(inner, 1))
        for last in (self.pixel, self.sample[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits of pi: (B, h, w) for the cells, (B,) for the samples."""
        facts = torch.cat([state.facts, F.dropout(torch.tanh(self.told(state.sentence)), 0.5, self.training)], dim=1)
        hidden = F.gelu(self.inward(state.maps) + self.globals(facts)[:, :, None, None])
        cells = ACCEPT + PACE * self.pixel(torch.cat([hidden, state.maps[:, :VOICES]], dim=1))[:, 0]
        return cells, ACCEPT + PACE * self.sample(facts)[:, 0]
