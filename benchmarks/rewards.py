"""What the policy should be paid for, and where its choice should start: on the states of a run, without training it.

    python benchmarks/rewards.py collect NAME [--world fashion] [--rate 0.05] [--seed 0] [--at STEP]
    python benchmarks/rewards.py teach OUT/states-NAME.pt ...    # the same policy, taught by each reward
    python benchmarks/rewards.py start OUT/states-NAME.pt ...    # what each start would choose

`collect` trains L2L on a trial world up to STEP (30 % of the run) and keeps what the policy sees of 150 held-out and
150 unlabelled batches, and of 1,600 pairs of the pool with their truth. `teach` then trains fresh policies on the
held-out batches, as a run would, and shows what they make of the pool, whose truth no method may see: the IoU of Q, of
the label, and of Q with the label where the policy accepts its cells; and of the half of the samples it chooses, the
IoU of the label and how much better that is than Q's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from trial import arguments, configure, some_of

from l2l.config import Config
from l2l.labelling.policy import ACCEPT, DOUBT, SLOPE, AcceptancePolicy, State, expected_gain, observe
from l2l.labelling.reward import gain_reward, truth_reward, weights
from l2l.labelling.rple import Rple, choose, divergence, mended, policy_gradient
from l2l.labelling.sesm import hard_iou
from l2l.methods.l2l import L2L, USUAL
from l2l.training.loop import Run, train_step
from l2l.training.pool import Batch
from l2l.training.prepare import prepare

Seen = dict[str, Tensor]
Reward = Callable[[Tensor, Tensor, Tensor], Tensor]
DRAWS = 60


def collect(args: argparse.Namespace) -> None:
    """Train, and keep what the policy sees."""
    args.out.mkdir(parents=True, exist_ok=True)
    config = configure(args, args.out)
    prepared = prepare(config)
    run = Run.start(config, prepared)
    at = args.at or round(0.3 * config.train.steps)
    while run.step < at:
        train_step(run)
    method, parts = run.method, run.parts
    assert isinstance(method, L2L)
    parts.teacher.eval()

    @torch.no_grad()
    def seen(name: str, batch: Batch, step: int, truth: Tensor | None) -> Seen:
        answer = parts.answer(parts.teacher, batch.image, batch.tokens, batch.proposals)
        if method.regions is not None:
            answer = mended(answer, method._regions(name, step, batch), parts.teacher.sesm.drawing)
        state = observe(answer, batch.proposals, batch.image)
        found = {"maps": state.maps, "facts": state.facts, "sentence": state.sentence, "label": state.label}
        return found | {"q": answer.q.float().sigmoid()} | ({} if truth is None else {"truth": truth})

    kept: dict[str, Any] = {"held": [], "free": [], "pool": [], "referents": len(method.folds[0]),
                            "words": config.model.text_width, "steps": config.train.steps}  # fmt: skip
    held, offer = method.fold_at(at)[1], config.rple.candidates * config.train.unlabelled
    for step in range(10_000, 10_150):
        batch = parts.weak(parts.refs_at("held out", step, config.train.held_out, held), "held out", step,
                           drop=config.sesm.drop)  # fmt: skip
        assert batch.mask is not None
        kept["held"].append(seen("held out", batch, step, batch.mask > 0.5))
        rows = parts.rows_at("unlabelled", step, offer, method.unlabelled)
        kept["free"].append(seen("unlabelled", parts.weak(rows, "unlabelled", step), step, None))
    for step, rows in enumerate(some_of(parts.pool)[:1600].split(32), 20_000):
        batch, (view, _) = parts.weak(rows, "unlabelled", step), parts.view(rows, "unlabelled", step)
        truth = view.apply(prepared.truth[parts.pool.ref_of[rows]][:, None].float() / 255)[:, 0]
        kept["pool"].append(seen("unlabelled", batch, step, truth > 0.5))
    torch.save(kept, args.out / f"states-{args.name}.pt")


def brier_gain(label: Tensor, truth: Tensor, model: Tensor) -> Tensor:
    """What the reward was until November 2026: how much nearer to the truth, squared."""
    y = truth.float()
    return weights(label > 0.5, truth) * 4 * ((model - y) ** 2 - (label - y) ** 2)


REWARDS: dict[str, Reward] = {
    "how right (Brier)": lambda label, truth, model: truth_reward(label, truth),
    "Brier gain": brier_gain,
    "IoU gain": gain_reward,
    "IoU gain x 4": lambda *given: 4 * gain_reward(*given),
}


def state_of(seen: Seen) -> State:
    return State(seen["maps"], seen["facts"], seen["sentence"], seen["label"])


def taught(kept: dict[str, Any], reward: Reward, *, seed: int = 0) -> Rple:
    """A policy after as many steps on held-out batches as a run has until they are released."""
    config = Config().rple
    torch.manual_seed(seed)
    policy = AcceptancePolicy(words=kept["words"])
    bands = ((config.samples_low, config.samples_high), (config.front_low, config.front_high), (config.back_low, 0.999))
    rple = Rple(policy=policy, bands=bands)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=config.rate, weight_decay=0)
    steps, rng = round(0.4 * kept["steps"]), torch.Generator().manual_seed(seed)
    for step in range(steps):
        held = kept["held"][step % len(kept["held"])]
        h, u = state_of(held), state_of(kept["free"][step % len(kept["free"])])
        count = len(h.facts)
        both = State(*(torch.cat([getattr(h, one), getattr(u, one)]) for one in State.__slots__))
        cells, samples = rple.judge(both, remember=slice(count, None))
        worth = reward(h.proposal, held["truth"], held["q"])
        loss = policy_gradient(cells[:count], samples[:count], worth, count=config.samples, generator=rng).loss
        done = step / steps
        temperature = (config.temperature * (1 - done) + config.temperature_end * done) * USUAL / kept["referents"]
        apart = (weights(both.label) * divergence(cells, ACCEPT)).sum((1, 2)).mean()
        apart = apart + divergence(samples, policy.start(both)).mean()
        optimiser.zero_grad()
        (loss + temperature * apart).backward()
        optimiser.step()
    return rple


def chosen(logits: Tensor) -> Tensor:
    """Weights (B,) that sum to 1: how often each sample is among the half that is chosen."""
    rng, often = torch.Generator().manual_seed(0), torch.zeros_like(logits)
    half = len(logits) // 2
    for _ in range(DRAWS):
        often[choose(logits, half, generator=rng)] += 1 / (DRAWS * half)
    return often


def ious(seen: Seen, state: State) -> tuple[Tensor, Tensor]:
    """Of the label and of Q, (B,)."""
    return hard_iou(state.label, seen["truth"]), hard_iou(seen["q"] > 0.5, seen["truth"])


def table(rows: dict[str, dict[str, list[float]]]) -> None:
    """Means in percent."""
    names = list(next(iter(rows.values())))
    print(f"{'':26s}" + "".join(f"{name:>22s}" for name in names))
    for label, columns in rows.items():
        print(f"{label:26s}" + "".join(f"{100 * sum(columns[name]) / len(columns[name]):22.1f}" for name in names))


@torch.no_grad()
def look(rple: Rple, pool: list[Seen]) -> dict[str, list[float]]:
    """What a policy makes of the pool."""
    found: dict[str, list[float]] = defaultdict(list)
    for seen in pool:
        state = state_of(seen)
        (label, model), (cells, samples) = ious(seen, state), rple.decide(state)
        mixed = seen["q"] + cells * (state.proposal - seen["q"])
        weight = chosen(samples.logit(eps=1e-6))
        found["Q"].append(float(model.mean()))
        found["label"].append(float(label.mean()))
        found["Q, label as accepted"].append(float(hard_iou(mixed > 0.5, seen["truth"]).mean()))
        found["label, chosen"].append(float((weight * label).sum()))
        found["over Q, all"].append(float((label - model).mean()))
        found["over Q, chosen"].append(float((weight * (label - model)).sum()))
    return found


def teach(args: argparse.Namespace) -> None:
    """The same policy, taught by each reward."""
    for path in args.files:
        kept = torch.load(path)
        print(f"\n{path.stem}: {kept['referents']} held-out referents")
        table({name: look(taught(kept, reward), kept["pool"]) for name, reward in REWARDS.items()})


@torch.no_grad()
def start(args: argparse.Namespace) -> None:
    """Of what each start chooses: the label's IoU, what it has over Q, and how well the start foretells that."""
    for path in args.files:
        rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        said, true = defaultdict[str, list[Tensor]](list), list[Tensor]()
        for seen in torch.load(path)["pool"]:
            state = state_of(seen)
            score = F.logsigmoid(2 * state.facts[:, 0])
            gain = expected_gain(state.proposal, seen["q"]).clamp_min(1e-3).log()
            brier = (weights(state.label) * 4 * (seen["q"] - state.proposal) ** 2).sum((1, 2)).clamp_min(1e-4).log()
            label, model = ious(seen, state)
            starts = {
                "chance": 0 * score, "Brier gain x score^2": 3 * (brier + 2 * score), "score": SLOPE * score,
                "IoU gain": SLOPE * gain, "IoU gain x score^2": SLOPE * (gain + 2 * score),
                "as it is": SLOPE * (gain + DOUBT * score),
                "as it is, half as sharp": SLOPE / 2 * (gain + DOUBT * score),
                "truth: what it has over Q": 1e3 * (label - model),
            }  # fmt: skip
            for name, logits in starts.items():
                weight = chosen(logits)
                rows[name]["label, chosen"].append(float((weight * label).sum()))
                rows[name]["over Q, chosen"].append(float((weight * (label - model)).sum()))
                said[name].append(logits)
            true.append(label - model)
        for name, logits in said.items():
            both = torch.stack([torch.cat(logits), torch.cat(true)])
            rows[name]["correlation with that"] = [float(torch.corrcoef(both)[0, 1])]
        print(f"\n{path.stem}")
        table(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("collect")
    arguments(one)
    one.add_argument("--at", type=int, default=0, help="step, 30 %% of the run if not given")
    one.set_defaults(run=collect)
    for name, rule in (("teach", teach), ("start", start)):
        one = kinds.add_parser(name)
        one.add_argument("files", type=Path, nargs="+")
        one.set_defaults(run=rule)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()
