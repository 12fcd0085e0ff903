"""Completion with the tab key, for bash, zsh and tcsh. The script is made by shtab from the parser."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from l2l.errors import InputError

SHELLS = ("bash", "zsh", "tcsh")
FOLDERS = frozenset({"DIR", "FOLDER", "LABELS", "OUT", "RUN", "STORE"})
FILES = frozenset({"DATA", "FILE", "IMAGE", "PATH", "STORE|FILE"})


class PrintCompletion(argparse.Action):
    """The action of `--print-completion SHELL`: print the script and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        print(script(parser, str(values)))
        parser.exit()


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What a shell reads to complete subcommands, options, choices, files and folders.

    Args:
        parser: of all commands; what it completes is written into it.
        shell: one of `SHELLS`.

    Raises:
        InputError: if shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise InputError("completion needs shtab: pip install -e '.[completion]' -c constraints.txt") from error
    from l2l.benchmark_suites import SUITES
    from l2l.config import MethodName
    from l2l.training.track import TRACKERS

    named = {"--method": typing.get_args(MethodName), "--suite": [suite.name for suite in SUITES], "--track": TRACKERS}
    for action in _actions(parser):
        words = next((named[option] for option in action.option_strings if option in named), None)
        if words is not None:
            action.choices = list(words)
        elif action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.metavar in FILES or action.type is Path or action.dest == "data":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Every argument, those of subcommands too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        else:
            yield action
