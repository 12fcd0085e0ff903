from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from l2l.config import Config, MethodName
from l2l.errors import InputError
from l2l.evaluate import Evaluation, evaluate
from l2l.metrics import Calibration, calibration
from l2l.priors.known import seen
from l2l.report import METHODS, _stored, report
from l2l.report_calibration import calibrated, meaning
from l2l.report_curves import Event, read_metrics, told
from l2l.report_gallery import choose, mask_panel, panel_size, resize_mask, soft_panel
from l2l.report_plots import _places, running_mean
from l2l.training.loop import METRICS, train

EVIL = "<script>alert('red & big')</script>"
NETWORK = [
    "model.channels=16,24,32,40", "model.depths=1,1,1,1", "model.width=16", "model.text_width=24", "data.height=64",
    "data.width=64", "data.rate=0.4", "train.labelled=3", "train.held_out=3", "train.unlabelled=4",
    "train.probe_pairs=8", "train.probe_every=4", "train.steps=10", "train.precision=float32",
]  # fmt: skip


def world(root: Path, *, masks: tuple[str, ...] = ("train", "val"), source: str = "simulated") -> Path:
    """Pictures with two squares each; `masks` are the splits whose masks are known (some of train's always are)."""
    root.mkdir()
    rng, lines, priors = np.random.default_rng(0), [], []
    for number in range(14):
        picture = rng.integers(0, 60, (48, 72, 3), np.uint8)
        split = "val" if number >= 10 else "train"
        for x, colour, word in ((6, 0, "red"), (42, 2, "blue")):
            y = int(rng.integers(4, 24))
            picture[y : y + 18, x : x + 22, colour] = 220
            mask = np.zeros((48, 72), bool)
            mask[y : y + 18, x : x + 22] = True
            name = f"{number}-{word}.png"
            Image.fromarray(mask).save(root / name)
            known = split in masks or (split == "train" and number < 5)
            sentence = EVIL if number == 11 and word == "red" else f"the {word} square"
            own = {"file_name": f"{number}.png", "text": sentence, "split": split, "mask": name if known else None}
            box = [x, y, x + 22, y + 18] if number % 3 else [0, 0, 20, 20]
            own_prior = {"image": f"{number}.png", "expression": sentence, "boxes": [box], "scores": [0.7]}
            lines.append(own)
            priors.append(own_prior | {"source": source})
        Image.fromarray(picture).save(root / f"{number}.png")
    for name, values in (("metadata.jsonl", lines), ("priors.jsonl", priors)):
        (root / name).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return root


def config(data: Path, method: str, *, prior: bool = True) -> Config:
    made = Config()
    for setting in (*NETWORK, f"data.data={data}", f"train.method={method}"):
        made = made.override(setting)
    return made.override(f"data.prior={data / 'priors.jsonl'}") if prior else made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Path:
    """A folder with three runs on one world."""
    root = tmp_path_factory.mktemp("runs")
    data = world(root / "data")
    for method in ("l2l", "supervised", "prior_only"):
        train(config(data, method), root / method)
    return root


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    return make(runs).read_text(encoding="utf-8")


def make(runs: Path, out: Path | None = None) -> Path:
    return report(runs / "l2l", beside=[runs / "supervised", runs / "prior_only"], gallery=8, out=out)


def headline(page: str) -> list[tuple[str, list[str]]]:
    """(name, cells) of the lines of the first table."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    lines = body.split("<tr>")[1:]
    names = [re.sub(r"<.*", "", line.split('scope="row">')[1], flags=re.S).strip() for line in lines]
    return [(name, re.findall(r"<td>(?:<b>)?([\d.,]+)", line)) for name, line in zip(names, lines, strict=True)]


def test_the_table_holds_the_evaluations(runs: Path, page: str) -> None:
    expected = []
    for method in ("l2l", "supervised"):
        with_prior, alone = evaluate(runs / method, save=False)
        (without,) = evaluate(runs / method, no_prior=True, save=False)
        expected += [with_prior, without, alone] if method == "l2l" else [with_prior, without]
    shown = headline(page)
    assert [name for name, _ in shown] == [
        "this run, with the prior", "this run, without a prior", "prior alone", "supervised, with the prior",
        "supervised, without a prior",
    ]  # fmt: skip
    names = ("mIoU", "oIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9")
    for (_, cells), one in zip(shown, expected, strict=True):
        flat = one.scores.to_json()
        assert cells == [*(f"{100 * flat[name]:.2f}" for name in names), str(one.scores.n)]
    best = max(100 * one.scores.miou for one in expected)
    assert f"<td><b>{best:.2f}</b></td>" in page


class Links(HTMLParser):
    """Everything a page would load, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "srcset", "href", "action", "data")]


def test_one_file_that_needs_nothing_else(page: str) -> None:
    found = Links()
    found.feed(page)
    assert len(found.links) > 30 and all(link.startswith("data:image/webp;base64,") for link in found.links)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page and "@import" not in page and "http:" not in page and "https:" not in page
    assert len(page) < 6e6


def test_sentences_are_text(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;red &amp; big&#39;)&lt;/script&gt;" in page


def test_all_parts_are_there_in_order(page: str) -> None:
    titles = re.findall(r"<h2>([^<]*)", page)
    assert [title.split(",")[0].strip() for title in titles] == [
        "Scores on data", "Temporal evolution of pseudo-supervision quality", "Joint distribution of scores",
        "Calibration", "Gallery", "Training", "How to read this",
    ]  # fmt: skip
    for text in (
        "accuracy of the selected region", "Model overruled a wrong prior", "sample accepted with probability",
        "P̃†, fused", "Full configuration", "scenes_count", "precision of the best fixed threshold",
    ):  # fmt: skip
        assert text in page


def test_a_simulated_prior_is_named_wherever_its_numbers_are(runs: Path, page: str, tmp_path: Path) -> None:
    badge = '<span class="simulated">simulated</span>'
    assert page.count(badge) >= 1 + 5 + 3  # facts, rows, titles
    data = world(tmp_path / "data", source="some model")
    train(config(data, "prior_only"), tmp_path / "run")
    assert badge not in report(tmp_path / "run").read_text(encoding="utf-8")


def test_the_same_run_makes_the_same_bytes(runs: Path, page: str, tmp_path: Path) -> None:
    again = make(runs, tmp_path / "a" / "b.html")
    assert again == tmp_path / "a" / "b.html" and again.read_text(encoding="utf-8") == page


def test_supervised_shows_what_it_has(runs: Path) -> None:
    page = report(runs / "supervised", gallery=4).read_text(encoding="utf-8")
    assert "IoU of Q, the model alone" in page and "Q, model alone" in page and "Joint distribution" in page
    assert not any(text in page for text in ("accuracy of the selected region", "fused", "burn-in"))


def test_prior_only_is_a_table(runs: Path) -> None:
    page = report(runs / "prior_only").read_text(encoding="utf-8")
    assert [name for name, _ in headline(page)] == ["prior alone"]
    assert "Gallery" not in page and "Temporal" not in page and "<img" not in page


def test_a_run_without_a_prior(runs: Path, tmp_path: Path) -> None:
    train(config(runs / "data", "supervised", prior=False), tmp_path / "run")
    page = report(tmp_path / "run", beside=[runs / "prior_only"], gallery=4).read_text(encoding="utf-8")
    assert [name for name, _ in headline(page)] == ["this run", "prior alone"]
    assert "Best cases" in page and "overruled" not in page and "Joint distribution" not in page


def test_without_truth_for_the_unlabelled(tmp_path: Path) -> None:
    data = world(tmp_path / "data", masks=("val",))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"image": "data/0.png", "expression": "the square"}) + "\n")
    chosen = config(data, "l2l").override("data.rate=1").override(f"data.unlabelled={pairs}")
    chosen = chosen.override("rple.guard=false")  # to it, so few labels are no evidence: it would hold out none
    train(chosen.override("train.steps=20", "sesm.release=0.8"), tmp_path / "run")  # logged before the release
    page = report(tmp_path / "run", gallery=4).read_text(encoding="utf-8")
    assert "There is no truth to measure with" in page and "held out of the segmenter" in page
    assert "IoU on held-out labels, %" in page and len(headline(page)) == 3
    assert "The drift guard was off." in page
    assert "of what it should of which priors are right" in page and "Events of the training" not in page


def test_without_truth_on_the_split(tmp_path: Path) -> None:
    data = world(tmp_path / "data", masks=("train",))
    train(config(data, "l2l"), tmp_path / "run")
    page = report(tmp_path / "run", gallery=4).read_text(encoding="utf-8")
    assert "Split val of data has no masks" in page and "Surest cases" in page and "Joint distribution" not in page
    assert "accuracy of the selected region" in page


def test_stored_evaluations_are_read_unless_the_weights_are_younger(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(runs / "data", "supervised"), run)
    report(run, gallery=0)
    path = run / "evaluations" / "data-val-no-prior.json"
    one = Evaluation.from_json(json.loads(path.read_text()))
    value = one.to_json() | {"pairs": [[pair.id, 12345, 54321, 0.5] for pair in one.pairs]}
    old = {name: part for name, part in value.items() if name not in ("run", "step", "weights")}
    planted, true = "22.73", f"{100 * one.scores.miou:.2f}"
    assert one.step == 10 and len(one.weights) == 32

    path.write_text(json.dumps(value))
    assert headline(report(run, gallery=0).read_text())[1][1][0] == planted
    path.write_text("{ damaged")
    assert headline(report(run, gallery=0).read_text())[1][1][0] == true

    def kept(content: dict[str, object], *, aged: bool = False) -> bool:
        path.write_text(json.dumps(content))
        if aged:
            os.utime(path, (1, 1))
        about = json.loads((run / "about.json").read_text())
        return "without" in _stored(run, "val", about, [pair.id for pair in one.pairs])

    assert kept(value) and kept(value, aged=True)  # it says whose it is: its age does not matter
    assert not kept(value | {"weights": "0" * 32}) and not kept(value | {"run": "another"})
    assert kept(old) and not kept(old, aged=True)  # of an older version: by age


def test_a_prior_that_is_gone_is_said(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(runs / "data")
    prior = tmp_path / "priors.jsonl"
    text = (runs / "data" / "priors.jsonl").read_text()
    prior.write_text(text.replace('"image": "', f'"image": "{runs / "data"}/'))
    train(config(runs / "data", "supervised").override(f"data.prior={prior}"), tmp_path / "run")
    prior.unlink()
    page = report(tmp_path / "run", gallery=4).read_text(encoding="utf-8")
    assert "No numbers with the prior" in page and len(headline(page)) == 1


def test_what_is_not_there(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        report(tmp_path)
    with pytest.raises(InputError, match="no split testA; there are: train, val"):
        report(runs / "supervised", split="testA")
    with pytest.raises(InputError):
        report(runs / "supervised", beside=[tmp_path])


def test_a_log_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 2.0}\n{"step": 10, "probe": {"rho": 0.5}}\n7\n{"step": 12, "event": "drift guard: x"}\n'
        '{"step": "?", "event": "y"}\n{"step": Infinity, "event": "y"}\n{"step": 20, "lo'
    )
    event = Event(12, "drift guard: x")
    assert read_metrics(path) == ([{"step": 10, "loss": 2.0}], [{"step": 10, "rho": 0.5}], [event])
    assert read_metrics(tmp_path / "none") == ([], [], [])


QUIET, BOX = "The drift guard did not step in.", '<div class="box"'


def with_events(run: Path, to: Path, *events: tuple[int, str]) -> str:
    """The page of a copy of a run whose log has exactly these events."""
    shutil.copytree(run, to)
    lines = [line for line in (to / METRICS).read_text().splitlines() if "event" not in line]
    lines += [json.dumps({"step": step, "event": text}) for step, text in events]
    (to / METRICS).write_text("".join(line + "\n" for line in lines))
    return report(to, gallery=0).read_text(encoding="utf-8")


def test_what_the_drift_guard_did_is_told(runs: Path, tmp_path: Path) -> None:
    none = with_events(runs / "l2l", tmp_path / "none")
    assert QUIET in none and BOX not in none
    one = with_events(runs / "l2l", tmp_path / "one", (4, f"drift guard: the fusion drifted: {EVIL}"))
    assert BOX in one and QUIET not in one and "The drift guard stepped in at step 4" in one
    assert "<b>step 4</b><span>the fusion drifted: &lt;script&gt;alert(&#39;red &amp; big&#39;)" in one
    assert "<script" not in one and "a line at step 4" in one and one.index(BOX) < one.index("<h2>Scores")
    many = [(step, "drift guard: the loop is sound again") for step in range(1, 9)]
    page = with_events(runs / "l2l", tmp_path / "many", *many)
    assert "stepped in 8 times from step 1 to 8" in page and "<summary>and 3 more</summary>" in page
    assert told(Config(), [Event(2, "something else")])["title"] == "Events of the training at step 2"


def test_only_l2l_has_a_drift_guard(runs: Path) -> None:
    page = report(runs / "supervised", gallery=0).read_text(encoding="utf-8")
    assert "drift guard" not in page.split("Full configuration")[0]


def test_every_method_has_a_phrase() -> None:
    assert set(METHODS) == set(get_args(MethodName)) and all(METHODS.values())


def test_calibration_is_that_of_the_evaluations(runs: Path, page: str) -> None:
    section = page.split("<h2>Calibration</h2>")[1].split("<h2>")[0]
    with_prior, alone = evaluate(runs / "l2l", save=False)
    (without,) = evaluate(runs / "l2l", no_prior=True, save=False)
    rho = with_prior.rho_calibration
    assert rho is not None and rho.n == with_prior.scores.n
    assert [pair.prior_iou for pair in with_prior.pairs] == [round(pair.iou, 4) for pair in alone.pairs]
    assert without.rho_calibration is None and alone.rho_calibration is None
    assert headline(section) == [
        (name, [str(one.n), *(f"{value:.3f}" for value in (one.expected, one.achieved, one.ece)),
                *([] if np.isnan(one.correlation) or one.correlation < 0 else [f"{one.correlation:.2f}"])])
        for name, one in (
            ("Answers with the prior", with_prior.calibration), ("Answers without a prior", without.calibration),
            ("The prior, as this run sees it", rho), ("The prior, by itself", alone.calibration),
        )
    ]  # fmt: skip
    assert calibrated({}, simulated=False) is None and calibrated({"alone": alone}, simulated=False) is None


def scored(bias: float, *, noise: float = 0.0) -> Calibration:
    expected = np.linspace(0.3, 0.7, 400)
    return calibration(expected, np.clip(expected - bias + noise * np.random.default_rng(0).normal(size=400), 0, 1))


def test_the_meaning_of_a_score_in_words() -> None:
    assert meaning(scored(0.01)).startswith("A score can be read as the IoU to expect: it is off by 0.010")
    assert "rough guess" in meaning(scored(0.08)) and "mostly too high. Where it expects 0.68" in meaning(scored(0.08))
    assert "mostly too low, but it does rank" in meaning(scored(-0.2))
    assert "Do not read" in meaning(scored(0.2, noise=3)) and "hardly ranks" in meaning(scored(0.2, noise=3))
    assert "the same for every pair, 0.50" in meaning(calibration([0.5] * 9, np.linspace(0, 1, 9)))


def test_cases_are_chosen_by_numbers() -> None:
    prior = np.array([0.9, 0.1, 0.8, 0.2, 0.9, 0.0, 0.7, 0.6])
    run = np.array([0.95, 0.9, 0.1, 0.6, 0.3, 0.0, 0.8, 0.7])
    refs, images = [0, 1, 2, 3, 4, 5, 6, 6], [0, 0, 1, 1, 2, 2, 3, 3]
    best, worst, saved, spoiled = choose(8, run, prior=prior, refs=refs, images=images)
    assert saved.rows == (1, 3) and "2 of 8 pairs (25.0 %)" in saved.said
    assert spoiled.rows == (2, 4)
    assert best.rows == (0, 6) and worst.rows == (5,)  # 7 is about the referent of 6
    shown = [refs[row] for section in (best, worst, saved, spoiled) for row in section.rows]
    assert len(shown) == len(set(shown))
    assert [one.title for one in choose(2, run, prior=None, refs=refs, images=images)] == ["Best cases", "Worst cases"]


def test_panels_keep_the_shape_of_the_picture() -> None:
    shapes = {(96, 96): (320, 320), (900, 300): (440, 147), (1, 1000): (1, 320)}
    assert {shape: panel_size(shape) for shape in shapes} == shapes
    mask = np.zeros((48, 72), bool)
    mask[10:30, 20:50] = True
    large = resize_mask(mask)
    assert large.shape == panel_size((48, 72)) and abs(large.mean() - mask.mean()) < 0.01
    picture = np.zeros((48, 72, 3), np.uint8)
    for uri in (soft_panel(np.zeros((12, 18)), (48, 72), large), mask_panel(picture, large, None)):
        assert uri.startswith("data:image/webp;base64,")


def test_curves_are_smoothed_and_labels_kept_apart() -> None:
    assert np.allclose(running_mean(np.array([0.0, 3.0, 6.0, 0.0]), 3), [1.5, 3, 3, 3])
    assert np.allclose(running_mean(np.array([2.0, 4.0]), 1), [2, 4])
    ends = [(0.5, 1.0, str(number), "blue") for number in range(6)]
    places = [place for place, _ in _places(ends, 0, 1)]
    assert min(np.diff(places)) > 0.08 and places[0] > 0 and places[-1] < 1


@pytest.mark.parametrize(
    "prior, data, said",
    [
        ("IDEA-Research/grounding-dino-base (mllm)", "refcoco", "trained on RefCOCO"),
        ("priors.jsonl", "shoes", "not known"), ("Qwen3-VL (endpoint)", "refcocog", "usually seen"),
        ("simulated (60% right)", "refcoco", ""), ("", "refcoco", ""),
    ],
)  # fmt: skip
def test_what_is_known_of_what_the_prior_has_seen(prior: str, data: str, said: str) -> None:
    found = seen(prior, data)
    assert said in found and bool(found) == bool(said)

