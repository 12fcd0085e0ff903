"""What foretells how much a pair of the pool would teach, and how well the policy's start does: on trial worlds.

    python benchmarks/choosing.py collect OUT --rate 0.05 --seed 0    # a run; what the policy saw, and the true gains
    python benchmarks/choosing.py fit OUT/facts-*.pt                  # leave one run out, ridge regression, and rules

The truth of the pool is looked at, which no method may: for finding out what a policy could start from.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor
from trial import configure

from l2l.labelling.policy import AcceptancePolicy, State, observe
from l2l.labelling.reward import gain_reward
from l2l.labelling.rple import mended
from l2l.labelling.sesm import hard_iou
from l2l.proposals.regions import nearest, region_bank
from l2l.training.loop import Run, train_step
from l2l.training.pool import normalise
from l2l.training.prepare import Prepared, prepare

STEPS = (45, 120, 200, 280)
PAIRS = 1600


@torch.no_grad()
def seen(run: Run, prepared: Prepared, rows: Tensor, regions: Tensor) -> dict[str, Tensor]:
    """The policy's facts of these pairs, the Brier gain of their labels over Q, and the gain in IoU."""
    parts, found = run.parts, defaultdict(list)
    parts.teacher.eval()
    for some in rows.split(32):
        batch = parts.pool.batch(some)
        with parts.autocast():
            answer = parts.teacher(normalise(batch.image), batch.tokens, batch.proposals)
        size = (2 * batch.proposals.soft.shape[1], 2 * batch.proposals.soft.shape[2])
        maps = nearest(regions[parts.pool.image_of[some]], size)
        state = observe(mended(answer, maps, parts.teacher.sesm.drawing), batch.proposals, batch.image)
        truth, q = prepared.truth[parts.pool.ref_of[some]] > 127, answer.q.float().sigmoid()
        found["facts"].append(state.facts)
        found["gain"].append(gain_reward(state.proposal, truth, q).sum((1, 2)))
        found["iou_gain"].append(hard_iou(state.label, truth) - hard_iou(q > 0.5, truth))
    return {name: torch.cat(values) for name, values in found.items()}


def collect(args: argparse.Namespace) -> None:
    """One run of L2L on the trial world."""
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    given = argparse.Namespace(rate=args.rate, seed=args.seed, method="l2l", steps=300, prior="0.6", set=[])
    config = configure(given, args.out)
    prepared = prepare(config)
    run = Run.start(config, prepared)
    pool = run.parts.pool
    free = (~pool.labelled[pool.ref_of]).nonzero()[:, 0]
    free = free[torch.randperm(len(free), generator=torch.Generator().manual_seed(0))[:PAIRS]]
    regions, out = region_bank(pool.images), {}
    while run.step < config.train.steps:
        train_step(run)
        if run.step in STEPS:
            out[run.step] = seen(run, prepared, free, regions)
    torch.save(out, args.out / f"facts-{100 * args.rate:g}_{args.seed}.pt")


def signs(facts: Tensor) -> Tensor:
    """Expected gain E and the expected IoUs of label, model and prior, alone and times E: (B, 8)."""
    gain = facts[:, -1].exp()
    score, prior, model = ((2 * facts[:, place]).sigmoid() for place in (0, 1, 2))
    return torch.stack(
        [torch.ones_like(gain), gain, score, gain * score, model, gain * model, prior, gain * prior], dim=1
    )


def ridge(facts: list[Tensor], gains: list[Tensor], weight: float = 3.0) -> Tensor:
    """Weights of `signs` that foretell the gain best."""
    x, y = torch.cat([signs(one) for one in facts]), torch.cat(gains)
    scale = x.std(0).clamp_min(1e-6)
    scale[0] = 1
    x = x / scale
    return torch.linalg.solve(x.T @ x + weight * torch.eye(x.shape[1]), x.T @ y) / scale


def fit(args: argparse.Namespace) -> None:
    """Of the half that each rule chooses: mean gain, mean gain in IoU, and the rule's correlation with the gain."""
    runs = {path.stem: torch.load(path) for path in args.files}
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for name, run in runs.items():
        others = [one for other, run_ in runs.items() if other != name for one in run_.values()]
        weights = ridge([one["facts"] for one in others], [one["gain"] for one in others])
        print(name, "weights without it", [round(one, 2) for one in weights.tolist()])
        for one in run.values():
            facts, gain = one["facts"], one["gain"]
            nothing = torch.zeros(len(facts), 1, 1)
            rules = {
                "chance": torch.zeros(len(facts)), "expected IoU": facts[:, 0], "expected gain": facts[:, -1],
                "where the policy starts": AcceptancePolicy.start(State(nothing, facts, nothing, nothing)),
                "fitted on the other runs": signs(facts) @ weights, "the true gain": gain,
            }  # fmt: skip
            for rule, value in rules.items():
                half = slice(None) if rule == "chance" else value.argsort(descending=True)[: len(value) // 2]
                alike = F.cosine_similarity(value - value.mean(), gain - gain.mean(), dim=0)
                rows[rule].append((float(gain[half].mean()), float(one["iou_gain"][half].mean()), float(alike)))
    print(f"{'chosen by':28s} gain   in IoU  correlation")
    for rule, values in rows.items():
        print(f"{rule:28s} " + "   ".join(f"{mean(column):.3f}" for column in zip(*values, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser()
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("collect")
    one.add_argument("out", type=Path)
    one.add_argument("--rate", type=float, default=0.05)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=collect)
    one = kinds.add_parser("fit")
    one.add_argument("files", type=Path, nargs="+")
    one.set_defaults(run=fit)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
