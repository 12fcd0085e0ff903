from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_world, stir, train_arguments

import l2l
from l2l.cli import main
from l2l.data.images import load
from l2l.errors import InputError
from l2l.evaluate import answers, prepare_split
from l2l.model.text import Vocabulary
from l2l.outlines import upsample
from l2l.predict import BOX_SCORE, Prediction, Predictor, predict, save_mask, save_overlay, tight_box
from l2l.priors.prior import Prior, from_pixels
from l2l.proposals.bank import soft_maps
from l2l.training.loop import load_run
from l2l.training.pool import grid_size


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose weights are stirred, so that its masks have something in them."""
    world = make_world(tmp_path_factory.mktemp("world"))
    assert main(train_arguments(world, world / "run", steps=4)) == 0
    return stir(world / "run")


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return Predictor(run)


@pytest.fixture
def picture(run: Path) -> Path:
    return Path(l2l.read(run.parent / "data").split("val")[0].image)


def same(a: Prediction, b: Prediction) -> bool:
    return np.array_equal(a.mask, b.mask) and a.score == b.score and a.box == b.box


def test_a_prediction_has_the_picture_s_own_size(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    for size in ((37, 120), (64, 64), (201, 33)):
        predictor.set_image(rng.integers(0, 255, (*size, 3), dtype=np.uint8))
        found = predictor.segment("the red star", box=(2, 3, 30, 31))
        assert found.mask.shape == size and found.mask.dtype == bool
        assert 0 <= found.score <= 1
        assert found.box == tight_box(found.mask)


def test_path_picture_and_array_are_the_same(run: Path, picture: Path) -> None:
    expected = predict(run, picture, "the left star")
    with Image.open(picture) as opened:
        assert same(predict(run, opened, "the left star"), expected)
    assert same(predict(run, str(picture), "the left star"), expected)
    assert same(predict(run, load(str(picture)), "the left star"), expected)


def test_one_picture_many_sentences(run: Path, predictor: Predictor, picture: Path) -> None:
    predictor.set_image(picture)
    many = [predictor.segment(text) for text in ("the star", "left circle", "the star")]
    assert same(many[0], many[2])
    assert same(many[1], predict(run, picture, "left circle"))


def test_predict_agrees_with_evaluate(run: Path, predictor: Predictor) -> None:
    config, network, _, about = load_run(run)
    assert network is not None
    samples = l2l.read(run.parent / "data").split("val")
    pool, _ = prepare_split(samples, config, Vocabulary(tuple(about["vocabulary"])), "")
    box = (20.0, 10.0, 70.0, 60.0)
    prior = Prior(boxes=(from_pixels(box, samples[0].size),), scores=(BOX_SCORE,))
    cells = grid_size((config.data.height, config.data.width))
    guided = pool.with_proposals(*soft_maps([prior] * len(pool), pool.images, pool.image_of, cells))
    filled = 0
    for given, table in ((None, pool), (box, guided)):
        for rows, logits, scores in answers(network, table, config, prior=given is not None, batch=1):
            sample = pool.samples[int(pool.ref_of[rows[0]])]
            predictor.set_image(sample.image)
            found = predictor.segment(pool.sentences[int(rows[0])], given)
            assert np.array_equal(found.mask, upsample(logits[0], sample.size))
            assert found.score == pytest.approx(float(scores[0]), abs=1e-6)
            filled += bool(found.mask.any())
    assert filled  # else this test compares nothing with nothing


def test_a_box_is_heard(predictor: Predictor, picture: Path) -> None:
    predictor.set_image(picture)
    one, other = (predictor.segment("the star", box).score for box in ((0, 0, 40, 40), (50, 50, 96, 96)))
    assert one != other


def test_what_is_refused(run: Path, predictor: Predictor, picture: Path) -> None:
    with pytest.raises(InputError, match="set_image first"):
        Predictor(run).segment("star")
    predictor.set_image(picture)
    with pytest.raises(InputError, match="an empty sentence"):
        predictor.segment("\t")
    with pytest.raises(InputError, match="outside the image of 96 x 96"):
        predictor.segment("star", (96, 96, 120, 120))
    with pytest.raises(InputError, match="a box has 4 numbers, not 3"):
        predictor.segment("star", (1, 2, 3))
    for array in (np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="a picture is uint8"):
            predictor.set_image(array)
    with pytest.raises(InputError, match="no run here"):
        Predictor(run.parent)


def test_a_run_of_the_prior_alone_cannot_predict(run: Path, tmp_path: Path) -> None:
    assert main(train_arguments(run.parent, tmp_path / "alone", "--method", "prior_only")) == 0
    with pytest.raises(InputError, match="the prior alone"):
        Predictor(tmp_path / "alone")


def test_grey_pictures(predictor: Predictor) -> None:
    grey = np.random.default_rng(1).integers(0, 255, (40, 50), dtype=np.uint8)
    predictor.set_image(grey)
    one = predictor.segment("star")
    predictor.set_image(np.stack([grey] * 3, axis=2))
    assert same(one, predictor.segment("star"))


def test_files(tmp_path: Path) -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:6, 3:9] = True
    save_mask(mask, tmp_path / "a" / "m.png")
    with Image.open(tmp_path / "a" / "m.png") as written:
        assert written.mode == "L" and np.array_equal(np.asarray(written), mask * np.uint8(255))
    save_overlay(np.zeros((8, 10, 3), np.uint8), mask, tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as written:
        shown = np.asarray(written)
    assert not shown[~mask].any()
    assert (shown[2, 3] == 255).all() and tuple(shown[3, 4]) == (128, 32, 32)


def test_many_sentences_are_answered_as_each_by_itself(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(run)
    predictor.set_image("scenes:home:0:9")
    sentences = ["the red star", "the leftmost ring", "the big blue square below the star", "a disc"]
    boxes = [None, (4, 4, 40, 40), None, (20, 10, 60, 50)]
    together = predictor.segment_all(sentences, boxes, batch=3)
    looked = []
    look = predictor.network.segmenter.look
    monkeypatch.setattr(predictor.network.segmenter, "look", lambda image: looked.append(1) or look(image))
    predictor.set_image("scenes:home:0:9")
    for one, sentence, box in zip(together, sentences, boxes, strict=True):
        alone = predictor.segment(sentence, box)
        assert alone.score == pytest.approx(one.score, abs=2e-3) and (alone.mask != one.mask).mean() < 0.01
    assert len(looked) == 1  # the picture, once
    with pytest.raises(InputError, match="1 boxes for 2 sentences"):
        predictor.segment_all(["a", "b"], [None])
    assert predictor.segment_all([]) == []
