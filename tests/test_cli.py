from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_world, settings, train_arguments

import l2l
from l2l.cli import main
from l2l.config import Config
from l2l.demo import demo
from l2l.progress import Progress, clock, show
from l2l.rle import Rle
from l2l.training.checkpoint import load_tensors
from l2l.training.loop import CHECKPOINT, METRICS

COMMANDS = ["demo", "data check", "data scenes", "data split", "prior", "train"]
COMMANDS += ["data recipe", "evaluate", "predict", "label", "report", "benchmark"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    assert main(train_arguments(world, world / "run")) == 0
    return world / "run"


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """`l2l` in a process of its own."""
    source = str(Path(l2l.__file__).parents[1])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "l2l.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must exit with 2 and one line on stderr that holds all of `needles`; gives the line."""

    def check(arguments: list[str], *needles: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if not re.match(r"(train|priors|label|evaluate)\b", line)]
        assert len(said) == 1 and said[0].startswith("l2l: error: "), said
        for needle in needles:
            assert needle in said[0], said[0]
        return said[0]

    return check


# --- starting up ------------------------------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        process = start("--help")
        out, _ = process.communicate()
        took.append(time.perf_counter() - began)
        assert process.returncode == 0 and "evaluate" in out
    assert min(took) < 0.5


def test_nothing_heavy_is_imported_at_start() -> None:
    code = "import l2l, l2l.cli, l2l.progress, sys; l2l.cli.parser(); print(*sys.modules)"
    source = str(Path(l2l.__file__).parents[1])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": source}).stdout  # fmt: skip
    assert not {"torch", "numpy", "PIL", "rich", "matplotlib", "jinja2", "safetensors"} & set(out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"\nexamples:\n  l2l {command}" in capsys.readouterr().out


def test_version_agrees_with_the_project_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"l2l {l2l.__version__}\n"
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{l2l.__version__}"' in project


def test_functions_of_the_package_are_functions_whatever_was_imported() -> None:
    import l2l.evaluate
    import l2l.label
    import l2l.predict

    for name in ("evaluate", "label", "predict", "demo", "train", "read", "check", "draw"):
        assert callable(getattr(l2l, name)), name
    assert set(l2l.__all__) <= set(dir(l2l))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        l2l.nothing  # noqa: B018


def test_usage_mistakes_are_one_line(fails: Callable[..., str]) -> None:
    fails(["train"], "--out", "l2l train --help")
    fails(["nonsense"], "nonsense")
    fails(["train", "--out", "x"], "--data is missing")


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_off_a_terminal_is_plain_lines() -> None:
    stream = io.StringIO()
    with Progress("train", stream=stream, every=0.0) as progress:
        progress(10, 40, {"loss": 0.5, "seconds": 0.25})
        progress(20, 40, {"loss": 0.25})
        progress(40, 40)
    first, second, last = stream.getvalue().splitlines()
    assert first == "train 10/40 25%  loss 0.500  0.25 s/step"
    assert re.fullmatch(r"train 20/40 50%  \d+:\d\d left  loss 0\.250", second)
    assert last == "train 40/40 100%"


def test_progress_off_a_terminal_is_rare() -> None:
    stream = io.StringIO()
    with Progress("train", stream=stream, every=1000.0) as progress:
        for step in range(1, 101):
            progress(step, 100)
    assert stream.getvalue() == "train 100/100 100%\n"


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress("train", stream=stream) as progress:
        progress.before("regions", 7, 7)
        progress(1, 4, {"loss": 0.5})
        progress(4, 4, {"loss": 0.125})
    assert "regions" in stream.getvalue() and "7/7" in stream.getvalue()
    assert "train" in stream.getvalue() and "4/4" in stream.getvalue() and "loss 0.125" in stream.getvalue()


def test_what_comes_before_has_a_title_and_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([0.0] * 3 + [float(3600 + 10 * second) for second in range(9)])
    monkeypatch.setattr("l2l.progress.time.monotonic", lambda: next(clocks))
    stream = io.StringIO()
    with Progress("train", stream=stream, every=0.0) as progress:
        for done in (1, 2, 4):
            progress.before("proposals", done, 4)
        for done in (1, 2):
            progress(done, 4)
    assert stream.getvalue().splitlines() == [
        "proposals 1/4 25%", "proposals 2/4 50%  0:20 left", "proposals 4/4 100%",
        "train 1/4 25%", "train 2/4 50%  0:20 left",
    ]  # fmt: skip


def test_clock_and_figures() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]
    assert show({"unknown": 1.0}) == ""


# --- all commands, in order -------------------------------------------------------------------------------------------


def test_from_nothing_to_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, priors, run, split = (str(tmp_path / name) for name in ("data", "priors", "run", "split.json"))
    assert main(["data", "scenes", data, "--count", "30", "--seed", "5"]) == 0
    assert main(["data", "check", data, "--deep"]) == 0
    assert "problems: none" in capsys.readouterr().out
    assert main(["data", "split", data, "--rate", "0.4", "--seed", "1", "--out", split]) == 0
    more = str(Path(data) / "unlabelled.jsonl")
    assert main(["prior", data, "--source", "simulated", "--out", priors]) == 0
    arguments = ["train", "--data", data, "--split-file", split, "--prior", priors, "--unlabelled", more]
    assert main([*arguments, "--steps", "6", "--out", run, *settings()]) == 0
    capsys.readouterr()

    assert main(["evaluate", run, "--json"]) == 0
    guided, alone = json.loads(capsys.readouterr().out)
    assert (guided["method"], alone["method"]) == ("l2l", "prior alone")
    assert guided["prior_simulated"] and guided["scores"]["n"] == alone["scores"]["n"] > 0
    assert main(["evaluate", run, "--data", data, "--no-prior"]) == 0
    assert "prior" not in capsys.readouterr().out

    picture = str(next((Path(data) / "images").iterdir()))
    mask, over = tmp_path / "out" / "mask.png", tmp_path / "over.png"
    box = ["--box", "10", "10", "60", "60"]
    assert main(["predict", run, picture, "left star", "--out", str(mask), "--overlay", str(over), *box]) == 0
    with Image.open(mask) as written, Image.open(picture) as original, Image.open(over) as laid:
        assert written.mode == "L" and written.size == original.size == laid.size
        assert set(np.unique(np.asarray(written))) <= {0, 255}

    assert main(["label", run, "--out", str(tmp_path / "labels")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert any(line["id"].startswith("extra-") for line in lines)
    capsys.readouterr()
    assert main(["train", "--out", run, "--resume"]) == 0
    assert "finished already, 6 of 6 steps" in capsys.readouterr().out


def test_scenes_need_no_files(tmp_path: Path) -> None:
    out, small = str(tmp_path / "run"), ["--count", "20", "--scenes-seed", "4"]
    assert main(["prior", "scenes", *small, "--source", "simulated", "--out", str(tmp_path / "p")]) == 0
    assert main(["data", "split", "scenes", *small, "--rate", "0.2", "--out", str(tmp_path / "s.json")]) == 0
    assert main(["train", "--data", "scenes", *small, "--method", "supervised", "--rate", "0.2", "--out", out,
                 "--prior", str(tmp_path / "p"), "--split-file", str(tmp_path / "s.json"), "--steps", "2",
                 *settings()]) == 0  # fmt: skip
    assert Config.load(tmp_path / "run" / "config.json").data.scenes_seed == 4
    assert main(["evaluate", out, "--split", "val"]) == 0
    assert main(["predict", out, "scenes:home:4:9", "the star", "--out", str(tmp_path / "m.png")]) == 0


def test_precomputed_priors_become_a_store(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = next((world / "data" / "images").glob("*.png"))
    sample = l2l.read(world / "data").samples[0]
    line = {"image": sample.image, "expression": sample.sentences[0], "boxes": [[5, 5, 40, 40]], "source": "by hand"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    arguments = ["prior", str(world / "data"), "--source", "precomputed", "--out", str(tmp_path / "p")]
    assert main([*arguments, "--file", str(tmp_path / "answers.jsonl")]) == 0
    assert "by hand" in capsys.readouterr().out and picture.exists()


def test_a_share_of_scenes_is_unlabelled(tmp_path: Path) -> None:
    known, unknown = l2l.write_scenes(tmp_path / "a", count=20, seed=1, unlabelled_share=0.5)
    everything = l2l.write_scenes(tmp_path / "b", count=20, seed=1, unlabelled_share=0.0)
    assert everything == (known + unknown, 0)
    shown, hidden = l2l.read(tmp_path / "a"), l2l.read(tmp_path / "a" / "unlabelled.jsonl")
    assert len({one.image_id for one in shown.split("train")}) == len({one.image_id for one in hidden.samples}) == 9
    assert not {one.image_id for one in shown.samples} & {one.image_id for one in hidden.samples}
    assert not (tmp_path / "b" / "unlabelled.jsonl").exists()


def test_demo_in_small(tmp_path: Path) -> None:
    pytest.importorskip("l2l.report")
    config = Config().replace("data", scenes_count=20, rate=0.2, height=64, width=64)
    config = config.override(*settings()[3::2])
    said: list[str] = []
    page = demo(tmp_path / "demo", 3, config=config, source="simulated", say=said.append)
    assert page.is_file()
    told = "\n".join(said)
    for row in ("supervised ", "prior alone", "supervised + prior", "l2l ", "l2l + prior", "in all", "report"):
        assert row in told
    assert demo(tmp_path / "demo", 3, config=config, source="simulated", say=said.append) == page


# --- what users get wrong ---------------------------------------------------------------------------------------------


def broken(root: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None]) -> Path:
    """A copy of the world's data set with something wrong in its refs or its instances."""
    file = root / "refs(scenes).p"
    refs, coco = pickle.loads(file.read_bytes()), json.loads((root / "instances.json").read_text())
    change(refs, coco)
    file.write_bytes(pickle.dumps(refs, protocol=2))
    (root / "instances.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.copytree(world / "priors", tmp_path / "priors")
    return tmp_path


def first_train(refs: list[dict[str, Any]]) -> dict[str, Any]:
    return next(ref for ref in refs if ref["split"] == "train")


def picture_of(root: Path, *, labelled: bool = True) -> Path:
    split = l2l.draw(l2l.read(root / "data").samples, 0.4, 0)
    train = l2l.read(root / "data").split("train")
    return Path(next(one.image for one in train if (one.image_id in split.images) == labelled))


def test_missing_image(copy: Path, fails: Callable[..., str]) -> None:
    picture_of(copy).unlink()
    fails(train_arguments(copy, copy / "run"), "refs(scenes).p, ref ", "no such image")


def test_unreadable_image(copy: Path, fails: Callable[..., str]) -> None:
    picture = picture_of(copy)
    picture.write_bytes(picture.read_bytes()[:200])
    fails(train_arguments(copy, copy / "run"), str(picture), "unreadable or truncated")


def test_mask_of_another_size(copy: Path, fails: Callable[..., str]) -> None:
    def shrink(refs: list[dict[str, Any]], coco: dict[str, Any]) -> None:
        wrong = {"size": [10, 10], "counts": Rle.encode(np.eye(10) > 0).counts}
        next(one for one in coco["annotations"] if one["id"] == first_train(refs)["ann_id"])["segmentation"] = wrong

    broken(copy / "data", shrink)
    fails(train_arguments(copy, copy / "run"), "refs(scenes).p, ref ", "a mask of 10 x 10 on an image of 96 x 96")


def test_empty_sentence(copy: Path, fails: Callable[..., str]) -> None:
    def hush(refs: list[dict[str, Any]], _: dict[str, Any]) -> None:
        first_train(refs)["sentences"][0].update(sent=" ", raw="")

    broken(copy / "data", hush)
    fails(train_arguments(copy, copy / "run"), "refs(scenes).p, ref ", "an empty sentence")


@pytest.mark.parametrize(
    "boxes, needle", [([[200, 200, 300, 300]], "outside the image"), ([[1, float("nan"), 5, 9]], "not finite"),
                      ([[1, 2, 3]], "a box has 4 numbers")],
)  # fmt: skip
def test_bad_box_in_a_prior_file(
    world: Path, tmp_path: Path, fails: Callable[..., str], boxes: Any, needle: str
) -> None:
    sample = l2l.read(world / "data").split("train")[0]
    good = {"image": sample.image, "expression": "nobody says this", "boxes": [[1, 1, 9, 9]]}
    lines = [good, {**good, "expression": sample.sentences[0], "boxes": boxes}]
    file = tmp_path / "priors.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fails([*train_arguments(world, tmp_path / "run"), "--prior", str(file)], f"{file}, line 2", needle)


def test_bad_box_for_predict(run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    arguments = ["predict", str(run), "scenes:home:0:9", "star", "--out", str(tmp_path / "m.png"), "--box"]
    fails([*arguments, "200", "200", "300", "300"], "box 200 200 300 300 lies outside the image of 96 x 96")
    fails([*arguments, "nan", "0", "9", "9"], "not finite")
    fails([*arguments, "9", "9", "5", "5"], "without area")
    fails([*arguments, "a", "9", "5", "5"], "invalid float")


def test_bad_picture_or_sentence_for_predict(run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = ["--out", str(tmp_path / "m.png")]
    fails(["predict", str(run), str(tmp_path / "no.jpg"), "star", *out], "no.jpg", "no such image")
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    fails(["predict", str(run), str(tmp_path / "bad.jpg"), "star", *out], "bad.jpg", "unreadable")
    fails(["predict", str(run), "scenes:home:0:9", "  ", *out], "an empty sentence")


def test_unknown_split(run: Path, fails: Callable[..., str]) -> None:
    fails(["evaluate", str(run), "--split", "testZ"], "no split testZ; there are: train, val")


def test_rates_that_label_nothing(world: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    base = train_arguments(world, tmp_path / "run")
    fails([*base, "--rate", "0.001"], "yields none; the smallest is")
    fails([*base, "--rate", "0"], "rate 0.0 is not in (0, 1]")
    fails(["data", "split", str(world / "data"), "--rate", "0.01", "--out", str(tmp_path / "s")], "yields none")


def test_damaged_stores(copy: Path, fails: Callable[..., str]) -> None:
    store = copy / "priors" / "priors.sqlite"
    whole = store.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"nonsense" * 500, b""):
        for rest in ("-wal", "-shm"):
            store.with_name(store.name + rest).unlink(missing_ok=True)
        store.write_bytes(damaged)
        fails(train_arguments(copy, copy / "run"), "priors")
    store.unlink()
    fails(train_arguments(copy, copy / "run"), "no prior store here")


def test_a_store_keeps_to_one_source(copy: Path, fails: Callable[..., str]) -> None:
    arguments = ["prior", str(copy / "data"), "--source", "simulated", "--out", str(copy / "priors")]
    fails([*arguments, "--accuracy", "0.5"], "this store holds priors of simulated (80% right)")
    fails([*arguments, "--accuracy", "1.5"], "it lies in [0, 1]")
    fails([*arguments, "--file", "x.jsonl"], "--source precomputed")


def test_damaged_checkpoints(run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / CHECKPOINT
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 1000):
        file.write_bytes(damaged)
        fails(["evaluate", str(file.parent)], str(file), "corrupt or truncated checkpoint")
        fails(["train", "--out", str(file.parent), "--resume"], str(file), "corrupt or truncated checkpoint")
    file.unlink()
    fails(["evaluate", str(file.parent)], str(file), "no checkpoint here")
    fails(["evaluate", str(tmp_path)], "no run here")


def test_settings(world: Path, run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    base = train_arguments(world, tmp_path / "new")
    fails([*base, "--set", "train.stepz=3"], "--set train.stepz=3: train has method, steps")
    fails([*base, "--set", "steps=3"], "section.setting=value")
    fails([*base, "--set", "train.steps=many"], "--set train.steps=many")
    fails([*base, "--set", "model.channels=1,2"], "four stages")
    fails([*base, "--method", "nonsense"], "one of l2l")
    fails([*base, "--size", "64"], "write height x width")
    fails([*base, "--device", "nowhere"], "device nowhere cannot be used")
    fails(train_arguments(world, run), "there is a run here already; add --resume")
    fails([*train_arguments(world, run), "--seed", "9", "--resume"], "another configuration")
    fails([*train_arguments(world, tmp_path / "new"), "--data", str(tmp_path / "no")], "no such file or folder")


def test_a_split_of_another_data_set(world: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    split = tmp_path / "s.json"
    assert main(["data", "split", "scenes", "--count", "20", "--rate", "0.5", "--out", str(split)]) == 0
    fails([*train_arguments(world, tmp_path / "run"), "--split-file", str(split)], "this split was drawn from scenes")
    split.write_text(split.read_text().replace("0.5", "0.6"))
    fails([*train_arguments(world, tmp_path / "run"), "--split-file", str(split)], str(split), "edited or truncated")


def test_a_place_that_cannot_be_written(world: Path, run: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    fails(train_arguments(world, tmp_path / "file" / "run"), "file")
    fails(["data", "scenes", str(tmp_path / "file"), "--count", "3"], "file")
    fails(["label", str(run), "--out", str(tmp_path / "file")], "file")
    fails(["predict", str(run), "scenes:home:0:9", "star", "--out", str(tmp_path / "file" / "m.png")], "file")


def test_no_space_left(world: Path, tmp_path: Path) -> None:
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(*train_arguments(world, tmp_path / "run", steps=2), preexec_fn=little)
    _, error = process.communicate()
    lines = [line for line in error.splitlines() if line.startswith("l2l: error: ")]
    assert process.returncode == 2 and len(lines) == 1 and "Traceback" not in error, error


# --- setting bad records aside ----------------------------------------------------------------------------------------


def test_skip_bad_goes_on_and_says_what_was_skipped(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture_of(copy, labelled=False).unlink()
    truncated = picture_of_other(copy)
    truncated.write_bytes(truncated.read_bytes()[:200])
    data = str(copy / "data")
    assert main(["data", "check", data]) == 1
    assert "no such image" in capsys.readouterr().out
    assert main(train_arguments(copy, copy / "run", "--skip-bad")) == 0
    lines = [json.loads(line) for line in (copy / "run" / "skipped.jsonl").read_text().splitlines()]
    reasons = " ".join(line["reason"] for line in lines)
    assert "no such image" in reasons and "unreadable or truncated" in reasons
    assert all(line["file"] and line["record"] for line in lines)
    assert json.loads((copy / "run" / "about.json").read_text())["skipped"] == len(lines)
    assert main(["label", str(copy / "run"), "--out", str(copy / "labels"), "--skip-bad"]) == 0
    assert (copy / "labels" / "skipped.jsonl").is_file()
    made = ["prior", data, "--source", "simulated", "--out", str(copy / "other"), "--skip-bad"]
    assert main(made) == 0 and (copy / "other" / "skipped.jsonl").is_file()


def picture_of_other(root: Path) -> Path:
    """The picture of the last unlabelled train record that can be read."""
    data = l2l.read(root / "data", skip_bad=True)
    split = l2l.draw(data.samples, 0.4, 0)
    return Path([one.image for one in data.split("train") if one.image_id not in split.images][-1])


def test_check_with_skip_bad_passes_when_the_rest_is_fine(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hush(refs: list[dict[str, Any]], _: dict[str, Any]) -> None:
        first_train(refs)["sentences"][0].update(sent=" ", raw="")

    broken(copy / "data", hush)
    assert main(["data", "check", str(copy / "data")]) == 1
    capsys.readouterr()
    assert main(["data", "check", str(copy / "data"), "--skip-bad"]) == 0
    assert "set aside: 1" in capsys.readouterr().out


# --- cut off and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["l2l", "supervised"])
def test_kill_and_resume_gives_the_same_bits(world: Path, tmp_path: Path, method: str) -> None:
    more = {"train_save_every": 2, "train_probe_every": 4}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(*train_arguments(world, whole, "--method", method, steps=20, **more))
    _, error = process.communicate()
    assert process.returncode == 0, error

    kills = 0
    arguments = train_arguments(world, cut, "--method", method, "--resume", steps=20, **more)
    for attempt in range(12):
        process = start(*arguments)
        before = (cut / CHECKPOINT).stat().st_mtime_ns if (cut / CHECKPOINT).exists() else 0
        while attempt < 2 and process.poll() is None:  # wait until it has got further, then at a random moment ...
            time.sleep(0.005)
            if (cut / CHECKPOINT).exists() and (cut / CHECKPOINT).stat().st_mtime_ns != before:
                time.sleep(random.random() * 0.4)
                process.kill()
        _, error = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
        kills += 1
    assert process.returncode == 0 and kills >= 1

    (expected, expected_about), (found, found_about) = load_tensors(whole / CHECKPOINT), load_tensors(cut / CHECKPOINT)
    assert found_about == expected_about and found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(bits(found[name]), bits(value)), name
    assert (cut / METRICS).read_bytes() == (whole / METRICS).read_bytes()


def bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(-1).view(torch.uint8)


def test_ctrl_c_says_how_to_go_on(world: Path, tmp_path: Path) -> None:
    process = start(*train_arguments(world, tmp_path / "run", steps=100_000, train_save_every=2))
    while not (tmp_path / "run" / CHECKPOINT).exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "l2l: interrupted; go on from its last checkpoint with --resume" in error and "Traceback" not in error


def test_sigterm_keeps_the_step_and_the_numbers(world: Path, tmp_path: Path) -> None:
    """As a scheduler ends a job: what is done is kept, and what follows is what would have followed."""
    arguments = train_arguments(world, tmp_path / "cut", "--resume", steps=40, train_save_every=7)
    process = start(*arguments)
    metrics = tmp_path / "cut" / METRICS
    while not (tmp_path / "cut" / CHECKPOINT).exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in error and "Traceback" not in error
    step = load_tensors(tmp_path / "cut" / CHECKPOINT)[1]["step"]
    assert 0 < step < 40
    assert main(arguments) == 0
    assert main(train_arguments(world, tmp_path / "whole", steps=40, train_save_every=7)) == 0
    (expected, _), (found, _) = (load_tensors(tmp_path / run / CHECKPOINT) for run in ("whole", "cut"))
    assert all(torch.equal(bits(found[name]), bits(value)) for name, value in expected.items())
    assert metrics.read_bytes() == (tmp_path / "whole" / METRICS).read_bytes()
