"""RPLE, reinforced pseudo-label exploration: which pixels to believe, learned by policy gradient.

It is a bandit: one state, one action, one reward. So REINFORCE with a leave-one-out baseline over K sampled actions,
and nothing else: no critic, no clipping, no advantage estimation over time (they answer questions not asked here).

Two things make it hold where a plain version dies:
- Credit is local. The reward is separable over pixels, so each pixel has its own advantage and the sample its own,
  instead of one sum for hundreds of decisions.
- Coverage is guaranteed, not hoped for. The policy is projected on the set of policies whose mean acceptance lies in a
  band. For a field of Bernoullis the KL projection on a mean is a shift shared by all logits; its implicit gradient
  subtracts the constraint's multiplier from every reward, so the policy spends its gradient on *which*, not *how many*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.labelling.guard import DriftGuard
from l2l.labelling.policy import AcceptancePolicy, State
from l2l.model.network import Answer
from l2l.proposals.regions import drawn


def coverage_shift(logits: Tensor, low: float, high: float, weight: Tensor | None = None) -> Tensor:
    """The shift c, nearest to 0, for which the weighted mean of sigmoid(logits + c) lies in [low, high]; a scalar.

    Args:
        logits: any shape; nothing of it gets a gradient here.
        weight: same shape, not negative; all ones if not given. With no weight at all the shift is 0.
    """
    flat = logits.detach().double().flatten()
    share = torch.ones_like(flat) if weight is None else weight.detach().double().flatten()
    total = share.sum()
    if total <= 0:
        return logits.new_zeros(())
    now = (flat.sigmoid() * share).sum() / total
    target = now.clamp(low, high)
    if now == target:
        return logits.new_zeros(())
    below, above = -40.0 - flat.amax(), 40.0 - flat.amin()
    for _ in range(60):
        middle = (below + above) / 2
        too_low = ((flat + middle).sigmoid() * share).sum() / total < target
        below, above = torch.where(too_low, middle, below), torch.where(too_low, above, middle)
    return ((below + above) / 2).to(logits.dtype)


def project(logits: Tensor, low: float, high: float, weight: Tensor | None = None) -> Tensor:
    """Shift logits so that mean acceptance lies in [low, high], with the gradient of the shift.

    Where the band is met the logits come back as they are. Where it is not, moving one logit moves the shift the other
    way (implicit function theorem): d shift / d logit_i = -s_i / sum_j s_j with s = weight x pi (1 - pi).
    """
    shift = coverage_shift(logits, low, high, weight)
    if shift == 0:
        return logits
    pi = (logits.detach() + shift).sigmoid()
    slope = pi * (1 - pi) * (1 if weight is None else weight.detach())
    slope = slope / slope.sum().clamp_min(1e-12)
    return logits + shift - (slope * (logits - logits.detach())).sum()


def leave_one_out(reward: Tensor) -> Tensor:
    """Advantage of each of K actions over the mean of the other K - 1: reward (K, ...) -> (K, ...)."""
    count = reward.shape[0]
    return (reward - reward.mean(0)) * (count / (count - 1))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One estimate."""

    loss: Tensor
    """Scalar whose gradient is minus the policy gradient."""
    sample_value: Tensor
    """(B,) mean reward of the samples over the K actions, if accepted."""
    spread: Tensor
    """Scalar: standard deviation of the sampled rewards over the K actions, mean over samples."""


def exact_gradient(cells: Tensor, samples: Tensor, reward: Tensor) -> Outcome:
    """The same objective as `policy_gradient` without sampling: its expectation is known in closed form, because the
    reward is separable. For the ablation; arguments as there."""
    take = cells.sigmoid()
    worth = (take * reward).sum((1, 2))
    gained = worth + samples.sigmoid() * worth.detach()
    return Outcome(-gained.mean(), worth.detach(), worth.detach().new_zeros(()))


def policy_gradient(
    cells: Tensor, samples: Tensor, reward: Tensor, *, count: int, generator: torch.Generator | None = None
) -> Outcome:
    """REINFORCE with K = `count` sampled actions per sample and a leave-one-out baseline.

    The objective is E[sum_p a_p r_p] for the cells of a sample (given that it is looked at) plus E[a_s sum_p a_p r_p]
    for the sample's own decision. Unbiased: `tests/test_rple.py` checks it against enumeration of all actions.

    Args:
        cells: logits (B, h, w). samples: logits (B,). reward: (B, h, w), see `labelling.reward`.
    """
    with torch.no_grad():
        shape = (count, *cells.shape)
        take = _uniform(shape, generator, cells) < cells.sigmoid()
        look = _uniform((count, *samples.shape), generator, samples) < samples.sigmoid()
        take, look = take.float(), look.float()
        gained = take * reward  # (K, B, h, w)
        advantage = leave_one_out(gained)
        worth = gained.sum((2, 3))  # (K, B)
        sample_advantage = leave_one_out(look * worth)
    log_cells = -F.binary_cross_entropy_with_logits(cells.expand(shape), take, reduction="none")
    log_samples = -F.binary_cross_entropy_with_logits(samples.expand_as(look), look, reduction="none")
    per_sample = (advantage * log_cells).sum((2, 3)) + sample_advantage * log_samples
    return Outcome(-per_sample.mean(), worth.mean(0), worth.std(0).mean())


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Numbers in [0, 1), drawn on the CPU wherever they go: the same actions on every device."""
    return torch.rand(shape, generator=generator).to(like.device)


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy of Bernoulli variables in nats, elementwise, stable for large logits."""
    return F.softplus(logits) - logits * logits.sigmoid()


def mended(answer: Answer, regions: Tensor, drawing: Mapping[str, Tensor]) -> Answer:
    """An answer whose pseudo-label is drawn to regions (B, scales, 2h, 2w); `drawing` is `SESM.drawing`."""
    assert answer.proposal is not None
    with torch.no_grad():
        return dataclasses.replace(answer, proposal=drawn(answer.proposal, regions, **drawing))


def divergence(logits: Tensor, reference: Tensor | float) -> Tensor:
    """KL divergence in nats of Bernoulli variables from those whose logits are `reference`, elementwise."""
    reference = torch.as_tensor(reference, dtype=logits.dtype, device=logits.device)
    return F.softplus(reference) - reference * logits.sigmoid() - bernoulli_entropy(logits)


def choose(logits: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """`count` of the samples, without replacement, each next one with odds exp(logit) among those left (Gumbel top-k;
    Kool et al., "Stochastic beams and where to find them", ICML 2019): places (count,), best first.

    Args:
        logits: (B,); nothing of it gets a gradient.
    """
    noise = _uniform(logits.shape, generator, logits).clamp(1e-9, 1 - 1e-7)
    return (logits.detach() - (-noise.log()).log()).argsort(descending=True)[:count]


class Rple(nn.Module):
    """The policy with its coverage bands: judges pseudo-labels in training, decides about them afterwards.

    Args:
        policy: the network pi.
        bands: (low, high) mean acceptance of samples, of foreground cells, of background cells.
        memory: how many recent samples the mean acceptance of samples is taken over.
        rule: who accepts; `threshold` and `confidence` are ablations, see `accept`.
        threshold: confidence max(p, 1 - p) of the fused proposal from which the fixed threshold accepts.
        guard: the drift guard of the run, kept here to be saved with it.
        wrong: lambda of the reward: a learned confidence accepts what is right with more than wrong / (1 + wrong).
    """

    recent: Tensor
    shift: Tensor

    def __init__(
        self, *, policy: AcceptancePolicy, bands: Sequence[tuple[float, float]], memory: int = 256,
        rule: Literal["policy", "threshold", "confidence"] = "policy", threshold: float = 0.8, wrong: float = 3.0,
        guard: DriftGuard | None = None,
    ):
        super().__init__()
        self.policy, self.guard = policy, guard
        self.rule, self.threshold, self.wrong = rule, threshold, wrong
        self.bands = tuple(bands)
        self.register_buffer("recent", torch.full((memory,), float("nan")))  # sample logits, newest first
        self.register_buffer("shift", torch.zeros(3))  # slow mean of the shifts: what `decide` uses

    def judge(self, state: State, *, remember: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Projected logits of a training batch, (B, h, w) and (B,), with gradients.

        `remember` picks the samples that stand for the pool (the unlabelled ones); the others share their shifts.
        """
        raw_cells, raw_samples = self.policy(state)
        if self.rule != "policy":
            return raw_cells, raw_samples
        past = self.recent[~self.recent.isnan()]
        everyone = torch.cat([raw_samples, past])
        counts = torch.zeros_like(everyone)
        counts[: len(raw_samples)][remember] = 1
        counts[len(raw_samples) :] = 1
        samples = project(everyone, *self.bands[0], counts)[: len(raw_samples)]
        front, back = state.label.float(), 1 - state.label.float()
        here = torch.zeros(len(raw_samples), 1, 1, device=front.device)
        here[remember] = 1
        as_front = project(raw_cells, *self.bands[1], front * here)
        as_back = project(raw_cells, *self.bands[2], back * here)
        cells = torch.where(state.label, as_front, as_back)
        with torch.no_grad():
            shifts = [(samples - raw_samples).mean(), (as_front - raw_cells).mean(), (as_back - raw_cells).mean()]
            self.shift.lerp_(torch.stack(shifts), 0.05)
            fresh = raw_samples[remember]
            self.recent = torch.cat([fresh, self.recent])[: len(self.recent)]
        return cells, samples

    def accept(self, state: State, cells: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of `judge` -> how far each cell (B, h, w) and each sample (B,) is believed, in [0, 1].

        The policy's probabilities; or, with another rule, 0 and 1: a fixed threshold believes every sample, and of it
        the cells that are sure enough; a learned confidence believes what is probably worth it.
        """
        if self.rule == "threshold":
            return (state.sure >= self.threshold).float(), torch.ones_like(samples)
        if self.rule == "confidence":
            return (cells.sigmoid() > self.wrong / (1 + self.wrong)).float(), (samples > 0).float()
        return cells.sigmoid(), samples.sigmoid()

    def choose(self, samples: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Which of the offered samples are learned from: places (count,), see `choose`. A fixed threshold knows no
        better than chance."""
        return choose(samples if self.rule != "threshold" else torch.zeros_like(samples), count, generator=generator)

    @torch.no_grad()
    def decide(self, state: State) -> tuple[Tensor, Tensor]:
        """Probabilities of acceptance, cells (B, h, w) and samples (B,); each sample by itself, nothing is changed."""
        training = self.policy.training
        cells, samples = self.policy.eval()(state)
        self.policy.train(training)
        if self.rule == "policy":
            cells, samples = cells + torch.where(state.label, self.shift[1], self.shift[2]), samples + self.shift[0]
        return self.accept(state, cells, samples)
