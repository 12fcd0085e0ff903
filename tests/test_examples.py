"""Every example runs, on a world of seconds."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from test_endpoint import Played, played  # noqa: F401
from tiny import SMALL, make_world

from l2l.cli import main
from l2l.data.read import read

EXAMPLES = Path(__file__).parents[1] / "examples"
FEW = ["--steps", "4", *(part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")),
       "--set", "data.height=64", "--set", "data.width=64"]  # fmt: skip
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example as a person would; returns what it printed."""

    def example(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return example


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def test_all_are_tried_here() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    assert all(f'run("{path.stem}"' in tried for path in EXAMPLES.glob("*.py"))
    assert all("examples/" + path.name in path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py"))


def test_label_correct_go_on(run: Run, world: Path, tmp_path: Path) -> None:
    said = run("label_photos", world / "data", world / "priors", tmp_path, "--rate", 0.4, *FEW)
    assert "prior alone" in said and "to label next" in said
    again = run("label_photos", world / "data", world / "priors", tmp_path, "--rate", 0.4, *FEW)
    assert again.splitlines()[-1] == said.splitlines()[-1]
    found = json.loads((tmp_path / "coco.json").read_text())
    assert len(found["annotations"]) == len((tmp_path / "labels" / "labels.jsonl").read_text().splitlines()) > 10

    tasks = tmp_path / "tasks"
    assert main(["export", str(tmp_path / "labels"), "--to", "label-studio", "--out", str(tasks)]) == 0
    sent = json.loads((tasks / "tasks.json").read_text())
    for number, task in enumerate(sent[:6]):  # six are looked at, one of them is emptied
        [prediction] = task["predictions"]
        task |= {"id": number, "annotations": [{"id": number, "result": prediction["result"] if number else []}]}
    (tmp_path / "export.json").write_text(json.dumps(sent[:6]))
    said = run("go_on_with_corrections", tmp_path / "export.json", tmp_path / "labels", tmp_path / "next",
               "--also", world / "data", *FEW)  # fmt: skip
    assert " rejected, " in said and said.splitlines()[-1] == str(tmp_path / "next" / "run")
    records = read(tmp_path / "next" / "data").samples
    assert sum(one.targets is not None for one in records) > 6

    picture = next((world / "data" / "images").glob("*"))
    said = run("many_sentences", tmp_path / "run", picture, tmp_path / "shown.png", "the red star", "the ring")
    assert said.count("expected IoU") == 2
    assert Image.open(tmp_path / "shown.png").size == Image.open(picture).size


def test_compare_methods(run: Run, world: Path, tmp_path: Path) -> None:
    said = run("compare_methods", world / "data", world / "priors", tmp_path, "--methods", "supervised,semires",
               "--seeds", "0,1", "--rate", 0.4, *FEW)  # fmt: skip
    head, *rows = said.splitlines()
    assert "with the prior" in head and [row.split()[0] for row in rows] == ["supervised", "semires"]
    assert all(row.count("±") == 2 for row in rows)


def test_ask_a_server(run: Run, world: Path, tmp_path: Path, played: Played) -> None:  # noqa: F811
    said = run("ask_a_server", world / "data", tmp_path / "priors", "--url", played.url, "--model", "Qwen2.5-VL",
               "--out", tmp_path / "run")  # fmt: skip
    assert "mIoU" in said and len(played.asked) > 10
