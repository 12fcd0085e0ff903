"""The walk-throughs in docs/, step by step in one process: `python tests/walks.py docs/walk-refcoco.md [FIRST [LAST]]`.

A step is a line of a code block that calls `l2l` or a script in benchmarks/, or a whole block of Python.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from l2l.cli import main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Step:
    """What is to be done: words of a command, or Python."""

    words: tuple[str, ...] = ()
    python: str = ""


def steps(page: Path) -> list[Step]:
    """All steps of a page, in its order."""
    found: list[Step] = []
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(Step(python=block))
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(("l2l ", "python benchmarks/")):
                found.append(Step(words=tuple(shlex.split(line, comments=True))))
    return found


def take(step: Step) -> int:
    """Do a step in the working folder; returns its exit code."""
    if step.python:
        exec(compile(step.python, "walk.py", "exec"), {"__name__": "__main__"})
        return 0
    if step.words[0] == "l2l":
        return main(step.words[1:])
    before, sys.argv = sys.argv, list(step.words[1:])
    try:
        runpy.run_path(str(ROOT / step.words[1]), run_name="__main__")
    finally:
        sys.argv = before
    return 0


if __name__ == "__main__":
    every = steps(Path(sys.argv[1]))
    first, last = [*map(int, sys.argv[2:4]), *(1, len(every))[len(sys.argv) - 2 :]]
    for number, one in enumerate(every[first - 1 : last], first):
        said = shlex.join(one.words) if one.words else f"python, {len(one.python.splitlines())} lines"
        print(f"\n[{number}] $ {said}", flush=True)
        clock, processor = time.monotonic(), time.process_time()
        code = take(one)
        sys.stdout.flush()
        print(f"exit {code}, {time.process_time() - processor:.1f} s of processor, "
              f"{time.monotonic() - clock:.0f} s by the clock", flush=True)  # fmt: skip
