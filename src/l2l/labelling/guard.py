"""The drift guard: notices when the loop is about to poison itself, says so, and falls back.

The loop trusts what it learned on held-out labels. It goes wrong in three ways, each of which those labels can show:
- there are too few of them, or the segmenter has seen them: then SESM and the policy would learn that Q is infallible,
  or that the prior is worthless because it missed two referents, and do not learn; SESM's rule holds, with the prior's
  own score as it is (it starts there);
- the fused proposal is worse there than the proposal alone, or than Q alone: the fusion has drifted;
- of the foreground that the policy accepts there, next to nothing is right. (Wrong labels that scatter over the other
  objects of a picture are outvoted: a loop that began with 16 % right ended 8 points above the labels alone.)
The proposal's own quality is always honest evidence: nobody trained the prior on these labels. So whether it is worth
hearing at all is asked before the first step, of all known masks (`methods.known.misleading`).

The guard sets whom the fusion listens to (`SESM.voice`) and how much the unlabelled loss weighs. It is ours; the paper
names "drift under extreme sparsity or domain shift" as a limit and leaves it there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l.labelling.sesm import BOTH, MODEL, PRIOR

PRESUMED = 4  # referents that a presumption in the prior's favour is worth
VOICES = {BOTH: "both", PRIOR: "the prior alone", MODEL: "the model alone"}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one step shows on held-out pairs, each a mean over pairs of the step."""

    prior: float
    """IoU of the proposal; NaN if no pair has one."""
    model: float
    """IoU of Q."""
    fused: float
    """IoU of the fused proposal, as it would be if both were listened to."""
    precision: float
    """Share of the accepted foreground that is right; NaN if none is accepted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds from now on."""

    voice: int
    """`BOTH`, `PRIOR` or `MODEL`."""
    weight: float
    """Of the unlabelled loss, in [0, 1]."""
    event: str
    """What changed, in words; empty if nothing did."""


class DriftGuard(nn.Module):
    """Slow means of the evidence, and the verdict that follows from them. Its state is saved with the run.

    Args:
        honest: whether the held-out labels are kept from the segmenter.
        refs: how many different referents are held out: their mean IoU has a standard error of about 0.35 / sqrt(refs).
        labels: how many referents the prior's own quality is known on.
        least: fewer held-out refs than this are no evidence for SESM.
        floor: mean IoU from which a proposal is worth learning from when nothing else is known.
        worst: least precision of the accepted foreground.
        horizon: steps that the slow means look back.
        patience: steps before the first verdict: what has not yet been learned cannot have drifted.
    """

    means: Tensor
    seen: Tensor
    voice: Tensor
    open: Tensor

    def __init__(
        self, *, honest: bool, refs: int, labels: int = 0, least: int = 6, floor: float = 0.3,
        worst: float = 0.1, horizon: int = 30, patience: int = 30,
    ):  # fmt: skip
        super().__init__()
        self.patience = patience
        self.honest = honest and refs >= least
        self.refs, self.labels, self.floor, self.horizon = refs, max(labels, refs), floor, horizon
        self.worst = worst
        self.register_buffer("means", torch.full((4,), float("nan"), dtype=torch.float64))  # as Evidence
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("voice", torch.tensor(-1))
        self.register_buffer("open", torch.tensor(True))

    @property
    def margin(self) -> float:
        """How much worse the fusion has to be before it is called drift: two standard errors, at least 0.05. (With half
        of one, and with one, it took chance for drift in sound runs.)"""
        return max(0.05, 2 * 0.35 / math.sqrt(max(self.refs, 1)))

    def look(self, evidence: Evidence) -> Verdict:
        """Take in one step's evidence and say what holds."""
        new = torch.tensor([evidence.prior, evidence.model, evidence.fused, evidence.precision], dtype=torch.float64)
        self.seen += 1
        pace = max(1 / self.horizon, 1 / int(self.seen))
        moved = torch.where(self.means.isnan(), new, self.means + pace * (new - self.means))
        self.means.copy_(torch.where(new.isnan(), self.means, moved))
        before, was_open = int(self.voice), bool(self.open)
        if int(self.seen) < self.patience and self.honest:
            return Verdict(BOTH, 1.0, "")
        voice, is_open, why = self._judge(before, was_open)
        self.voice.fill_(voice)
        self.open.fill_(is_open)
        usual = before == -1 and voice == BOTH and is_open and self.honest  # nothing to tell
        changed = (voice, is_open) != (before, was_open) and not usual
        return Verdict(voice, float(is_open), why if changed else "")

    def _judge(self, before: int, was_open: bool) -> tuple[int, bool, str]:
        prior, model, fused, precision = self.means.tolist()
        told = f"held-out IoU: prior {prior:.2f}, model {model:.2f}, fused {fused:.2f}; "
        told += f"precision of the accepted {precision:.2f}"
        if not self.honest:
            # A handful of misses may be chance: the prior is presumed as good as four referents with an IoU of 0.5 say.
            presumed = (self.labels * prior + PRESUMED * 0.5) / (self.labels + PRESUMED)
            believed = presumed >= self.floor  # False for NaN too
            why = f"too few labels to judge by ({self.labels} referents, prior IoU {prior:.2f}): "
            if believed:
                return BOTH, True, why + "prior and model are pooled as the prior's own score says"
            return MODEL, False, why + "no pseudo-labels, the labels alone"
        best = max(model, prior if prior == prior else -1.0)
        slack = self.margin * (1.0 if before in (-1, BOTH) else 0.5)  # easier to stay than to go
        voice = BOTH
        if fused < best - slack:
            voice = PRIOR if best == prior else MODEL
        is_open = not precision < (self.worst if was_open else self.worst + 0.05)  # NaN: nothing accepted, no harm
        if voice != BOTH:
            return voice, is_open, f"the fusion drifted ({told}): listening to {VOICES[voice]}" + (
                "" if is_open else ", and no pseudo-labels")  # fmt: skip
        if not is_open:
            return voice, False, f"what is accepted would do harm ({told}): no pseudo-labels until that changes"
        return voice, True, f"the loop is sound again ({told})"
