"""Every command that the documents show is one that the command line understands (the log shows what once was)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny import make_world

from l2l.cli import parser
from l2l.config import Config
from l2l.training.loop import Run, train_step
from l2l.training.prepare import prepare

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of a page's code blocks that call `l2l`, with what continues them and without comments."""
    found = []
    for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            call = re.search(r"(?:^|--no_python )(l2l .*)", line)
            if call and "..." not in line and "$" not in line:
                found.append(call[1])
    return found


@pytest.mark.parametrize("page", [one for one in PAGES if one.name != "LOG.md"], ids=lambda page: page.name)
def test_commands_are_understood(page: Path) -> None:
    for command in commands(page):
        try:
            parser().parse_args(shlex.split(command, comments=True)[1:])
        except SystemExit as stop:
            assert stop.code == 0, f"{page.name}: {command}"


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_example_of_a_method_trains(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "new_method.md").read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(code, "sure_half.py", "exec"), space)
    world = make_world(tmp_path, count=20)
    config = Config().replace("data", data=str(world / "data"), prior=str(world / "priors"), rate=0.5)
    config = config.replace("data", height=64, width=64)
    config = config.replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    config = config.replace("train", method="fixmatch", steps=4, labelled=3, unlabelled=4, burn_in=0.3)
    run = Run.start(config, prepare(config))
    run.method = space["SureHalf"](run.parts)
    logs = [train_step(run) for _ in range(4)]
    assert "loss_u" not in logs[0] and logs[-1]["loss_u"] > 0
