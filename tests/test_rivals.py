"""The rivals: each trains, with a prior and without, resumes, and learns nothing from masks that are not labelled."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from tiny import make_world, train_arguments

from l2l.cli import main
from l2l.config import READ_BY, Config, RivalConfig
from l2l.errors import InputError
from l2l.methods import consistency
from l2l.methods.consistency import above_threshold, ask, both_decodings, pseudo_loss
from l2l.methods.dam_net import attention_consistency, referent
from l2l.methods.mean_teacher import ramp
from l2l.methods.resmatch import article_ids, quality, strong_sentence
from l2l.methods.semires import mend, pixel_weights
from l2l.model.text import PAD, UNKNOWN, Vocabulary, words_of
from l2l.training.checkpoint import load_tensors
from l2l.training.loop import CHECKPOINT, METRICS, Run, train, train_step
from l2l.training.losses import segmentation_loss
from l2l.training.prepare import Prepared, build_network, prepare

LABELLING = ["fixmatch", "mean_teacher", "resmatch", "semires", "dam_net"]
RIVALS = ["prior_training", *LABELLING]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("rivals"), count=20)


@pytest.fixture(scope="module")
def config(world: Path) -> Config:
    made = Config().replace(
        "data", data=str(world / "data"), prior=str(world / "priors"), rate=0.4, height=64, width=64,
    )  # fmt: skip
    made = made.replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    return made.replace(
        "train", steps=6, labelled=3, unlabelled=3, burn_in=0.0, probe_pairs=4, save_every=3, precision="float32"
    )


@pytest.fixture(scope="module")
def prepared(config: Config) -> Prepared:
    return prepare(config)


def last_logs(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return next(line for line in reversed(lines) if "loss" in line)


# --- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [True, False], ids=["prior", "no prior"])
@pytest.mark.parametrize("method", ["fully_supervised", *RIVALS])
def test_three_steps_through_the_command_line(
    world: Path, tmp_path: Path, method: str, prior: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(world, tmp_path / "run", "--method", method, steps=3, train_burn_in=0.3)
    if not prior:
        at = arguments.index("--prior")
        del arguments[at : at + 2]
    if method == "prior_training" and not prior:
        assert main(arguments) == 2 and "here are none: add --prior" in capsys.readouterr().err
        return
    assert main(arguments) == 0
    logs = last_logs(tmp_path / "run")
    assert all(math.isfinite(value) for value in logs.values())
    assert ("loss_x_guided" in logs) == prior
    if method != "fully_supervised":
        assert {"loss", "loss_x", "loss_u", "accept", "accept_front"} <= logs.keys()
        assert ("loss_u_guided" in logs) == prior
        assert 0 <= logs["accept"] <= 1 and 0 <= logs["accept_front"] <= 1 + 1e-6
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert (about["labelled_refs"] == about["refs"]) == (method == "fully_supervised")


@pytest.mark.parametrize("method", ["fixmatch", "mean_teacher", "resmatch", "semires"])
def test_a_resumed_run_has_the_same_bits(config: Config, tmp_path: Path, method: str) -> None:
    config = config.replace("train", method=method, burn_in=0.2)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop_after=4)  # the checkpoint is of step 3
    train(config, tmp_path / "cut", resume=True)
    whole, cut = (load_tensors(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(value, cut[name]) for name, value in whole.items())
    assert (tmp_path / "whole" / METRICS).read_bytes() == (tmp_path / "cut" / METRICS).read_bytes()


def losses(config: Config, prepared: Prepared, steps: int = 2) -> list[float]:
    run = Run.start(config, prepared)
    return [train_step(run)["loss"] for _ in range(steps)]


@pytest.mark.parametrize("method", ["supervised", *RIVALS])
def test_unlabelled_masks_change_nothing(config: Config, prepared: Prepared, method: str) -> None:
    config = config.replace("train", method=method)
    masks = prepared.pool.masks.clone()
    masks[~prepared.pool.labelled] = 255 - masks[~prepared.pool.labelled]
    told = dataclasses.replace(prepared, pool=dataclasses.replace(prepared.pool, masks=masks))
    assert losses(config, told) == losses(config, prepared)


def test_labelled_masks_do_change_something(config: Config, prepared: Prepared) -> None:
    config = config.replace("train", method="fixmatch")
    told = dataclasses.replace(prepared, pool=dataclasses.replace(prepared.pool, masks=255 - prepared.pool.masks))
    assert losses(config, told, 1) != losses(config, prepared, 1)


@pytest.mark.parametrize("method", RIVALS)
def test_every_method_meets_the_pairs_of_l2l(config: Config, prepared: Prepared, method: str) -> None:
    dealt = []
    for name in ("l2l", method):  # l2l would look at more, and choose as many of them
        run = Run.start(config.replace("train", method=name).replace("rple", candidates=1), prepared)
        run.method.step(0)
        dealt.append(run.parts.dealt["unlabelled"])
    assert torch.equal(*dealt)


def test_burn_in_sees_labels_only(config: Config, prepared: Prepared) -> None:
    run = Run.start(config.replace("train", method="semires", burn_in=0.5), prepared)
    _, early = run.method.step(2)
    assert "loss_u" not in early and set(run.parts.dealt) == {"labelled"}
    _, late = run.method.step(3)
    assert "loss_u" in late


def test_without_unlabelled_pairs_there_is_nothing_to_label(config: Config) -> None:
    known = config.replace("data", data="scenes", scenes_count=10, prior="", rate=1.0)
    tables = prepare(known)
    for method in RIVALS:
        with pytest.raises(InputError, match=f"{method} learns from unlabelled pairs"):
            Run.start(known.replace("train", method=method), tables)


def test_one_pass_gives_each_view_its_own_answer(config: Config, prepared: Prepared) -> None:
    parts = Run.start(config.replace("train", method="fixmatch"), prepared).parts
    a, b = parts.weak(torch.tensor([0, 1]), "a", 0), parts.weak(torch.tensor([5, 6, 7]), "b", 0)
    together = ask(parts, parts.teacher, a, b)
    for batch, answer in zip((a, b), together, strict=True):
        [alone] = ask(parts, parts.teacher, batch)
        for name in ("q", "guided", "best", "features"):
            torch.testing.assert_close(getattr(answer, name), getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_a_view_can_be_drawn_again(config: Config, prepared: Prepared) -> None:
    parts = Run.start(config.replace("train", method="semires"), prepared).parts
    rows = torch.arange(6)
    seen = parts.weak(rows, "unlabelled", 3)
    view, _ = parts.view(rows, "unlabelled", 3)  # as SemiRES does, to see its regions as the picture is seen
    again = parts.pool.batch(rows, view=view)
    assert torch.equal(seen.image, again.image) and torch.equal(seen.proposals.soft, again.proposals.soft)


# --- losses and thresholds ----------------------------------------------------------------------------------------


def test_the_threshold_believes_both_sides() -> None:
    p = torch.tensor([[[0.05, 0.31, 0.5, 0.69, 0.7, 0.95]]])
    label, accept = above_threshold(p, 0.7)
    assert label.tolist() == [[[0, 0, 0, 1, 1, 1]]] and accept.tolist() == [[[1, 0, 0, 0, 1, 1]]]


def test_the_loss_is_put_on_both_answers_and_weighs_samples(config: Config, prepared: Prepared) -> None:
    parts = Run.start(config.replace("train", method="fixmatch"), prepared).parts
    [answer] = ask(parts, parts.teacher, parts.weak(torch.tensor([0, 1, 2]), "a", 0))
    label = (torch.rand(answer.q.shape, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    accept, weight = torch.ones_like(label), torch.tensor([0.0, 1.0, 0.5])
    assert answer.guided is not None
    expected = sum((weight * segmentation_loss(one, label, accept)).mean() for one in (answer.q, answer.guided))
    loss, logs = pseudo_loss(answer, label, accept, weight)
    assert loss.item() == pytest.approx(float(expected)) and logs["accept"] == logs["accept_front"] == 1
    loss, logs = both_decodings("x", dataclasses.replace(answer, guided=None), lambda logits: logits.mean((1, 2)))
    assert set(logs) == {"x"} and loss.item() == pytest.approx(answer.q.mean().item(), rel=1e-5)


def test_the_ramp() -> None:
    assert ramp(-1) == ramp(0) == pytest.approx(math.exp(-5)) and ramp(1) == ramp(7) == 1
    assert ramp(0.5) == pytest.approx(math.exp(-1.25))


# --- RESMatch -----------------------------------------------------------------------------------------------------


def test_a_strong_sentence_loses_words_but_never_all() -> None:
    tokens = torch.tensor([[5, 9, 7, 8, 6], [7, 5, PAD, PAD, PAD], [5, 6, PAD, PAD, PAD], [9, PAD, PAD, PAD, PAD]])
    articles = torch.tensor([5, 6])
    bare = set()
    for seed in range(40):
        words = strong_sentence(tokens, articles, 0.0, torch.Generator().manual_seed(seed))
        assert words[2].tolist() == tokens[2].tolist()  # articles alone stay
        assert words[0].tolist() in ([5, 9, 7, 8, 6], [9, 7, 8, PAD, PAD])
        bare.add(words[1].tolist() == [7, PAD, PAD, PAD, PAD])
        words = strong_sentence(tokens, articles, 0.9, torch.Generator().manual_seed(seed))
        assert (words > UNKNOWN).any(1).all()  # one word of each is still itself
        assert ((words == PAD).long().diff(dim=1) >= 0).all()  # padding at the end only
    assert bare == {True, False}
    many = torch.full((400, 20), 9)
    lost = (strong_sentence(many, articles, 0.1, torch.Generator().manual_seed(0)) == UNKNOWN).float().mean()
    assert 0.08 < lost < 0.12


def test_articles_are_found_in_the_vocabulary(prepared: Prepared) -> None:
    pool = prepared.pool
    found = article_ids(pool)
    sentence = next(row for row, text in enumerate(pool.sentences) if "the" in words_of(text))
    place = words_of(pool.sentences[sentence]).index("the")
    assert pool.tokens[sentence, place] in found and UNKNOWN not in found and len(found) <= 3


def test_quality_is_the_confidence_of_the_foreground() -> None:
    p = torch.tensor([[[0.9, 0.7], [0.1, 0.2]], [[0.4, 0.3], [0.5, 0.0]]])
    assert quality(p).tolist() == pytest.approx([0.8, 0.0])


# --- SemiRES ------------------------------------------------------------------------------------------------------


def block(value: float, rows: slice, columns: slice, rest: float) -> torch.Tensor:
    p = torch.full((1, 4, 4), rest)
    p[:, rows, columns] = value
    return p


def quarters() -> torch.Tensor:
    """One scale, (1, 1, 8, 8): four quarters, regions 1 to 4."""
    at = torch.tensor([[1, 2], [3, 4]])
    return at.repeat_interleave(4, 0).repeat_interleave(4, 1)[None, None]


def test_iom_takes_the_region_that_was_meant() -> None:
    p = block(0.9, slice(0, 2), slice(0, 2), 0.1)
    p[0, 1, 1], p[0, 0, 2] = 0.2, 0.8  # 3 of 4 cells of region 1, and one beside it: IoU 3/5
    mended = mend(p, quarters(), least_iou=0.5, cover=0.7)
    assert mended.iom.all() and not mended.cpi.any() and mended.accept.eq(1).all()
    assert torch.equal(mended.label, block(1.0, slice(0, 2), slice(0, 2), 0.0))


def test_cpi_composes_what_lies_in_the_answer_or_holds_it() -> None:
    p = block(0.9, slice(0, 2), slice(0, 4), 0.1)  # regions 1 and 2: IoU 1/2 with either, not above it
    mended = mend(p, quarters(), least_iou=0.5, cover=0.7)
    assert mended.cpi.all() and not mended.iom.any() and mended.accept.eq(1).all()
    assert torch.equal(mended.label, block(1.0, slice(0, 2), slice(0, 4), 0.0))
    p = block(0.9, slice(0, 1), slice(0, 1), 0.1)  # a quarter of region 1, all of it there: |m & p| / |p| = 1
    mended = mend(p, quarters(), least_iou=0.5, cover=0.7)
    assert mended.cpi.all() and torch.equal(mended.label, block(1.0, slice(0, 2), slice(0, 2), 0.0))


def test_pwa_keeps_the_answer_and_weighs_it() -> None:
    p = block(0.8, slice(1, 3), slice(1, 3), 0.02)  # one cell in each quarter: no region fits
    p[0, 0, 0] = 0.45
    mended = mend(p, quarters(), least_iou=0.5, cover=0.7)
    assert not mended.iom.any() and not mended.cpi.any()
    assert torch.equal(mended.label, (p > 0.5).float())
    assert mended.accept[0, 0, 0] == 0 and mended.accept[0, 0, 1] == pytest.approx(1, abs=1e-3)
    density = math.exp(-4.5) / (0.1 * math.sqrt(2 * math.pi))
    assert mended.accept[0, 1, 1].item() == pytest.approx((1.3 - density) / 1.3, rel=1e-5)
    assert pixel_weights(torch.tensor([0.5, 0.36, 0.64])).eq(0).all()
    assert pixel_weights(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1.3, 1.3], abs=1e-4)


def test_an_empty_answer_and_a_missing_map_are_kept_as_they_are() -> None:
    for p, maps in ((torch.zeros(1, 4, 4), quarters()), (torch.full((1, 4, 4), 0.9), torch.zeros_like(quarters()))):
        mended = mend(p, maps, least_iou=0.5, cover=0.7)
        assert not mended.iom.any() and not mended.cpi.any() and torch.equal(mended.label, (p > 0.5).float())


def test_each_of_a_batch_goes_its_own_way_and_finer_scales_take_part() -> None:
    left = torch.ones(1, 1, 8, 8, dtype=torch.int64)
    left[..., 4:] = 2
    maps = torch.cat([quarters(), left], dim=1).expand(3, 2, 8, 8)
    p = torch.cat([
        block(0.9, slice(0, 2), slice(0, 2), 0.1), block(0.9, slice(0, 4), slice(0, 2), 0.1),
        torch.full((1, 4, 4), 0.1),
    ])  # fmt: skip
    mended = mend(p, maps, least_iou=0.5, cover=0.7)
    assert mended.iom.tolist() == [True, True, False] and torch.equal(mended.label, (p > 0.5).float())


# --- DAM-Net ------------------------------------------------------------------------------------------------------


def test_attention_of_two_views_agrees_or_costs() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(4, 6, 3, 3, generator=rng)
    front = torch.zeros(4, 3, 3)
    front[:3, 1] = 1
    a = referent(features, front)
    assert a[:3].norm(dim=1).tolist() == pytest.approx([1, 1, 1]) and a[3].norm() == 0
    torch.testing.assert_close(a[0], torch.nn.functional.normalize(features[0, :, 1].mean(1), dim=0))
    known = referent(torch.randn(5, 6, 3, 3, generator=rng), torch.ones(5, 3, 3))
    valid = front.sum((1, 2)) > 0
    assert attention_consistency(a, a, known, valid) == 0
    b = a.roll(1, 0)
    one, other = attention_consistency(a, b, known, valid), attention_consistency(b, a, known, valid)
    assert one > 0 and one.item() == pytest.approx(other.item())
    assert attention_consistency(a, b, known, torch.zeros(4, dtype=torch.bool)) == 0


def test_what_a_method_does_not_read_does_not_change_its_run() -> None:
    l2l, rival = Config(), Config().replace("train", method="fixmatch")
    assert l2l.hash() != l2l.replace("rple", samples=4).hash() and l2l.hash() == l2l.replace("rivals", iou=0.6).hash()
    assert rival.hash() == rival.replace("rple", samples=4).hash() == rival.replace("sesm", held_out=0.5).hash()
    assert rival.hash() == rival.replace("rivals", iou=0.6).hash()  # SemiRES reads that
    others = rival.replace("rivals", threshold=0.8), rival.replace("sesm", swap=0.2)
    assert len({rival.hash(), *(one.hash() for one in others)}) == 3


def test_every_setting_of_the_rivals_has_a_reader() -> None:
    """And the list of who reads what is true: each method's file says `rivals.NAME`."""
    folder = Path(consistency.__file__).parent
    found = {
        path.stem: set(re.findall(r"rivals\.(\w+)", path.read_text(encoding="utf-8"))) for path in folder.glob("*.py")
    }
    assert {name: names for name, names in found.items() if names} == {name: set(of) for name, of in READ_BY.items()}
    assert set().union(*found.values()) == {one.name for one in dataclasses.fields(RivalConfig)}


def test_encoders_can_start_from_another_world() -> None:
    vocabulary = Vocabulary(("blorp", "red", "star"))
    config = Config().replace("model", channels=(40, 80, 128, 160), context=(0, 1, 1), width=48)
    away = config.replace("model", start="away")
    bare, started = (build_network(one, vocabulary).segmenter for one in (config, away))
    before, after = bare.state_dict(), started.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in same} >= {"smooth", "classify", "lateral", "context"}
    assert not same & {"vision.stem.0.weight", "text.position", "attention.0.query.weight"}
    assert torch.equal(before["text.embedding.weight"][2], after["text.embedding.weight"][2])  # a word it never met
    assert not torch.equal(before["text.embedding.weight"][3:], after["text.embedding.weight"][3:])
    with pytest.raises(InputError, match=r"model\.start=away needs"):
        build_network(away.replace("model", channels=(32, 64, 128, 160)), vocabulary)
