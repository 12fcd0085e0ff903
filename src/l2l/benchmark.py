"""The benchmark: methods x label rates x seeds x data, every cell trained once, in parts, on one machine or many.

A cell is done when `OUT/cells/KEY.json` is there; KEY is the hash of its configuration. So any call goes on where
others stopped, and cells made elsewhere need only be copied in. `OUT/work` holds what is under way, `OUT/failed` what
went wrong.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from l2l.benchmark_cell import ROOT, cell_file, locked, missing_data, run_cell
from l2l.benchmark_suites import Cell, Suite, percent, with_steps
from l2l.data.durable import FULL
from l2l.errors import InputError
from l2l.training.stop import TERMINATED, Stopped, on_sigterm, terminate

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Say = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What a worker has to know."""

    out: Path
    root: Path
    threads: int
    workers: int
    device: str
    keep: bool
    every: float = 15.0
    """Seconds between two lines about one cell."""


def plan(
    suites: Sequence[Suite], *, part: tuple[int, int] = (1, 1), only: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None, rates: Sequence[float] | None = None,
) -> list[Cell]:
    """The cells to run, one of each key, all of the first seed before the second, so that a part of a grid is a grid.

    Args:
        part: (i, n), every n-th cell from the i-th; the n parts are disjoint and make the whole on any machine.
        only: rows or columns of this name or, if there is none, that contain it, in any case; or the cell whose key
            begins with it; or several of these.
        seeds: these label seeds (others than the suites' own: `with_seeds`). rates: these shares of labelled images.

    Raises:
        InputError: if there is no such part, or no cell is left.
    """
    if not 1 <= part[0] <= part[1]:
        raise InputError(f"part {part[0]}/{part[1]}: write i/n with i from 1 to n")
    labels = {percent(rate) for rate in rates or ()}

    asked = [only] if isinstance(only, str) else list(only or ())
    known = {name.lower() for suite in suites for cell in suite.cells for name in (cell.row, cell.column)}

    def fits(text: str, cell: Cell) -> bool:
        names, text = (cell.row.lower(), cell.column.lower()), text.lower()
        return text in names if text in known else any(text in name for name in names) or cell.key.startswith(text)

    def wanted(cell: Cell) -> bool:
        return (
            (not asked or any(fits(text, cell) for text in asked))
            and (seeds is None or cell.seed in seeds)
            and (rates is None or cell.column in labels or cell.config.data.rate in rates)
        )

    cells = [cell for suite in suites for cell in suite.cells if wanted(cell)]
    if not cells:
        rows = dict.fromkeys(cell.row for suite in suites for cell in suite.cells)
        raise InputError(f"no cell is left of these rows: {', '.join(rows) or 'none'}")
    unique = {cell.key: cell for cell in reversed(cells)}  # the first of equal keys gives its name
    ordered = sorted((unique[key] for key in dict.fromkeys(cell.key for cell in cells)), key=lambda cell: cell.seed)
    return ordered[part[0] - 1 :: part[1]]


def benchmark(
    suites: Sequence[Suite], out: Path | str, *, root: Path | str = ROOT, part: tuple[int, int] = (1, 1),
    workers: int = 1, threads: int = 1, device: str = "cpu", only: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None, rates: Sequence[float] | None = None, steps: int | None = None,
    keep: bool = False, strict: bool = False, say: Say = print,
) -> int:
    """Run every cell that is not done yet. Cut off at any point, it goes on at the last checkpoints.

    Args:
        suites: what to run; `l2l.benchmark_suites.SUITES` holds what the page shows.
        out: the benchmark's folder. root: the folder that holds `fashion/`.
        part, only, seeds, rates: see `plan`. steps: other steps than the suites', for a try.
        workers: cells at once, each with so many `threads`. On few cores more workers beat more threads.
        device: torch device. keep: leave the runs in `out`/work/runs.
        strict: absent data is an error; otherwise its cells are left out and a line says so.
        say: takes what is told.

    Returns:
        How many cells failed, each of which leaves `out`/failed/KEY.txt, or were left by a worker that died; the next
        call tries them again.

    Raises:
        InputError: for a part or a choice that leaves nothing, or with `strict` for absent data.
    """
    out, root = Path(out), Path(root)
    if min(workers, threads) < 1:
        raise InputError("workers and threads count from 1")
    cells = plan(suites if steps is None else with_steps(suites, steps), part=part, only=only, seeds=seeds, rates=rates)
    cells = _present(cells, root, strict, say)
    prepare_folder(out)
    todo = [cell for cell in cells if not cell_file(out, cell.key).exists()]
    for cell in todo:
        failure_file(out, cell.key).unlink(missing_ok=True)
    say(f"{len(cells)} cells, {len(cells) - len(todo)} done already")
    work = Work(out, root, threads, min(workers, max(1, len(todo))), device, keep)
    if work.workers == 1:
        do(todo, work, say)
    else:
        with on_sigterm(terminate):
            _spawn(todo, work, say)
    failed = sum(failure_file(out, cell.key).exists() for cell in todo)
    rest = [cell for cell in todo if not cell_file(out, cell.key).exists() and not failure_file(out, cell.key).exists()]
    lost = sum(_free(cell, work) for cell in rest)
    say(f"{len(todo) - failed - len(rest)} cells made, {failed} failed"
        + (f", {len(rest) - lost} under way elsewhere" if len(rest) > lost else "")
        + (f", {lost} left by a worker that died: the same command goes on" if lost else ""))  # fmt: skip
    return failed + lost


def failure_file(out: Path, key: str) -> Path:
    """Where a cell's error is kept."""
    return out / "failed" / f"{key}.txt"


def prepare_folder(out: Path) -> None:
    """Make the folder; git is told what in it is not for keeping."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".gitignore").write_text("work/\nfailed/\n", encoding="ascii")
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", file=out) from error


def _present(cells: list[Cell], root: Path, strict: bool, say: Say) -> list[Cell]:
    """The cells whose data is there."""
    absent = {cell.key: why for cell in cells if (why := missing_data(cell.config, root))}
    for why in dict.fromkeys(absent.values()):
        if strict:
            raise InputError(why)
        say(f"left out {sum(one == why for one in absent.values())} cells: {why}")
    return [cell for cell in cells if cell.key not in absent]


def do(cells: Sequence[Cell], work: Work, say: Say) -> None:
    """What one worker does: take the next cell that nobody has, make it, go on; a failure is noted and left behind."""
    import torch

    before, took = torch.get_num_threads(), list[float]()
    torch.set_num_threads(work.threads)
    try:
        for cell in cells:
            over = (cell_file(work.out, cell.key), failure_file(work.out, cell.key))
            if any(path.exists() for path in over):
                continue
            with locked(_lock(cell, work)) as mine:
                if mine and not any(path.exists() for path in over):
                    _make(cell, cells, work, took, say)
    finally:
        torch.set_num_threads(before)


def _lock(cell: Cell, work: Work) -> Path:
    return work.out / "work" / "locks" / cell.key


def _free(cell: Cell, work: Work) -> bool:
    """Whether nobody is at work on it."""
    with locked(_lock(cell, work)) as mine:
        return mine


def _make(cell: Cell, cells: Sequence[Cell], work: Work, took: list[float], say: Say) -> None:
    """One cell, with lines about it and about the whole."""
    name = f"{cell.suite}: {cell.row}, {cell.column}, seed {cell.seed}"
    pace = Pace(name, lambda: sum(not cell_file(work.out, one.key).exists() for one in cells), took, work, say)
    say(f"{name}: begins ({cell.key})")
    try:
        result = run_cell(
            cell, work.out, root=work.root, device=work.device, keep=work.keep, progress=pace, say=say
        )
    except Stopped:
        raise
    except Exception as error:  # one cell must not stop the others
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # no cell will fare better
        told = str(error) if isinstance(error, InputError) else traceback.format_exc()
        path = failure_file(work.out, cell.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n{told}\n", encoding="utf-8")
        say(f"{name}: failed, {type(error).__name__}: {' '.join(str(error).split())[:300]} (see {path})")
        return
    took.append(time.monotonic() - pace.began)
    told = ", ".join(f"{how} {100 * one['mIoU']:.1f}" for how, one in result["scores"].items())
    say(f"{name}: done, mIoU {told}")


class Pace:
    """Says every few seconds how far a cell is and when it and the whole will be done.

    Args:
        left: how many cells are not done. took: seconds of each cell that this worker made.
    """

    def __init__(self, name: str, left: Callable[[], int], took: Sequence[float], work: Work, say: Say):
        self.name, self.left, self.took, self.work, self.say = name, left, took, work, say
        self.began = self._said = time.monotonic()
        self._first: tuple[int, float] | None = None

    def __call__(self, step: int, steps: int, logs: dict[str, float]) -> None:
        from l2l.progress import clock

        now = time.monotonic()
        if self._first is None:
            self._first = step, now  # neither what a resumed run had done nor reading the data counts as steps
        if now - self._said < self.work.every or step in (self._first[0], steps):
            return
        self._said = now
        rest = (now - self._first[1]) / (step - self._first[0]) * (steps - step)
        mean = (sum(self.took) + now - self.began + rest) / (len(self.took) + 1)
        left = self.left()
        whole = max(rest, left * mean / self.work.workers)
        self.say(f"{self.name}: step {step}/{steps}, {clock(rest)} left; {left} cells left, about {clock(whole)}")


def _spawn(cells: Sequence[Cell], work: Work, say: Say) -> None:
    """Several workers; what they say comes through a pipe each, which ends when its worker does."""
    import multiprocessing
    from multiprocessing.connection import wait
    from multiprocessing.context import SpawnProcess

    context = multiprocessing.get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(work.workers):
            here, there = context.Pipe(duplex=False)
            running[here] = process = context.Process(target=_worker, args=(cells, work, there), daemon=True)
            process.start()
            there.close()
        while running:
            ready = wait(list(running))
            for pipe in [pipe for pipe in running if pipe in ready]:
                try:
                    say(pipe.recv())
                except EOFError:
                    process = running.pop(pipe)
                    process.join()
                    if process.exitcode:
                        say(f"a worker died with exit code {process.exitcode}; what it had begun can be gone on with")
    finally:
        for process in running.values():  # only after an interrupt: they leave a checkpoint
            process.terminate()
        for process in running.values():
            process.join()


def _worker(cells: Sequence[Cell], work: Work, pipe: Connection) -> None:
    def say(line: str) -> None:
        try:
            pipe.send(line)
        except OSError:
            raise SystemExit(1) from None  # nobody listens: the parent is gone

    try:
        do(cells, work, say)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Stopped:
        raise SystemExit(TERMINATED) from None
    except OSError as error:
        if error.errno not in FULL:
            raise
        say(f"{error.filename or work.out}: {error.strerror}; nothing that was written before is lost: make room")
        raise SystemExit(1) from None
