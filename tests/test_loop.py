"""The loop's own promises: it stops before a bad step, names the batch, and forgets what was logged too far."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_world, small_config

from l2l.config import Config
from l2l.errors import InputError
from l2l.evaluate import prepare_split, prior_answers, score_pairs
from l2l.labelling.sesm import MEETS, came_out
from l2l.methods.known import (
    ENOUGH,
    FEWEST,
    drawn_refs,
    finer,
    held_by_regions,
    make_folds,
    meets,
    prior_on_labels,
    prior_rows,
)
from l2l.methods.l2l import L2L
from l2l.methods.semires import Mended
from l2l.training.loop import METRICS, NonFiniteLoss, Run, _cut_metrics, schedule, train, train_step
from l2l.training.pool import shrink_mask
from l2l.training.prepare import prepare


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(make_world(tmp_path_factory.mktemp("loop"), count=20), unlabelled=3)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_it_stops_before_a_bad_step_and_names_the_batch(config: Config, where: str) -> None:
    config = config.replace("rple", guard=False)  # which would not let so few held-out labels teach
    run = Run.start(config, prepare(config))
    train_step(run)
    before = {name: one.clone() for name, one in run.parts.network.state_dict().items() if "running" not in name}
    step = run.method.step

    def poisoned(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        loss, logs = step(number)
        bias = run.parts.network.segmenter.classify.bias
        # sqrt(x) at 0: its value is fine, its gradient is not
        return (loss * float("nan") if where == "loss" else loss + 0 * (bias - bias).sqrt().sum()), logs

    run.method.step = poisoned  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLoss) as caught:
        train_step(run)
    dealt = {run.parts.pool.ids[row] for rows in run.parts.dealt.values() for row in rows.tolist()}
    assert dealt and all(name in str(caught.value) for name in dealt)
    assert {"labelled", "held out", "unlabelled"} == set(run.parts.dealt)
    after = run.parts.network.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items() if "num_batches" not in name)


def test_an_encoder_from_scratch_is_taught_by_the_guided_pass_in_full(config: Config) -> None:
    assert Run.start(config, prepare(config)).parts.network.guided_share == 1
    begun = {"start": "away", "channels": (40, 80, 128, 160), "depths": (1, 2, 2, 1), "text_width": 96}
    config = config.replace("model", **begun)
    assert Run.start(config, prepare(config)).parts.network.guided_share == config.sesm.guided_share == 0.3
    config = config.replace("train", method="semires")
    assert Run.start(config, prepare(config)).parts.network.guided_share == 1


def test_the_schedule_rises_and_falls() -> None:
    rates = [schedule(step, 200) for step in range(200)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1) and rates[-1] < 0.03
    assert rates.index(max(rates)) in (9, 10) and rates[10:] == sorted(rates[10:], reverse=True)


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    _cut_metrics(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]


def test_held_out_labels_are_not_learned_from_before_the_release(config: Config) -> None:
    run = Run.start(config, prepare(config))
    seen, held = run.method.fold_at(0)  # type: ignore[attr-defined]
    assert len(seen) and len(held) and not set(seen.tolist()) & set(held.tolist())
    pool = run.parts.pool
    image = {int(ref): int(pool.image_of[pool.pairs_of[ref][0]]) for ref in [*seen.tolist(), *held.tolist()]}
    assert not {image[one] for one in seen.tolist()} & {image[one] for one in held.tolist()}
    unlabelled = set(pool.ref_of[run.method.unlabelled].tolist())  # type: ignore[attr-defined]
    assert not unlabelled & set(held.tolist())  # nor as unlabelled pairs
    late, _ = run.method.fold_at(config.train.steps)  # type: ignore[attr-defined]
    assert set(late.tolist()) == set(seen.tolist()) | set(held.tolist())


def test_another_configuration_is_not_resumed(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path / "run", stop_after=1)
    with pytest.raises(InputError, match="configuration"):
        train(config.replace("train", seed=5), tmp_path / "run", resume=True)


def test_without_unlabelled_pairs_there_is_nothing_to_explore(config: Config) -> None:
    known = config.replace("data", data="scenes", scenes_count=10, prior="", rate=1.0)
    with pytest.raises(InputError, match="unlabelled"):
        Run.start(known, prepare(known))


def test_without_any_prior_q_is_all_there_is(config: Config) -> None:
    bare = config.replace("data", prior="").replace("rple", guard=False)
    run = Run.start(bare, prepare(bare))
    assert isinstance(run.method, L2L)
    assert run.method.extra.policy.telling == 0
    logs = train_step(run)
    # M would be a second Q, and fight it
    assert not {"loss_x_guided", "loss_u_guided"} & set(logs) and logs["loss_u"] > 0
    assert any(one.startswith("no prior: ") for one in run.parts.events)
    batch = run.parts.pool.batch(torch.arange(4))
    answer = run.parts.answer(run.parts.teacher, batch.image, batch.tokens, batch.proposals)
    assert answer.proposal is not None and torch.allclose(answer.proposal, answer.q.float().clamp(-6, 6), atol=1e-5)
    assert torch.allclose(answer.best, answer.proposal, atol=1e-5)


def test_labels_take_the_place_of_pseudo_labels_that_the_guard_refuses(config: Config) -> None:
    run = Run.start(config, prepare(config))
    guard = run.method.guard  # type: ignore[attr-defined]
    assert "loss_u" in train_step(run) and len(run.parts.dealt["labelled"]) == 3
    guard.open.fill_(False)
    assert "loss_u" not in train_step(run)
    rows = run.parts.dealt["labelled"]
    assert len(rows) == 6 and run.parts.pool.labelled[run.parts.pool.ref_of[rows]].all()


@pytest.mark.parametrize(("setting", "own"), [("", True), ("commit", False), ("use", False), ("regions", False)])
def test_the_guided_answer_learns_from_its_own_committed_to_regions(
    config: Config, monkeypatch: pytest.MonkeyPatch, setting: str, own: bool
) -> None:
    from l2l.methods import l2l

    asked = []

    def nothing(p: torch.Tensor, maps: torch.Tensor, **limits: float) -> Mended:
        asked.append((p, maps, limits))
        return Mended(p, torch.zeros_like(p), p[:, 0, 0] > 1, p[:, 0, 0] > 1)  # nothing of it is believed

    monkeypatch.setattr(l2l, "mend", nothing)
    run = Run.start(config.replace("sesm", **{setting: False}) if setting else config, prepare(config))
    logs = train_step(run)
    assert bool(asked) == own and (logs["loss_u_guided"] == 0) == own and logs["loss_u"] > 0
    if own:
        [(p, maps, limits)] = asked
        assert len(p) == config.train.unlabelled and maps.shape[2:] == (2 * p.shape[1], 2 * p.shape[2])
        assert limits == {"least_iou": 0.5, "cover": 0.7} and p.min() >= 0 and p.max() <= 1


def test_regions_that_are_no_objects_are_said_and_not_drawn_to(config: Config) -> None:
    run = Run.start(config, prepare(config))
    assert isinstance(run.method, L2L) and run.method.regions is not None
    pool, pieces = run.parts.pool, torch.arange(run.method.regions[0].numel()).view_as(run.method.regions[0]) + 1
    held = held_by_regions(pool, pieces.expand_as(run.method.regions))  # each pixel a region of its own
    assert 0 < held.max() < 0.5 and len(held) == len(run.parts.labelled_refs)
    pool.masks[run.parts.labelled_refs[0]] = 0  # a sentence that means nothing says nothing of regions
    assert len(held_by_regions(pool, run.method.regions)) == len(held) - 1
    run.parts.network.sesm.suit(held)
    run.parts.events.clear()
    train_step(run)
    assert [one for one in run.parts.events if one.startswith("regions: by the known masks they are objects to 0%")]


def test_scores_are_of_masks_in_pictures_not_in_cells(config: Config) -> None:
    """The factor between the two is measured with the prior for an answer, as `evaluate` measures the prior alone."""
    prepared = prepare(config)
    run = Run.start(config, prepared)
    known = [prepared.pool.samples[ref] for ref in run.parts.labelled_refs.tolist()]
    pool, bank = prepare_split(known, config, prepared.vocabulary, config.data.prior)
    assert bank is not None
    results = list(prior_answers(pool))
    logits, refs = torch.cat([one[1] for one in results]), torch.cat([pool.ref_of[one[0]] for one in results])
    masks = torch.stack([shrink_mask(sample.mask(), (16, 16)) for sample in known])[refs].float() / 255
    wide = sum(one.iou for one in score_pairs(pool, results))
    more = finer(run.parts)
    assert more == pytest.approx(wide / float(came_out(logits, masks).sum()), rel=1e-4) and 1.02 < more < 1.3
    for network in (run.parts.network, run.parts.teacher):
        assert float(network.sesm.finer) == pytest.approx(more)
        told = network.sesm.promised(torch.tensor([-1.0, 0.0, 9.0]))
        assert told[:2].tolist() == pytest.approx([0.26894 * more, 0.5 * more], rel=1e-3) and 0.95 < told[2] < 1
    bare = config.replace("data", prior="")
    assert float(Run.start(bare, prepare(bare)).parts.teacher.sesm.finer) == 1


def test_how_well_proposals_meet_their_objects_however_often_they_do(config: Config) -> None:
    good, wrong = torch.full((30,), 0.7), torch.zeros(70)
    assert 0.7 < meets(good) < 0.715 and meets(torch.cat([good, wrong])) == pytest.approx(meets(good))
    assert [meets(wrong), meets(wrong[:0])] == pytest.approx([MEETS, MEETS])  # nobody knows
    assert meets(torch.full((2,), 0.1)) > 0.75  # nor do two
    run = Run.start(config, prepare(config))
    held = meets(prior_on_labels(run.parts)[1])
    for network in (run.parts.network, run.parts.teacher):
        assert float(network.sesm.meets) == pytest.approx(held)
    run.parts.network.sesm.meets.fill_(MEETS / 2)
    train_step(run)
    assert any(one.endswith("so scores start at 50%") for one in run.parts.events)
    bare = config.replace("data", prior="")
    assert float(Run.start(bare, prepare(bare)).parts.teacher.sesm.meets) == pytest.approx(MEETS)


def test_the_prior_is_on_held_out_images_much_as_on_all(config: Config) -> None:
    known = config.replace("data", rate=0.9).replace("sesm", held_out=0.2)
    nearer, runs = 0, 12
    for seed in range(runs):
        parts = Run.start(known.replace("train", seed=seed), prepare(known.replace("train", seed=seed))).parts
        folds = make_folds(parts)
        assert sorted(torch.cat(folds).tolist()) == parts.labelled_refs.tolist()
        _, iou = prior_on_labels(parts)
        refs = parts.pool.ref_of[prior_rows(parts)]

        def apart(fold: torch.Tensor, iou: torch.Tensor = iou, refs: torch.Tensor = refs) -> float:
            return abs(float(iou[torch.isin(refs, fold)].mean() - iou.mean()))

        others = sorted(apart(one) for one in folds[1:])
        nearer += apart(folds[0]) <= others[len(others) // 2]
    assert nearer >= 0.8 * runs


def test_a_handful_of_labels_says_nothing_of_the_prior(config: Config) -> None:
    """Two misses are no reason to think that it always misses; the unguarded loop does."""
    assert Run.start(config, prepare(config)).parts.network.sesm.line.tolist() == [1, 0]
    free = config.replace("rple", guard=False)
    parts = Run.start(free, prepare(free)).parts
    assert parts.network.sesm.line.tolist() != [1, 0]
    assert torch.equal(parts.network.sesm.line, parts.teacher.sesm.line)


def test_what_counts_is_how_many_referents_are_held_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how good the prior is, all labels say, whatever is held out."""
    monkeypatch.setattr("l2l.methods.known.LEAST_HELD_OUT", 1)  # one picture of the eight, then: three referents
    many = config.replace("data", rate=0.95).replace("sesm", held_out=0.05)
    run = Run.start(many, prepare(many))
    assert isinstance(run.method, L2L)
    assert len(run.method.folds[0]) >= FEWEST and run.method.guard is not None and run.method.guard.honest
    assert run.parts.network.sesm.line.tolist() != [1, 0]
    monkeypatch.setattr("l2l.methods.known.FEWEST", 0)
    run = Run.start(many, prepare(many))
    assert isinstance(run.method, L2L)
    assert len(run.method.folds[0]) < FEWEST and run.method.guard is not None and not run.method.guard.honest
    assert run.parts.network.sesm.line.tolist() != [1, 0]


def test_labels_that_people_chose_teach_and_do_not_say_how_good_the_prior_is(config: Config) -> None:
    known = config.replace("data", rate=0.95)
    prepared = prepare(known)
    pool = Run.start(known, prepared).parts.pool
    worst = {pool.samples[ref].image_id for ref in pool.labelled.nonzero()[:3, 0].tolist()}

    def chosen(images: set[str]) -> Run:
        """As if the first referent of each of these images came from the head of a review queue."""
        left = set(images)
        samples = [replace(one, chosen=one.image_id in left and not left.discard(one.image_id)) for one in pool.samples]
        return Run.start(known, replace(prepared, pool=replace(pool, samples=tuple(samples))))

    run = chosen(worst)
    parts, drawn = run.parts, drawn_refs(run.parts)
    assert isinstance(run.method, L2L) and ENOUGH <= len(drawn) < len(parts.labelled_refs)
    assert worst.isdisjoint(parts.pool.samples[ref].image_id for ref in drawn.tolist())
    assert torch.isin(parts.pool.ref_of[prior_rows(parts)], drawn).all()
    assert sorted(torch.cat(run.method.folds).tolist()) == drawn.tolist()
    seen, held = run.method.fold_at(0)
    assert sorted([*seen.tolist(), *held.tolist()]) == parts.labelled_refs.tolist()  # they teach
    everywhere = chosen({one.image_id for one in pool.samples}).parts
    assert torch.equal(drawn_refs(everywhere), everywhere.labelled_refs)  # better than nothing
