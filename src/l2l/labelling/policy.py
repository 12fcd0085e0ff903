"""The acceptance policy pi(a|s): one Bernoulli for each stride-4 cell of a pseudo-label and one for the sample.

Of a sample it accepts nearly every cell to begin with, and learns what to refuse. Samples it ranks by what they are
expected to teach, and learns where that expectation is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.labelling.reward import boundary, gain_reward
from l2l.labelling.sesm import soft_iou, to_logit
from l2l.model.network import Answer
from l2l.proposals.proposal import Proposals


@dataclass(frozen=True, slots=True)
class State:
    """What the policy sees; nothing here carries a gradient."""

    maps: Tensor
    """(B, MAPS, h, w) float32: what each of the `VOICES` says for the label, in log odds / 4 (fused proposal, model,
    guided answer, prior; 0 without one), the label's outline, edges of the picture, and the label as +-1."""
    facts: Tensor
    """(B, FACTS) float32: SESM's expected IoU of label, prior and model (log odds / 2), the prior's weight, the mean of
    the three predictions inside the label, how far they agree, and `expected_gain` (the log of it)."""
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

    def __getitem__(self, rows: slice | Tensor) -> State:
        return State(self.maps[rows], self.facts[rows], self.sentence[rows], self.label[rows])


ACCEPT = 3.0  # logit of acceptance where nothing has been learned: 0.95
SLOPE = 3.0  # of a sample's first logit in the log of what it is expected to teach
DOUBT = 1.0  # power of the expected IoU in that: a label that is wrong costs
PACE = 4.0  # in front of what is learned: a run is a few hundred of Adam's steps, each of a fixed small size
MAPS = 7
FACTS = 11
VOICES = 4  # the first maps: fused proposal, model, guided answer, prior


def edges(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Strength of image edges per stride-4 cell: (B, 3, H, W) -> (B, h, w) in [0, 1]."""
    grey = F.interpolate(image.float().mean(1, keepdim=True), size=(2 * size[0], 2 * size[1]), mode="area")
    across = (grey[..., :, 1:] - grey[..., :, :-1]).abs()
    down = (grey[..., 1:, :] - grey[..., :-1, :]).abs()
    both = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
    return F.adaptive_max_pool2d(both, size)[:, 0].clamp(0, 1)


def expected_gain(proposal: Tensor, model: Tensor) -> Tensor:
    """What `reward.gain_reward` would be on average if the proposal were calibrated, that is, if the truth were drawn
    from it, summed over the sample: (B,). So nothing unsure is refused for being unsure.

    Args:
        proposal, model: p and q, in [0, 1], (B, h, w).
    """
    return gain_reward(proposal, proposal, model).sum((1, 2))


@torch.no_grad()
def observe(answer: Answer, proposals: Proposals, image: Tensor) -> State:
    """Build the state of a batch.

    Args:
        answer: the teacher's, on the weak view, with proposals; its fused proposal is what is judged.
        image: the weak view, (B, 3, H, W).
    """
    elevated, proposal, guided = answer.elevated, answer.proposal, answer.guided
    assert elevated is not None and proposal is not None and guided is not None
    proposal, q, guided, soft = proposal.float(), answer.q.float(), guided.float(), proposals.soft.float()
    label = proposal > 0
    side = label.float() * 2 - 1  # how far each voice is for the label: log odds, positive where it agrees
    here = proposals.present.float()[:, None, None]
    voices = [*(voice.clamp(-6, 6) for voice in (proposal, q, guided)), to_logit(soft) * here]
    shape = (proposal.shape[1], proposal.shape[2])
    maps = torch.stack(
        [*(voice * side / 4 for voice in voices), boundary(label).float(), edges(image, shape), side], dim=1
    )
    fused, model, other = proposal.sigmoid(), q.sigmoid(), guided.sigmoid()
    size = label.float().sum((1, 2)).clamp_min(1)
    inside = [(one * label).sum((1, 2)) / size for one in (fused, model, other)]
    agree = [soft_iou(fused, model), soft_iou(model, other), soft_iou(soft, model) * here[:, 0, 0]]
    told = [one.float().clamp(-4, 4) / 2 for one in (elevated.score, elevated.rho, elevated.kappa)]
    gain = expected_gain(fused, model).clamp_min(1e-3).log()
    facts = torch.stack([*told, elevated.weights[:, 0].float(), *inside, *agree, gain], dim=1)  # (B, FACTS)
    return State(maps, facts, answer.encoded.sentence.float(), label)


class AcceptancePolicy(nn.Module):
    """Logits of acceptance per cell and per sample.

    Small on purpose: it learns from a few dozen held-out labels. A convolutional policy with 32 channels over raw maps
    ranked cells *worse* than a plain threshold (docs/LOG.md); what helps is to show it each voice turned towards the
    label, so that it need not learn what agreement is.

    Args:
        words: channels D of the sentence vector.
        inner: hidden channels.

    `telling`: 1, or 0 where nobody can say beforehand what a label would teach, for too few masks are known to check
    the scores by, or there is no prior; then the choice starts by chance.
    """

    telling: Tensor

    def __init__(self, *, words: int, inner: int = 16):
        super().__init__()
        self.register_buffer("telling", torch.tensor(1.0))
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
        return cells, self.start(state) + PACE * self.sample(facts)[:, 0]

    def start(self, state: State) -> Tensor:
        """Logits (B,) of the samples before anything is learned: the more they are expected to teach, the higher. From
        expected gain x (expected IoU)^`DOUBT`."""
        score = F.logsigmoid(2 * state.facts[:, 0])
        return self.telling * SLOPE * (state.facts[:, -1] + DOUBT * score)
