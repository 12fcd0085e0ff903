"""Every command that the documents show is one that the command line understands (the log shows what once was)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from l2l.cli import parser

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
