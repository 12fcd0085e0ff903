"""How a subcommand looks: what it does, and examples that can be typed as they are."""

from __future__ import annotations

import argparse
from typing import Any


class Help(argparse.HelpFormatter):
    """Wraps text, but leaves examples on lines of their own."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def subcommand(parent: Any, name: str, run: Any, text: str, *examples: str) -> argparse.ArgumentParser:
    """Add a subcommand to what `argparse.ArgumentParser.add_subparsers` returned.

    Args:
        run: called with the parsed arguments; `None` if the subcommand only has others below it.
        text: what it does, without a capital and a full stop.
        examples: whole command lines.
    """
    one: argparse.ArgumentParser = parent.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=listed(*examples), formatter_class=Help
    )
    if run is not None:
        one.set_defaults(run=run)
    return one


def listed(*examples: str) -> str:
    """The end of a help text.

    Example:
        >>> print(listed("l2l demo"))
        examples:
          l2l demo
    """
    return "\n  ".join(["examples:", *examples])


def outlines_option(one: argparse.ArgumentParser) -> None:
    """Add `--outlines`, of all that make masks."""
    one.add_argument("--outlines", action="store_true", help="masks get their outlines from the picture's colours")
