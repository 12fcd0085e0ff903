"""The screen of a training, its own and another process's: what it shows, and what it makes of half a file."""

from __future__ import annotations

import doctest
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import make_world, train_arguments

from l2l import live, subcommand
from l2l.cli import main
from l2l.errors import InputError
from l2l.live import WIDTH, History, Live, view
from l2l.watch import CHECKPOINT, CONFIG, METRICS, Tail, Watched, watch


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(history: History, *, width: int = 100, **more: Any) -> list[str]:
    """The lines of the screen."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(view(history, **more))
    return [line.rstrip() for line in console.export_text().splitlines()]


def training(steps: int = 800, last: int = 550) -> History:
    """As L2L goes: held-out labels are released at step 400, pseudo-labels begin after step 100."""
    history = History("train l2l", steps=steps)
    for step in range(10, last + 1, 10):
        figures = {"loss": 5 - step / 200, "reward": step / 1000, "seconds": 0.25, "unknown": 1.0}
        figures |= {"held_out_fused": step / 1000} if step <= 400 else {}
        figures |= {"accept_samples": 0.5 + step / 2000, "accept_front": 0.6 + step * 1e-9} if step > 100 else {}
        history.add(step, figures)
    return history


# --- the screen -------------------------------------------------------------------------------------------------------


def test_the_screen() -> None:
    history = training()
    history.event = "step 300: drift guard: the prior alone is heard"
    lines = shown(history, note="and more")
    assert re.fullmatch(r"train l2l  550/800  69%  ━+╸? +1:02 left", lines[0])
    rows = {re.split(r" {2,}", line)[0]: line for line in lines[1:7]}
    assert list(rows) == [
        "loss", "IoU of P̃†, held out", "accepted samples", "accepted foreground", "reward", "seconds a step",
    ]  # fmt: skip
    assert re.search(r"loss +2\.250 +█.*▁ +2\.25 to 4\.9$", rows["loss"])
    assert re.search(r"0\.400 +▁.*█ +0\.02 to 0\.395, until step 400$", rows["IoU of P̃†, held out"])
    assert set(re.findall("[▁-█]", rows["accepted foreground"])) == {"▅"}  # rounding is no history
    assert lines[7:] == ["step 300: drift guard: the prior alone is heard", "and more"]


def test_it_fits_a_narrow_terminal() -> None:
    lines = shown(training(), width=80)
    assert all(len(line) <= 81 for line in lines)  # the tilde of P̃† takes no room
    assert any(re.match(r"loss +2\.250 +█", line) for line in lines)


def test_it_can_do_with_ascii() -> None:
    assert "\n".join(shown(training(), plain=True)).replace("━", "").replace("╸", "").isascii()


def test_rows_share_the_axis_of_steps() -> None:
    history = training()
    start, end = (history.spark(name).find("▁") for name in ("accept_samples", "loss"))
    assert history.spark("accept_samples")[:3] == "   " and start == 110 // history.stretch
    assert len(history.spark("held_out_fused")) == 400 // history.stretch + 1
    assert end > 0 and len(history.spark("loss")) <= WIDTH


def test_a_history_keeps_its_means_when_it_is_squeezed() -> None:
    history = History("")
    for step in range(1, 10_001):
        history.add(step, {"loss": float(step > 5_000)})
    assert history.stretch == 512 and sum(map(len, history._cells.values())) <= WIDTH
    means = history.means("loss")
    assert means[0] == 0 and means[-1] == 1
    history.add(10_001, {"loss": float("nan"), "reward": float("inf")})
    assert history.means("loss") == means and history.spark("reward") == ""


def test_nothing_known_yet() -> None:
    assert shown(History("train l2l")) == ["train l2l"]
    history = History("train l2l", steps=4)
    assert history.left is None
    history.add(4, {"seconds": 2.0})
    assert history.left == 0 and "left" not in shown(history)[0]


def test_examples_in_the_documentation() -> None:
    assert doctest.testmod(live).failed == 0
    assert doctest.testmod(subcommand).failed == 0


# --- while it trains --------------------------------------------------------------------------------------------------


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Live(History("train l2l"), stream=stream) as progress:
        assert stream.getvalue() == ""  # of several processes only one has something to show
        progress.before("proposals", 5, 5)
        for step in range(1, 5):
            progress(step, 4, {"loss": 1 / step, "seconds": 9.0})
        progress.tell("step 3: drift guard: one")
        progress.tell("step 4: drift guard: two")
    text = stream.getvalue()
    assert "proposals 5/5" in text and "4/4" in text and "0.250" in text
    assert text.rindex("guard: one") < text.rindex("loss") < text.rindex("guard: two")
    assert progress.history.seconds is not None and progress.history.seconds < 9


def test_plain_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    with Live(History("train"), stream=stream, every=0.0) as progress:
        progress.before("proposals", 2, 2)
        progress(1, 2, {"loss": 0.5})
        progress.tell("step 1: drift guard: one")
        progress(2, 2)
    assert stream.getvalue().splitlines() == [
        "proposals 2/2 100%", "train 1/2 50%  loss 0.500", "train  step 1: drift guard: one", "train 2/2 100%",
    ]  # fmt: skip


# --- from elsewhere ---------------------------------------------------------------------------------------------------


def append(file: Path, *values: Any) -> None:
    with file.open("a") as lines:
        lines.writelines(json.dumps(value) + "\n" for value in values)


def begin(folder: Path, steps: int = 40, method: str = "l2l") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"train": {"method": method, "steps": steps}}))
    return folder


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / METRICS
    tail = Tail(file)
    assert tail.new() == (False, [])
    append(file, {"step": 10, "loss": 1.0}, ["no object"], {"without": "a step"})
    with file.open("a") as lines:
        lines.write('{"step": 20, "lo')
    assert tail.new() == (True, [{"step": 10, "loss": 1.0}])
    assert tail.new() == (False, [])
    with file.open("a") as lines:
        lines.write('ss": 0.5}\n{"step": 3\n')
    assert tail.new() == (False, [{"step": 20, "loss": 0.5}])


@pytest.mark.parametrize("replaced", [False, True])
def test_a_tail_begins_again_when_a_file_is_cut_back(replaced: bool, tmp_path: Path) -> None:
    file = tmp_path / METRICS
    append(file, {"step": 10}, {"step": 20})
    tail = Tail(file)
    tail.new()
    if replaced:  # and as long as before
        (tmp_path / "new").write_text('{"step": 10}\n{"step": 15}\n')
        os.replace(tmp_path / "new", file)
        assert tail.new() == (True, [{"step": 10}, {"step": 15}])
    else:
        file.write_text('{"step": 10}\n')
        assert tail.new() == (True, [{"step": 10}])
    file.unlink()
    assert tail.new() == (True, [])
    assert tail.new() == (False, [])


def test_a_run_is_watched_from_before_its_start(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "run")
    watched.look()
    assert watched.note() == "not begun yet" and not watched.finished
    folder = begin(tmp_path / "run")
    watched.look()
    assert "the first come with step 10" in watched.note()
    append(folder / METRICS, {"step": 10, "loss": 2.0}, {"step": 10, "probe": {"iou_fused": 0.5}})
    watched.look()
    os.utime(folder / METRICS, (0, time.time() - 8))
    watched = Watched(folder)
    watched.look()
    append(folder / METRICS, {"step": 14, "event": "drift guard: P† is not heard"}, {"step": 20, "loss": 1.0})
    watched.look()
    assert watched.history.event == "step 14: drift guard: P† is not heard"
    assert watched.history.seconds == pytest.approx(0.8, abs=0.1)
    assert watched.history.left == pytest.approx(16, abs=2)
    assert watched.note() == ""
    os.utime(folder / METRICS, (0, time.time() - 3600))
    watched.look()
    assert watched.note() == "no new figures for 1:00:00: stopped, perhaps"


def test_what_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    folder = begin(tmp_path / "run")
    append(folder / METRICS, {"step": 10, "loss": 2.0}, {"step": 20, "loss": 9.0}, {"step": 20, "event": "gone"})
    watched = Watched(folder)
    watched.look()
    (folder / METRICS).write_text('{"step": 10, "loss": 2.0}\n')
    watched.look()
    assert watched.history.step == 10 and watched.history.means("loss") == [2.0] and watched.history.event == ""
    assert (watched.history.title, watched.history.steps) == (f"{folder}  l2l", 40)


def test_a_run_without_training_and_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(begin(tmp_path / "prior", method="prior_only"))]) == 0
    assert "does not train" in capsys.readouterr().out
    assert main(["watch", str(tmp_path)]) == 0
    assert "not begun yet" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "none")]) == 2
    assert "no run here" in capsys.readouterr().err
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(InputError, match="no configuration"):
        watch(tmp_path)


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    world, run = make_world(tmp_path), tmp_path / "run"
    assert main(train_arguments(world, run, steps=21, train_save_every=6)) == 0
    capsys.readouterr()
    assert main(["watch", str(run)]) == 0
    text = capsys.readouterr().out
    assert "21/21  100%" in text and re.search(r"loss +\d\.\d{3} +[▁-█]", text)
    assert f"finished; next: l2l evaluate {run}" in " ".join(text.split())
    assert "\x1b" not in text
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    watch(run, stream=screen, every=0.01)  # ends by itself
    assert "finished" in screen.getvalue()
    lines = (run / METRICS).read_text().splitlines(keepends=True)
    (run / METRICS).write_text("".join(line for line in lines if '"step": 21' not in line))
    watched = Watched(run)
    watched.look()
    assert not watched.finished and (run / CHECKPOINT).exists()
