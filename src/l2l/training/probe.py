"""The probe: how good are the pseudo-labels right now, on a fixed set of unlabelled pairs whose truth is known.

Nothing here flows back into training. The numbers are the yardsticks of L2L's own figure "Temporal evolution of
pseudo-supervision quality", with coverage and foreground precision beside the accuracy, since background is easy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2l.data.streams import generator
from l2l.labelling.policy import State, observe
from l2l.labelling.records import agreed
from l2l.labelling.reward import gain_reward
from l2l.labelling.rple import Rple, mended
from l2l.labelling.sesm import hard_iou
from l2l.model.network import Network
from l2l.proposals.regions import nearest
from l2l.training.parts import Parts
from l2l.training.pool import Batch, normalise


@dataclass(frozen=True)
class Judged:
    """Pairs with their pseudo-labels; N of them, maps at stride 4."""

    proposal: Tensor
    """P (N, h, w) in [0, 1]."""
    q: Tensor
    """The teacher's own prediction without the prior, probabilities."""
    guided: Tensor
    """The guided answer M, probabilities."""
    fused: Tensor
    """The fused proposal, probabilities, as it teaches: with other sentences and regions where those were given."""
    cells: Tensor | None
    """Probability of acceptance per cell; `None` without a policy."""
    samples: Tensor | None
    """Probability of acceptance per sample."""
    rho: Tensor
    """Reliability of the prior, (N,) in [0, 1]."""
    expected: Tensor
    """Expected IoU of the fused proposal, (N,) in [0, 1]."""
    present: Tensor
    """(N,) bool."""

    @property
    def accepted(self) -> Tensor:
        """What is believed, as weights (N, h, w): the product of both decisions."""
        assert self.cells is not None and self.samples is not None
        return self.cells * self.samples[:, None, None]


@torch.no_grad()
def judge(
    network: Network, rple: Rple | None, batches: list[Batch], *, autocast: torch.autocast,
    regions: list[Tensor] | None = None, others: list[tuple[Tensor, Batch]] | None = None,
) -> Judged:
    """Run teacher, SESM and policy over batches as they are (no weak view).

    Args:
        regions: of each batch, (B, scales, 2h, 2w), where pseudo-labels are mended with them.
        others: of each batch the places of pairs whose record has another sentence, and those, where they are heard.
    """
    parts: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(batches):
        with autocast:
            answer = network(normalise(batch.image), batch.tokens, batch.proposals)
            elevated = answer.elevated
            assert elevated is not None and answer.guided is not None and answer.proposal is not None
            if others is not None and len(others[number][0]):
                places, other = others[number]
                answer = agreed(answer, network(normalise(other.image), other.tokens, other.proposals), places)
                assert answer.proposal is not None
            if regions is not None:
                answer = mended(answer, regions[number], network.sesm.drawing)
                assert answer.proposal is not None
            out = {
                "proposal": batch.proposals.soft, "q": answer.q.sigmoid(), "fused": answer.proposal.sigmoid(),
                "guided": answer.guided.sigmoid(), "rho": elevated.rho.sigmoid(), "present": batch.proposals.present,
                "expected": elevated.score.sigmoid(),
            }  # fmt: skip
        if rple is not None:
            state: State = observe(answer, batch.proposals, batch.image)
            out["cells"], out["samples"] = rple.decide(state)
        for name, value in out.items():
            parts.setdefault(name, []).append(value.cpu())
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return Judged(cells=joined.pop("cells", None), samples=joined.pop("samples", None), **joined)


def threshold_precision(confidence: Tensor, label: Tensor, truth: Tensor, coverage: float) -> float:
    """Precision of accepted foreground under the fixed threshold that accepts `coverage` of the foreground cells.

    Args:
        confidence: (N, h, w), the higher the surer. label, truth: bool (N, h, w).
    """
    sure = confidence[label]
    right = truth[label].float()
    if not len(sure):
        return 0.0
    count = max(1, round(coverage * len(sure)))
    return float(right[sure.argsort(descending=True, stable=True)[:count]].mean())


def measure(judged: Judged, truth: Tensor) -> dict[str, float]:
    """The yardsticks. truth: bool (N, h, w).

    `gain_selected` is what a sample that is learned from teaches (`labelling.reward.gain_reward`), `gain_all` what any
    sample would. `precision_front_60` is that of the surest 60 % of the foreground, by confidence x expected IoU of
    the sample.
    `precision_at_own_coverage` ranks the cells by the policy and cuts where its mean acceptance lies, so that it meets
    `threshold_best` (the best of three fixed confidence thresholds, picked with hindsight) at the same coverage.
    """
    label = judged.fused > 0.5
    out = {
        "iou_proposal": float(hard_iou((judged.proposal > 0.5) & judged.present[:, None, None], truth).mean()),
        "iou_fused": float(hard_iou(label, truth).mean()),
        "iou_model": float(hard_iou(judged.q > 0.5, truth).mean()),
        "iou_guided": float(hard_iou(judged.guided > 0.5, truth).mean()),
        "rho": float(judged.rho.mean()),
    }
    if judged.cells is None or judged.samples is None:
        return out
    accepted, right, front = judged.accepted, label == truth, label.float()
    gain = gain_reward(judged.fused, truth, judged.q)
    coverage = float((accepted * front).sum() / front.sum().clamp_min(1))
    confidences = {
        "fused": judged.fused, "model": judged.q,
        "agreement": 1 - (judged.proposal - judged.q).abs(),
    }  # fmt: skip
    rivals = {name: threshold_precision(value, label, truth, coverage) for name, value in confidences.items()}
    return out | {
        "coverage": float(accepted.mean()),
        "coverage_front": coverage,
        "coverage_samples": float(judged.samples.mean()),
        "accuracy_selected": float((accepted * right).sum() / accepted.sum().clamp_min(1e-6)),
        "accuracy_all": float(right.float().mean()),
        "gain_selected": float((accepted * gain).sum() / judged.samples.sum().clamp_min(1e-6)),
        "gain_all": float(gain.sum((1, 2)).mean()),
        "precision_front": float((accepted * front * truth).sum() / (accepted * front).sum().clamp_min(1e-6)),
        "precision_front_all": float((front * truth).sum() / front.sum().clamp_min(1)),
        "precision_at_own_coverage": threshold_precision(accepted, label, truth, coverage),
        "precision_front_60": threshold_precision(
            judged.fused * judged.expected[:, None, None], label, truth, 0.6
        ),
        "threshold_best": max(rivals.values()),
        **{f"threshold_{name}": value for name, value in rivals.items()},
    }


@dataclass(frozen=True)
class Probe:
    """A fixed set of unlabelled pairs of the pool and their truth."""

    rows: Tensor
    truth: Tensor
    """bool (N, h, w)."""

    @classmethod
    def draw(cls, parts: Parts, truth: Tensor, known: Tensor) -> Probe | None:
        """`probe_pairs` random pairs whose truth is known; `None` if there are none."""
        rows = known[parts.pool.ref_of].nonzero()[:, 0]
        if not len(rows):
            return None
        order = torch.randperm(len(rows), generator=generator(parts.config.train.seed, "probe"))
        rows = rows[order[: parts.config.train.probe_pairs]]
        return cls(rows, truth[parts.pool.ref_of[rows]] > 127)

    def judged(self, parts: Parts, rple: Rple | None, *, batch: int = 32) -> Judged:
        """The pairs as teacher, SESM and policy see them now."""
        parted = self.rows.split(batch)
        batches, regions = [parts.pool.batch(rows) for rows in parted], None
        if rple is not None and parts.config.sesm.regions:
            maps = parts.regions
            size = (2 * self.truth.shape[1], 2 * self.truth.shape[2])
            regions = [nearest(maps[parts.pool.image_of[rows]], size).to(parts.pool.device) for rows in parted]
        others = None
        if rple is not None and parts.config.sesm.together:
            others = [self._others(parts, rows) for rows in parted]
        return judge(parts.teacher, rple, batches, autocast=parts.autocast(), regions=regions, others=others)

    @staticmethod
    def _others(parts: Parts, rows: Tensor) -> tuple[Tensor, Batch]:
        """The next sentence of each pair's record, where there is one, and the places of such pairs."""
        other = parts.other_sentence(rows, torch.zeros(len(rows)))
        places = (other != rows).nonzero()[:, 0]
        return places, parts.pool.batch(other[places])
