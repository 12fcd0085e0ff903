"""The acceptance policy pi(a|s): one Bernoulli for each stride-4 cell of a pseudo-label and one for the sample.

It starts as a soft threshold on confidence and on the expected IoU of the label, and learns what to add.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.labelling.reward import boundary
from l2l.labelling.sesm import EVIDENCE, entropy, evidence, soft_iou
from l2l.model.network import Answer
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class State:
    """What the policy sees; nothing here carries a gradient."""

    maps: Tensor
    """(B, MAPS, h, w) float32."""
    facts: Tensor
    """(B, FACTS) float32."""
    sentence: Tensor
    """(B, D) float32."""
    label: Tensor
    """bool (B, h, w): the pseudo-label under judgement, the fused proposal cut at 0.5."""

    def __getitem__(self, rows: slice) -> State:
        return State(self.maps[rows], self.facts[rows], self.sentence[rows], self.label[rows])


MAPS = 10
FACTS = EVIDENCE + 7


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
        answer: the teacher's, on the weak view, with proposals; its guided logits are the proposal under judgement.
        strong: logits (B, h, w) without prior on the strong view of the same pixels.
        image: the weak view, (B, 3, H, W).
    """
    elevated, guided = answer.elevated, answer.guided
    assert elevated is not None and guided is not None
    soft, model, fused, other = proposals.soft, answer.q.sigmoid(), guided.sigmoid(), strong.sigmoid()
    label = fused > 0.5
    maps = torch.stack(
        [
            soft, fused, model, (soft - model).abs(), (fused - model).abs(), entropy(fused), entropy(model),
            (model - other).abs(), edges(image, (model.shape[1], model.shape[2])), boundary(label).float(),
        ],
        dim=1,
    )  # fmt: skip
    size = label.float().sum((1, 2))
    inside = (fused * label).sum((1, 2)) / size.clamp_min(1)
    rho, kappa, expected = elevated.rho.sigmoid(), elevated.kappa.sigmoid(), elevated.score.sigmoid()
    own = [rho, kappa, elevated.gate, expected, inside, soft_iou(fused, model), soft_iou(model, other)]
    facts = torch.cat(
        [evidence(soft, model, proposals.score, proposals.present), torch.stack(own, dim=1)], dim=1
    )  # (B, FACTS)
    return State(maps.float(), facts.float(), answer.encoded.sentence.float(), label)


class AcceptancePolicy(nn.Module):
    """Logits of acceptance per cell and per sample.

    Args:
        words: channels D of the sentence vector.
        inner: hidden channels.
    """

    def __init__(self, *, words: int, inner: int = 32):
        super().__init__()
        self.told = nn.Linear(words, 8)
        self.globals = nn.Linear(FACTS + 8, inner)
        self.inward = nn.Conv2d(MAPS, inner, 3, padding=1)
        self.middle = nn.Conv2d(inner, inner, 3, padding=1)
        self.pixel = nn.Conv2d(inner, 1, 1)
        self.sample = nn.Sequential(nn.Linear(FACTS + 8 + inner, inner), nn.GELU(), nn.Linear(inner, 1))
        for last in (self.pixel, self.sample[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.start = nn.Parameter(torch.tensor([3.0, 4.0]))  # slopes of the two thresholds it starts from

    def forward(self, state: State) -> tuple[Tensor, Tensor]:
        """Logits of pi: (B, h, w) for the cells, (B,) for the samples."""
        facts = torch.cat([state.facts, F.dropout(torch.tanh(self.told(state.sentence)), 0.5, self.training)], dim=1)
        hidden = F.gelu(self.inward(state.maps) + self.globals(facts)[:, :, None, None])
        hidden = F.gelu(self.middle(hidden))
        sure = (state.maps[:, 1] - 0.5).abs() * 2  # confidence of the fused proposal, [0, 1]
        cells = self.pixel(hidden)[:, 0] + self.start[0] * (sure - 0.5)
        pooled = (hidden * state.label[:, None]).sum((2, 3)) / state.label.sum((1, 2)).clamp_min(1)[:, None]
        expected = state.facts[:, EVIDENCE + 3]
        sample = self.sample(torch.cat([facts, pooled], dim=1))[:, 0] + self.start[1] * (expected - 0.5)
        return cells, sample
