"""A run leaves home: the model folder says the same as the run, and nothing about the pictures; ONNX answers alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import make_world, stir, train_arguments

import l2l
from l2l.cli import main
from l2l.errors import InputError
from l2l.sharing.card import make_card
from l2l.sharing.folder import push_to_hub, save_pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("sharing"))
    out = world / "run"
    assert main(train_arguments(world, out, "--method", "l2l")) == 0
    stir(out)
    assert main(["evaluate", str(out), "--split", "val"]) == 0
    return out


@pytest.fixture(scope="module")
def shared(run: Path) -> Path:
    return save_pretrained(run, run.parent / "model", licence="cc-by-4.0", name="someone/model")


def test_a_model_folder_answers_as_the_run_does(run: Path, shared: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for box in (None, (10, 10, 40, 50)):
        answers = []
        for folder in (run, shared):
            model = l2l.load(folder)
            model.set_image(picture)
            answers.append(model.segment("the red ring", box))
        assert np.array_equal(answers[0].mask, answers[1].mask) and answers[0].score == answers[1].score


def test_it_tells_nothing_of_the_pictures_and_places(run: Path, shared: Path) -> None:
    split = json.loads((run / "split.json").read_text())
    held = b"".join(file.read_bytes() for file in shared.iterdir() if file.is_file())
    assert sorted(file.name for file in shared.iterdir()) == [
        "README.md", "about.json", "checkpoint.safetensors", "config.json",
    ]  # fmt: skip
    assert str(run.parent).encode() not in held and not any(name.encode() in held for name in split["images"])
    assert b"student." not in held and b"optimiser." not in held
    assert (shared / "checkpoint.safetensors").stat().st_size < (run / "checkpoint.safetensors").stat().st_size / 3


def test_the_card_says_what_there_is_to_say(shared: Path) -> None:
    card = (shared / "README.md").read_text()
    for part in ('license: "cc-by-4.0"', "someone/model", "*simulated*", "prior alone", "with the prior", "mIoU"):
        assert part in card, part
    assert card.startswith("---\n") and card.count("---\n") >= 2


def test_a_card_holds_on_to_its_tables(run: Path) -> None:
    config, _, _, about = l2l.load_run(run)
    card = make_card("a|b`c\nd", config, about | {"prior": "x`|y\n# z"}, [])
    assert "a/b'c d" in card and "x'/y # z" in card and "Not measured" in card and "No licence" in card


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["save", str(run), "--out", str(tmp_path / "model"), "--license", "apache-2.0"]) == 0
    assert (tmp_path / "model" / "README.md").is_file() and "l2l.load" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert main(["save", str(run), "--out", str(tmp_path / "other")]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_onnx_answers_alike(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert main(["save", str(run), "--onnx", str(tmp_path / "model.onnx")]) == 0
    told = json.loads((tmp_path / "model.json").read_text())
    assert told["apart"] < 1e-3 and len(told["vocabulary"]) > 10
    assert set(told["outputs"]) == {"probability", "expected_iou"}


def test_the_hub_by_its_own_client(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    class Api:
        def create_repo(self, name: str, **how: Any) -> None:
            asked.append((name, how))

        def upload_folder(self, **what: Any) -> str:
            return f"https://hub/{what['repo_id']}"

    monkeypatch.setattr(hub, "HfApi", Api)
    assert push_to_hub(shared, "someone/model") == "https://hub/someone/model"
    assert asked == [("someone/model", {"private": True, "exist_ok": True})]
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **how: str(shared))
    assert l2l.load("someone/model").config.train.method == "l2l"

    def refuse(name: str, **how: Any) -> str:
        raise OSError("no such repository\nand a page of traceback")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="no such repository$"):
        l2l.load("someone/model")


@pytest.mark.parametrize("name", ["nowhere", "/no/folder", "../no/folder", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_name(name: str) -> None:
    with pytest.raises(InputError, match="no run or model folder"):
        l2l.load(name)
