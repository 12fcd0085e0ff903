"""Outlines from the picture: the filter against its definition, and what label, predict and evaluate make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_world, small_config, stir
from torch import Tensor

from l2l import outlines
from l2l.cli import main
from l2l.data.images import load
from l2l.errors import InputError
from l2l.evaluate import Evaluation, evaluate, outline_gain
from l2l.label import label
from l2l.outlines import RADIUS, SMOOTH, Picture, wide
from l2l.predict import Predictor
from l2l.report import _stored
from l2l.rle import Rle
from l2l.serving.server import open_run
from l2l.sharing.folder import save_pretrained
from l2l.training.loop import load_run, train
from l2l.training.pool import normalise, resize
from l2l.training.prepare import read_data


def by_definition(picture: np.ndarray, p: np.ndarray) -> np.ndarray:
    """He et al., equations 14 to 17: picture (H, W, 3) and p (H, W), both in [0, 1] -> the filter's answer."""
    height, width = p.shape
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - RADIUS) : y + RADIUS + 1, max(0, x - RADIUS) : x + RADIUS + 1]
            colours, told = picture[window].reshape(-1, 3), p[window].reshape(-1)
            spread = np.cov(colours.T, bias=True) + SMOOTH * np.eye(3)
            a = np.linalg.solve(spread, (colours * told[:, None]).mean(0) - colours.mean(0) * told.mean())
            total[window] += picture[window] @ a + told.mean() - a @ colours.mean(0)
            count[window] += 1
    return total / count


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def ready(picture: np.ndarray, size: tuple[int, int]) -> Picture:
    return Picture(picture, resize(picture, size))


def disc(side: int, x: float, y: float, radius: float) -> np.ndarray:
    """bool (side, side); the rest in shares of the side."""
    at = (np.arange(side) + 0.5) / side
    return (at[None] - x) ** 2 + (at[:, None] - y) ** 2 < radius**2


def painted(mask: np.ndarray, seed: int = 0) -> np.ndarray:
    """A picture in which the mask has another colour, with a little noise."""
    noise = np.random.default_rng(seed).normal(0, 4, (*mask.shape, 3))
    return (np.where(mask[:, :, None], (200, 90, 60), (90, 110, 100)) + noise).clip(0, 255).astype(np.uint8)


def cells_of(mask: np.ndarray, side: int) -> Tensor:
    """Logits (side, side): what a network that knows the cells, and is a little vague, would say."""
    share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], side)
    return (6 * share - 3)[0, 0]


def test_it_is_the_guided_filter() -> None:
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (20, 28, 3), dtype=np.uint8)
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    p = wide(logits[None, None], (20, 28)).sigmoid()[0, 0].numpy()
    expected = by_definition(picture / 255, p)
    near = np.abs(expected - 0.5) < 1e-3  # where rounding decides
    found = ready(picture, (20, 28)).mask(logits)
    assert near.mean() < 0.05 and found.any() and not found.all()
    assert np.array_equal(found[~near], expected[~near] > 0.5)


@pytest.mark.parametrize("times", [1, 3])
def test_a_mask_ends_where_the_colours_do(times: int) -> None:
    truth = disc(96 * times, 0.42, 0.55, 0.17)
    logits = cells_of(disc(96 * times, 0.43, 0.54, 0.19), 24)  # somewhat beside it, and too large
    plain = wide(logits[None, None], truth.shape)[0, 0].numpy() > 0
    drawn = ready(painted(truth), (96, 96)).mask(logits)
    assert iou(plain, truth) < 0.82 and iou(drawn, truth) > 0.93


def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = disc(150, 0.5, 0.4, 0.2)
    picture, logits = painted(truth), cells_of(truth, 24)
    whole = ready(picture, (96, 96)).mask(logits)
    monkeypatch.setattr(outlines, "ROWS", 7)
    assert np.array_equal(ready(picture, (96, 96)).mask(logits), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(ready(picture, (96, 96)).mask(logits), whole)


def test_nothing_stays_nothing_and_something_something() -> None:
    made = ready(painted(disc(64, 0.5, 0.5, 0.3)), (64, 64))
    assert not made.mask(torch.full((16, 16), -0.01)).any()
    assert made.mask(torch.full((16, 16), 5.0)).all()
    spot = torch.full((16, 16), -6.0)
    spot[3, 4] = 4.0  # a cell of a colour that says nothing
    plain = wide(spot[None, None], (64, 64))[0, 0].numpy() > 0
    assert plain.any() and np.array_equal(made.mask(spot), plain)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_pictures_of_any_shape(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert ready(picture, (64, 64)).mask(torch.randn(16, 16)).shape == size


# --- through a run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose masks are neither empty nor full, on drawn scenes, with a prior."""
    root = make_world(tmp_path_factory.mktemp("outlined"), count=14)
    train(small_config(root), root / "run")
    return stir(root / "run")


def test_evaluate(run: Path) -> None:
    plain, drawn = evaluate(run)[0], evaluate(run, outlines=True)[0]
    config, network, _, about = load_run(run)
    assert network is not None
    gain = outline_gain(run, config, network, about, prior=True)
    assert drawn.outlines == gain >= 1 and plain.outlines == 0
    assert [one.score for one in drawn.pairs] == pytest.approx(
        [min(1, gain * one.score) for one in plain.pairs], abs=2e-4
    )
    assert [one.intersection for one in drawn.pairs] != [one.intersection for one in plain.pairs]
    names = {one.name for one in (run / "evaluations").iterdir()}
    assert {"data-val-prior.json", "data-val-prior-outlines.json", "data-val-prior-alone-outlines.json"} <= names
    told = json.loads((run / "evaluations" / "data-val-prior-outlines.json").read_text())
    assert Evaluation.from_json(told).outlines == gain


def test_the_gain_is_measured_once_for_the_weights_there_are(run: Path) -> None:
    config, network, _, about = load_run(run)
    assert network is not None
    first = [outline_gain(run, config, network, about, prior=prior) for prior in (True, False)]
    file = run / "outlines.json"
    kept = json.loads(file.read_text())
    assert [kept["prior"], kept["no_prior"]] == first
    elsewhere = config.replace("data", data="nowhere")
    assert outline_gain(run, elsewhere, network, about, prior=True) == first[0]
    file.write_text(json.dumps(kept | {"weights": "others", "prior": 7.0}))
    with pytest.raises(InputError, match="nowhere"):
        outline_gain(run, elsewhere, network, about, prior=True)
    assert outline_gain(run, config, network, about, prior=True) == first[0]
    assert "no_prior" not in json.loads(file.read_text())


def test_label(run: Path, tmp_path: Path) -> None:
    plain = [json.loads(line) for line in label(run, tmp_path / "plain").read_text().splitlines()]
    path = label(run, tmp_path / "drawn", outlines=True)
    whole = path.read_bytes()
    drawn = [json.loads(line) for line in whole.splitlines()]
    gain = json.loads((tmp_path / "drawn" / "about.json").read_text())["outlines"]
    assert [one["score"] for one in drawn] == pytest.approx([min(1, gain * one["score"]) for one in plain], abs=2e-4)
    assert all(one["accepted"] == (one["score"] > 0.5) for one in drawn)
    config = load_run(run)[0]
    line, sample = drawn[0], next(one for one in read_data(config.data).samples if one.image == drawn[0]["image"])
    mask = Rle.from_coco(line["segmentation"]).decode()
    assert mask.shape == sample.size
    assert [one["segmentation"] for one in plain] != [one["segmentation"] for one in drawn]
    path.write_bytes(whole[: len(whole) // 2])
    assert label(run, tmp_path / "drawn", outlines=True).read_bytes() == whole
    for folder, other in (("drawn", False), ("plain", True)):
        with pytest.raises(InputError, match="made with another outlines"):
            label(run, tmp_path / folder, outlines=other)


def answer_of(predictor: Predictor, sentence: str) -> Tensor:
    """The network's own answer to a sentence about the picture that is set, logits (h, w)."""
    assert predictor._small is not None
    tokens = predictor.vocabulary.encode([sentence], predictor.config.data.words)
    return predictor.network(normalise(predictor._small[None].float() / 255), tokens).q[0]


def test_predict(run: Path, tmp_path: Path) -> None:
    plain, drawn = Predictor(run), Predictor(run, outlines=True)
    config = load_run(run)[0]
    sample = read_data(config.data).samples[0]
    picture, said = load(sample.image), [*sample.sentences, "the red star"]
    boxes = [[10.0, 10.0, 50.0, 60.0], *[None] * (len(said) - 1)]
    plain.set_image(picture)
    drawn.set_image(picture)
    made = ready(picture, (config.data.height, config.data.width))
    found = drawn.segment_all(said, boxes)
    assert np.array_equal(found[1].mask, made.mask(answer_of(drawn, said[1])))
    for one, other, given in zip(found, plain.segment_all(said, boxes), boxes, strict=True):
        assert one.score == pytest.approx(min(1, other.score * drawn.gains[given is not None]))
        assert one.mask.any() == other.mask.any()
    many = drawn.segment_many([picture, picture[::-1].copy()], [said, said], [boxes, boxes])
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(found, many[0], strict=True))
    shared = save_pretrained(run, tmp_path / "shared")
    assert Predictor(shared, outlines=True).gains == drawn.gains
    served = open_run(run, outlines=True)[0]
    assert np.array_equal(served.segment_many([picture], [said], [boxes])[0][0].mask, found[0].mask)


def test_report_and_card_tell_them_apart(run: Path, tmp_path: Path) -> None:
    ids = [one.id for one in (evaluate(run) + evaluate(run, outlines=True))[0].pairs]
    stored = _stored(run, "val", load_run(run)[3], ids)
    assert {"with", "alone"} <= set(stored) and not any(one.outlines for one in stored.values())
    card = (save_pretrained(run, tmp_path / "shared") / "README.md").read_text()
    ways = [line.split("|")[2] for line in card.splitlines() if "`data`, val" in line]
    assert len(set(ways)) == len(ways) >= 4


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--outlines", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["outlines"] >= 1
    assert main(["label", str(run), "--outlines", "--out", str(tmp_path / "labels")]) == 0
    config = load_run(run)[0]
    from PIL import Image

    Image.fromarray(load(read_data(config.data).samples[0].image)).save(tmp_path / "a.png")
    masks = []
    for name, more in (("plain", []), ("drawn", ["--outlines"])):
        assert main(["predict", str(run), str(tmp_path / "a.png"), "the red star", "--out",
                     str(tmp_path / f"{name}.png"), "--box", "10", "10", "60", "60", *more]) == 0  # fmt: skip
        masks.append(load(str(tmp_path / f"{name}.png")))
    assert not np.array_equal(*masks)


def test_shards(run: Path, tmp_path: Path) -> None:
    from l2l.scale.label_shards import label_shards

    shards = tmp_path / "shards"
    assert main(["data", "shard", "scenes", "--count", "6", "--out", str(shards)]) == 0
    told = {}
    for name, drawn in (("plain", False), ("drawn", True)):
        label_shards(run, shards, tmp_path / name, no_prior=True, everything=True, outlines=drawn)
        told[name] = [json.loads(line) for file in sorted((tmp_path / name).glob("labels-*.jsonl"))
                      for line in file.read_text().splitlines()]  # fmt: skip
    config, network, _, about = load_run(run)
    assert network is not None
    gain = outline_gain(run, config, network, about, prior=False)
    assert [one["score"] for one in told["drawn"]] == pytest.approx(
        [min(1, gain * one["score"]) for one in told["plain"]], abs=2e-4
    )
    assert told["drawn"] != told["plain"]
