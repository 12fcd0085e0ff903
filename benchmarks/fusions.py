"""How should prior, model and guided answer be fused? Fusions fitted on the held-out labels of one snapshot, measured
on the pool.

    python benchmarks/trial.py NAME l2l --snapshot 240 && python benchmarks/fusions.py trials/NAME.pt

A fusion is a log-linear pool of P, Q, M and a constant; fusions differ in what its weights depend on. Half of the pool
is measured; the other half stands, in some rows, for as many labels as nobody has: how much there would be to learn.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.labelling.sesm import agreement, fill, hard_iou, to_logit
from l2l.training.losses import segmentation_loss

Kept = dict[str, Tensor]
START = torch.tensor([0.0, 0.0, 1.0, 0.0])  # of P, Q, M and the constant


def voices(kept: Kept) -> Tensor:
    """(N, h, w, 4): log odds of P, Q, M, and 1."""
    odds = [to_logit(kept["prior"]), kept["model"].clamp(-6, 6), kept["guided"].clamp(-6, 6)]
    return torch.stack([*odds, torch.ones_like(odds[0])], -1)


def facts(kept: Kept) -> Tensor:
    """(N, 8): the prior's score (log odds), agreement of each two voices, how sure each is, and the size of Q."""
    p, q, m = kept["prior"], kept["model"].sigmoid(), kept["guided"].sigmoid()
    told = [torch.logit(kept["score"], eps=0.02), agreement(p, q), agreement(p, m), agreement(q, m)]
    return torch.stack([*told, fill(p), fill(q), fill(m), q.mean((1, 2)).clamp_min(1e-4).log10()], 1)


def half(kept: Kept, which: int) -> Kept:
    return {name: one[which::2] for name, one in kept.items()}


def reliability(taught: Kept, asked: Kept, columns: list[int], ridge: float = 0.01) -> tuple[Tensor, Tensor]:
    """Log odds of the expected IoU of P, for both: logistic regression on some facts."""
    middle, spread = facts(asked).mean(0), facts(asked).std(0) + 1e-3
    judge = nn.Linear(len(columns), 1)
    nn.init.zeros_(judge.weight)
    nn.init.zeros_(judge.bias)
    goal = hard_iou(taught["prior"] > 0.5, taught["truth"] > 0.5)
    shown = [((facts(one) - middle) / spread)[:, columns] for one in (taught, asked)]
    optimiser = torch.optim.Adam(judge.parameters(), lr=2e-2)
    for _ in range(300):
        loss = F.binary_cross_entropy_with_logits(judge(shown[0])[:, 0], goal)
        loss = loss + ridge * sum(one.square().sum() for one in judge.parameters())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return judge(shown[0])[:, 0].detach(), judge(shown[1])[:, 0].detach()


def pooled(taught: Kept, asked: Kept, told: tuple[Tensor, Tensor] | None, *, inner: int = 0, ridge: float) -> float:
    """IoU on `asked`, percent, of a pool whose weights depend on what is `told` of both; on nothing without."""
    torch.manual_seed(0)
    if told is None:
        told = (torch.zeros(len(taught["truth"]), 1), torch.zeros(len(asked["truth"]), 1))
    width = told[0].shape[1]
    last = nn.Linear(inner or width, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    judge = nn.Sequential(nn.Linear(width, inner), nn.GELU(), last) if inner else last
    known, truth = voices(taught), taught["truth"]
    optimiser = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(300):
        rows = torch.randint(len(truth), (min(64, len(truth)),))
        moved = judge(told[0][rows])
        fused = (known[rows] * (START + moved)[:, None, None]).sum(-1)
        loss = segmentation_loss(fused, truth[rows]).mean() + ridge * moved.square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        fused = (voices(asked) * (START + judge(told[1]))[:, None, None]).sum(-1)
    return reached(fused > 0, asked)


def reached(answer: Tensor, kept: Kept) -> float:
    return 100 * float(hard_iou(answer, kept["truth"] > 0.5).mean())


def main(path: str) -> None:
    kept = torch.load(path, weights_only=True)
    held, many, asked = kept["held"], half(kept["pool"], 0), half(kept["pool"], 1)
    print(f"{len(held['truth'])} held-out pairs; {len(asked['truth'])} pairs of the pool measured; IoU in percent")
    p, q, m = asked["prior"] > 0.5, asked["model"] > 0, asked["guided"] > 0
    truth = asked["truth"] > 0.5
    best = 100 * float(torch.maximum(hard_iou(p, truth), hard_iou(q, truth)).mean())
    print(f"P {reached(p, asked):.1f}, Q {reached(q, asked):.1f}, M {reached(m, asked):.1f}; the better of P and Q, "
          f"known from the truth {best:.1f}")  # fmt: skip
    print(f"SESM as the run has learned it {reached(asked['fused'] > 0, asked):.1f}")
    odds = torch.logit(asked["score"], eps=0.02)[:, None, None]
    print(f"nothing learned: 0.5 logit(score) P + 0.75 M "
          f"{reached(0.5 * odds * to_logit(asked['prior']) + 0.75 * asked['guided'].clamp(-6, 6) > 0, asked):.1f}")
    for name, taught in (("held-out labels", held), (f"{len(many['truth'])} labels of the pool", many)):
        middle, spread = facts(asked).mean(0), facts(asked).std(0) + 1e-3
        every = tuple((facts(one) - middle) / spread for one in (taught, asked))
        score = tuple(one[:, :1] for one in every)
        rho = reliability(taught, asked, [0, 1])
        iou = hard_iou(asked["prior"] > 0.5, truth)
        related = float(torch.corrcoef(torch.stack([rho[1].sigmoid(), iou]))[0, 1])
        print(f"taught by {name}: rho from score and agreement, correlation with the IoU of P {related:.2f}")
        for ridge in (0.01, 0.03, 0.1, 0.3):
            rows = {
                "fixed weights": pooled(taught, asked, None, ridge=ridge),
                "linear in score": pooled(taught, asked, score, ridge=ridge),
                "linear in rho": pooled(taught, asked, (rho[0][:, None], rho[1][:, None]), ridge=ridge),
                "linear in 8 facts": pooled(taught, asked, every, ridge=ridge),
                "network over 8 facts": pooled(taught, asked, every, inner=16, ridge=ridge),
            }
            print(f"  ridge {ridge}: " + ", ".join(f"{row} {value:.1f}" for row, value in rows.items()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
