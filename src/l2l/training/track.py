"""Trackers: what goes to `metrics.jsonl` goes to TensorBoard, trackio or Weights & Biases too, by accelerate's classes.

Nothing here is needed to train: accelerate and the trackers are imported when one is asked for.
"""

from __future__ import annotations

import importlib.util
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from l2l.config import Config
from l2l.errors import InputError

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "l2l"
TRACKED = "tracked.txt"


def check_trackers(names: Sequence[str]) -> None:
    """Raises `InputError` for a name that is none of `TRACKERS`, or one whose packages are not installed."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"there is no tracker {name!r}, but {', '.join(TRACKERS)}")
        for package in ("accelerate", name):
            if importlib.util.find_spec(package) is None:
                more = "" if name == "tensorboard" else f" {name}"
                how = f"pip install -e '.[track]' -c constraints.txt{more}"
                raise InputError(f"the tracker {name} needs {package}: {how}")


@contextmanager
def tracking(
    names: Sequence[str], config: Config, out: Path, *, step: int = 0, tell: Callable[[str], None] | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Within it the function that is given passes a line of `metrics.jsonl` on to some trackers.

    A tracker that fails is left out after one warning: it never ends a training.

    Args:
        names: of `TRACKERS`; several processes each name them, but one writes.
        config: stored as hyperparameters, `section.setting`.
        out: the run's folder. TensorBoard writes to `out/tensorboard`, Weights & Biases to `out/wandb`, trackio to its
            own folder. `out/tracked.txt` names the run to the last two, so that they go on with it.
        step: from which the run goes on; what TensorBoard has beyond it is forgotten.
        tell: takes warnings; Python's own, if not given.
    """
    trackers = _Trackers(tell or warnings.warn)
    if names:
        trackers.start(names, config, out, step)
    try:
        yield trackers.log
    finally:
        trackers.each(lambda one: one.finish())


class _Trackers:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.alive: dict[str, Any] = {}

    def start(self, names: Sequence[str], config: Config, out: Path, step: int) -> None:
        from accelerate import PartialState

        PartialState(cpu=config.train.device == "cpu")  # the trackers ask it which process they are in
        again = (out / "tensorboard").exists()
        self.alive = {name: _tracker(name, out, step) for name in names}
        self.each(lambda one: one.start())
        values = _flat(config)
        self.each(lambda one: again and one.name == "tensorboard" or one.store_init_configuration(values))

    def log(self, line: dict[str, Any]) -> None:
        if "event" in line:
            values = {"event": line["event"]}
        elif "probe" in line:
            values = {f"probe/{name}": value for name, value in line["probe"].items()}
        else:
            values = {f"train/{name}": value for name, value in line.items() if name != "step"}
        self.each(lambda one: one.log(values, step=line["step"]))

    def each(self, act: Callable[[Any], Any]) -> None:
        for name, one in list(self.alive.items()):
            try:
                act(one)
            except Exception as error:
                del self.alive[name]
                said = " ".join(str(error).split())[:200]
                self.tell(f"the tracker {name} failed, training goes on without it: {said or type(error).__name__}")


def _tracker(name: str, out: Path, step: int) -> Any:
    """accelerate's tracker of that name, not started yet."""
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    match name:
        case "tensorboard":
            return TensorBoardTracker(name, logging_dir=out, purge_step=step + 1)
        case "trackio":
            return TrackioTracker(PROJECT, name=f"{out.resolve().name}-{_identity(out)}", resume="allow")
        case _:
            again = {"id": _identity(out), "resume": "allow"}
            return WandBTracker(PROJECT, name=out.resolve().name, dir=str(out), **again)


def _identity(out: Path) -> str:
    """8 hex digits that no other run has, kept in the run's folder."""
    file = out / TRACKED
    if not file.exists():
        file.write_text(secrets.token_hex(4), encoding="ascii")
    return file.read_text(encoding="ascii").strip()


def _flat(config: Config) -> dict[str, bool | int | float | str]:
    """Settings as trackers take them, with the run's hash."""
    plain: dict[str, bool | int | float | str] = {"hash": config.hash()}
    for section, settings in config.to_json().items():
        for name, value in settings.items():
            plain[f"{section}.{name}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return plain
