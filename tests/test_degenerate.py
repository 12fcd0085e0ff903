"""Whole steps on batches that hold nothing or everything: no prior, empty and full ones, nothing held out, nothing or
all accepted, one referent. Each must give finite losses, gradients (`train_step` stops at any other) and weights, and
the values that are known beforehand."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import make_world
from torch import Tensor

from l2l.config import Config
from l2l.labelling.sesm import hard_iou
from l2l.methods import l2l as method_of_l2l
from l2l.methods.known import ENOUGH, misleading
from l2l.methods.l2l import L2L
from l2l.training.loop import Run, train_step
from l2l.training.pool import normalise
from l2l.training.prepare import Prepared, prepare

OTHERS = ["mean_teacher", "resmatch", "semires", "dam_net", "prior_training"]


def config_of(world: Path, *, rate: float) -> Config:
    made = Config().replace(
        "data", data=str(world / "data"), prior=str(world / "priors"), rate=rate, height=64, width=64,
    )  # fmt: skip
    made = made.replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    made = made.replace("sesm", held_out=0.4, release=0.9)
    return made.replace(
        "train", steps=4, labelled=3, held_out=3, unlabelled=4, burn_in=0.0, probe_pairs=4, precision="float32"
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return config_of(make_world(tmp_path_factory.mktemp("degenerate"), count=20), rate=0.9)


@pytest.fixture(scope="module")
def prepared(config: Config) -> Prepared:
    return prepare(config)


def steps(config: Config, prepared: Prepared, *, unknown: tuple[str, ...] = ()) -> tuple[Run, list[dict[str, float]]]:
    """Two steps; of what is logged only `unknown` may be NaN."""
    run = Run.start(config, prepared)
    logs = [train_step(run) for _ in range(2)]
    for one in logs:
        assert {name for name, value in one.items() if not math.isfinite(value)} <= set(unknown)
    for module in (run.parts.network, run.parts.teacher, run.method.extra):
        assert all(one.isfinite().all() for one in module.parameters())
    return run, logs


def every_prior(prepared: Prepared, value: int) -> Prepared:
    """As if the prior of each pair said this of every cell (0 or 255)."""
    pool = prepared.pool
    told = dataclasses.replace(
        pool, soft=torch.full_like(pool.soft, value), present=torch.ones_like(pool.present),
        score=torch.full_like(pool.score, 0.9),
    )  # fmt: skip
    return dataclasses.replace(prepared, pool=told)


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("value", [0, 255])
def test_every_prior_is_empty_or_full(config: Config, prepared: Prepared, value: int, guard: bool) -> None:
    """The guard does not listen to a prior that says of what is meant what it says of all else."""
    run, logs = steps(config.replace("rple", guard=guard), every_prior(prepared, value))
    assert isinstance(run.method, L2L) and all(("iom" in one) == guard == ("loss_fused" not in one) for one in logs)
    assert (run.method.useless is not None) == run.method.bare == guard
    if not guard:
        found = [one["held_out_prior"] for one in logs]
        assert found == [0, 0] if value == 0 else all(0 < one < 0.6 for one in found)  # its share of the picture
    assert run.parts.network.sesm.line.isfinite().all()


@pytest.mark.parametrize("use", [True, False])
def test_a_prior_found_useless_leaves_the_run_as_one_without(config: Config, prepared: Prepared, use: bool) -> None:
    """To the bit, though the pool that others see keeps its proposals; its answers are the same with the prior."""
    useless = every_prior(prepared, 0)
    config = config.replace("sesm", use=use)
    run, _ = steps(config, useless)
    without = config.replace("data", prior="")
    other, _ = steps(without, prepare(without))
    assert "it is left out" in run.parts.events[0] and same(run, other)
    assert isinstance(run.method, L2L) and float(run.method.extra.policy.telling) == 0
    assert useless.pool.present.all()
    batch = useless.pool.batch(torch.arange(3))
    with torch.no_grad():
        answer = run.parts.teacher(normalise(batch.image), batch.tokens, batch.proposals)
    assert answer.elevated is not None
    assert torch.equal(answer.best > 0, answer.q > 0) and torch.equal(answer.elevated.score, answer.elevated.alone)


def test_loose_boxes_point_and_a_guess_among_objects_does_not(config: Config, prepared: Prepared) -> None:
    """A low IoU is no reason not to hear a prior; that it meets the next object as often is."""
    pool = prepared.pool
    truth = pool.masks[pool.ref_of]
    loose = 255 * F.max_pool2d(truth[:, None].float(), 7, stride=1, padding=3)[:, 0].gt(127).to(torch.uint8)
    told = {"exact": truth, "loose": loose, "another": truth[pool.rival.clamp_min(0)]}
    right = torch.arange(len(pool)) % 5 < 2
    told["another, mostly"] = torch.where(right[:, None, None], truth, told["another"])  # and the score tells which
    known = pool.labelled[pool.ref_of]
    iou = hard_iou(loose[known] > 127, truth[known] > 127)
    assert iou.mean() < 0.5
    for name, soft in told.items():
        some = pool.with_proposals(soft, torch.where(right, 0.9, 0.5), torch.ones_like(pool.present))
        parts = Run.start(config, dataclasses.replace(prepared, pool=some)).parts
        found = misleading(parts)
        assert (found is None) == (name != "another")
        chosen = tuple(dataclasses.replace(one, chosen=True) for one in pool.samples)  # where the prior has failed
        assert misleading(dataclasses.replace(parts, pool=dataclasses.replace(some, samples=chosen))) is None
    few = Run.start(config.replace("data", rate=0.3), prepare(config.replace("data", rate=0.3))).parts
    assert len(few.labelled_refs) < ENOUGH and misleading(few) is None  # too few to say


def test_what_a_score_tells_is_not_taken_for_granted(config: Config, prepared: Prepared) -> None:
    """Pairs are chosen by what they are expected to teach only where known masks say that the score tells."""
    few = config.replace("data", rate=0.3)
    run, enough = Run.start(few, prepare(few)), Run.start(config, prepared)
    assert isinstance(run.method, L2L) and isinstance(enough.method, L2L)
    assert run.method.known < ENOUGH <= enough.method.known
    assert float(run.method.extra.policy.telling) == 0 < float(enough.method.extra.policy.telling)
    train_step(run)
    assert any("chosen by chance" in event for event in run.parts.events)


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("value", [0, 255])
def test_the_others_with_empty_and_full_priors(config: Config, prepared: Prepared, value: int, method: str) -> None:
    steps(config.replace("train", method=method), every_prior(prepared, value))


def same(one: Run, other: Run) -> bool:
    """To the bit."""
    pairs = zip(one.parts.network.parameters(), other.parts.network.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("guard", [True, False])
def test_no_prior_anywhere(config: Config, guard: bool) -> None:
    """Then L2L is SemiRES."""
    bare = config.replace("data", prior="").replace("rple", guard=guard)
    run, logs = steps(bare, prepare(bare))
    assert not run.parts.pool.present.any() and run.parts.network.sesm.line.tolist() == [1, 0]
    rival = bare.replace("train", method="semires")
    other, others = steps(rival, prepare(rival))
    assert same(run, other) and logs == others and "iom" in logs[0]


def test_no_prior_and_hardly_a_label(config: Config) -> None:
    """The labels alone are learned from."""
    few = config.replace("data", prior="", rate=0.12)
    run, logs = steps(few, prepare(few))
    assert isinstance(run.method, L2L) and run.method.guard is not None and not run.method.guard.honest
    assert all("loss_u" not in one for one in logs) and any("the labels alone" in event for event in run.parts.events)


@pytest.mark.parametrize("guard", [True, False])
def test_nothing_held_out(config: Config, prepared: Prepared, guard: bool) -> None:
    """The guard takes it for no evidence at all: nothing of SESM and the policy moves. Without it they learn."""
    run, logs = steps(config.replace("sesm", held_out=0.0).replace("rple", guard=guard), prepared)
    assert isinstance(run.method, L2L) and len(run.method.folds) == 1
    assert all(("loss_fused" in one) != guard for one in logs)
    assert (float(run.parts.network.sesm.ridge().detach()) == 0) == guard


@pytest.mark.parametrize("rule", ["policy", "threshold", "confidence"])
@pytest.mark.parametrize("accepted", [0, 1])
@pytest.mark.parametrize("commit", [False, True])
def test_nothing_and_everything_accepted(
    config: Config, prepared: Prepared, rule: str, accepted: int, commit: bool
) -> None:
    """A policy that went to an extreme is brought back into its bands; the other rules may accept nothing, or all. They
    judge the fused proposal: what the guided answer learns from itself they do not."""
    changed = config.replace("rple", rule=rule, threshold=2.0 - 1.5 * accepted).replace("sesm", commit=commit)
    run = Run.start(changed, prepared)
    with torch.no_grad():
        for last in (run.method.extra.policy.pixel, run.method.extra.policy.sample[-1]):
            last.bias.fill_(1e4 if accepted else -1e4)
    logs = [train_step(run) for _ in range(2)]
    assert all(math.isfinite(value) for one in logs for value in one.values())
    bands = config.rple
    if rule == "policy":  # in the first step: later the band is that of the steps before as well
        assert bands.samples_low - 0.01 <= logs[0]["accept_samples"] <= bands.samples_high + 0.01
        assert bands.front_low - 0.1 <= logs[0]["accept_front"] <= 1  # of the chosen ones; the band is that of all
        return
    for one in logs:
        assert one["accept_front"] == pytest.approx(accepted)
        assert (one["loss_u"] == 0) == (not accepted)
        assert (one["loss_u_guided"] == 0) == (not accepted and not commit)


@pytest.mark.parametrize("method", ["fixmatch", "resmatch", "dam_net"])
def test_a_threshold_that_nothing_or_everything_reaches(config: Config, prepared: Prepared, method: str) -> None:
    for threshold, accepted in ((1 - 1e-9, 0), (0.5, 1)):
        rival = config.replace("train", method=method).replace("rivals", threshold=threshold)
        _, logs = steps(rival, prepared)
        for one in logs:
            assert one["accept"] == accepted and (one["loss_u"] == one["loss_u_guided"] == 0) == (not accepted)
            assert accepted or one.get("loss_attention", 0) == 0


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Prepared]:
    """One referent with a label and one pair without, each with one sentence."""
    world = make_world(tmp_path_factory.mktemp("smallest"), count=6)
    file = world / "data" / "refs(scenes).p"
    refs: list[dict[str, Any]] = pickle.loads(file.read_bytes())
    taught = [one for one in refs if one["split"] == "train"]
    other = next(one for one in taught if one["image_id"] != taught[0]["image_id"])
    for one in (taught[0], other):
        one["sentences"], one["sent_ids"] = one["sentences"][:1], one["sent_ids"][:1]
    kept = [taught[0], other, *(one for one in refs if one["split"] != "train")]
    file.write_bytes(pickle.dumps(kept, protocol=2))
    config = config_of(world, rate=0.5)
    return config, prepare(config)


@pytest.mark.parametrize("method", ["l2l", "l2l unguarded", "supervised", *OTHERS])
def test_one_referent_and_one_pair(smallest: tuple[Config, Prepared], method: str) -> None:
    config, prepared = smallest
    name, _, unguarded = method.partition(" ")
    changed = config.replace("train", method=name).replace("rple", guard=not unguarded)
    run, logs = steps(changed, prepared, unknown=("held_out_prior",))
    assert len(run.parts.pool) == 2 and len(run.parts.labelled_refs) == 1
    assert all(one["loss"] > 0 for one in logs)


def test_a_bfloat16_network_is_judged_in_float32(
    config: Config, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only features stay as the network has them: (B, D, h, w). The first loss is that of float32, nearly."""
    seen: dict[str, set[torch.dtype]] = {}
    features: set[torch.dtype] = set()

    def watched(name: str) -> Any:
        true = getattr(method_of_l2l, name)

        def watch(*given: Any, **more: Any) -> Any:
            tensors = [one for one in (*given, *more.values()) if isinstance(one, Tensor) and one.is_floating_point()]
            seen.setdefault(name, set()).update(one.dtype for one in tensors if one.ndim < 4)
            features.update(one.dtype for one in tensors if one.ndim == 4)
            return true(*given, **more)

        return watch

    losses = {}
    for precision in ("float32", "bf16"):
        with monkeypatch.context() as patch:
            for name in ("segmentation_loss", "reliability_loss", "gain_reward", "utility_reward", "agreement_reward",
                         "held_out_direction", "policy_gradient", "divergence"):  # fmt: skip
                patch.setattr(method_of_l2l, name, watched(name))
            losses[precision] = train_step(Run.start(config.replace("train", precision=precision), prepared))
    assert len(seen) == 8 and set().union(*seen.values()) == {torch.float32}
    assert features == {torch.float32, torch.bfloat16}
    for name in ("loss", "loss_x", "loss_x_guided", "loss_u", "loss_u_guided", "loss_fused"):
        assert losses["bf16"][name] == pytest.approx(losses["float32"][name], rel=2e-2), name
