"""The benchmark: cells are made once, resumed, shared out; pages say what the cells say."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from l2l.benchmark import benchmark, plan
from l2l.benchmark_cell import cell_file, code_digest, locked, missing_data, resolve, run_cell, source_of
from l2l.benchmark_page import gather, miou, paired, score_table, write_page
from l2l.benchmark_plots import COLOURS, FREE, _panels
from l2l.benchmark_suites import SUITES, Cell, Suite, with_seeds, with_steps
from l2l.cli import main
from l2l.config import SINCE, Config
from l2l.errors import InputError
from l2l.training.loop import train

TINY = (
    Config()
    .replace("data", data="scenes", scenes_count=20, prior="simulated:accuracy=0.8,errors=random,seed=0", rate=0.4)
    .replace("data", height=64, width=64)
    .replace("model", channels=(16, 24, 32, 40), depths=(1, 1, 1, 1), width=16, text_width=24)
    .replace("train", steps=4, labelled=3, held_out=3, unlabelled=3, probe_pairs=8, save_every=2, probe_every=2)
    .replace("train", precision="float32", burn_in=0.25)
)


def cell(row: str, seed: int = 0, column: str = "40 %", **train: Any) -> Cell:
    return Cell("tiny", row, column, seed, TINY.replace("train", seed=seed, **train))


def tiny(*cells: Cell, name: str = "tiny") -> Suite:
    return Suite(name, "Tiny", "Does it run?", "labels", cells)


@pytest.fixture(scope="module")
def grid() -> Suite:
    return tiny(cell("l2l"), cell("supervised", method="supervised"), cell("prior_only", method="prior_only"))


@pytest.fixture(scope="module")
def made(grid: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid, run by two workers."""
    out, lines = tmp_path_factory.mktemp("benchmark"), list[str]()
    assert benchmark([grid], out, workers=2, say=lines.append) == 0, lines
    assert sum("done, mIoU" in line for line in lines) == 3
    assert sum("asking simulated" in line for line in lines) == 1  # two workers, one store
    return out


def test_a_cell_keeps_what_is_promised_and_no_places(made: Path, grid: Suite) -> None:
    text = cell_file(made, grid.cells[0].key).read_text()
    one = json.loads(text)
    assert one["key"] == grid.cells[0].key and Config.from_json(one["config"]) == grid.cells[0].config
    assert set(one["scores"]) == {"prior", "no_prior", "prior_alone"}
    for scores in one["scores"].values():
        assert {"mIoU", "oIoU", "P@0.5", "n", "kinds"} <= set(scores)
        assert sum(kind["n"] for kind in scores["kinds"].values()) == scores["n"]
    for how in ("prior", "no_prior"):
        table = one["calibration"][how]["bins"]
        assert 0 <= one["calibration"][how]["ece"] <= 1 and 1 <= len(table) <= 10
        assert sum(row[0] for row in table) == one["scores"][how]["n"]
    assert [probe["step"] for probe in one["probes"]] == [2, 4] and "iou_fused" in one["probes"][-1]
    assert one["logs"][-1]["step"] == 4 and isinstance(one["events"], list)
    assert one["seconds"]["train"] > 0 and one["seconds"]["per_step"] > 0
    assert one["machine"]["threads"] == 1 and one["machine"]["precision"] == "float32"
    assert one["data"]["prior_simulated"] and one["data"]["labelled_images"] == 7
    assert str(made) not in text and str(Path.cwd()) not in text and not re.search(r'"(/|[A-Z]:\\)', text)
    alone = json.loads(cell_file(made, grid.cells[2].key).read_text())
    assert set(alone["scores"]) == {"prior_alone"} and alone["probes"] == []
    assert alone["scores"]["prior_alone"] == one["scores"]["prior_alone"]


def test_a_cell_of_two_worlds_is_measured_by_kind_of_sentence(tmp_path: Path) -> None:
    alone = cell("prior_only", method="prior_only")
    shifted = alone.config.replace("data", scenes_world="both", labels_from="away", scenes_count=40)
    one = dataclasses.replace(alone, config=shifted)
    assert benchmark([tiny(one)], tmp_path, say=lambda line: None) == 0
    kinds = json.loads(cell_file(tmp_path, one.key).read_text())["scores"]["prior_alone"]["kinds"]
    assert sum(kind["n"] for kind in kinds.values()) == 16  # every tenth picture is val, with four sentences


def test_a_second_call_does_nothing(made: Path, grid: Suite) -> None:
    before = {path: path.stat().st_mtime_ns for path in (made / "cells").iterdir()}
    lines: list[str] = []
    assert benchmark([grid], made, say=lines.append) == 0
    assert lines == ["3 cells, 3 done already", "0 cells made, 0 failed"]
    assert before == {path: path.stat().st_mtime_ns for path in (made / "cells").iterdir()}
    assert not any((made / "work" / "runs").iterdir())
    assert (made / ".gitignore").read_text() == "work/\nfailed/\n"


def test_a_run_that_was_cut_off_comes_to_the_same_numbers(made: Path, grid: Suite, tmp_path: Path) -> None:
    own = grid.cells[0]
    run = tmp_path / "work" / "runs" / own.key
    run.mkdir(parents=True)
    (run / "code.txt").write_text(code_digest())
    train(resolve(own.config, tmp_path, tmp_path), run, stop_after=3)  # its checkpoint is of step 2
    seen: list[int] = []
    got = run_cell(own, tmp_path, root=tmp_path, progress=lambda step, steps, logs: seen.append(step))
    assert seen == [3, 4] and not run.exists()
    whole = json.loads(cell_file(made, own.key).read_text())
    for name in ("scores", "calibration", "probes", "events", "config", "data"):
        assert json.loads(json.dumps(got[name])) == whole[name], name


@pytest.mark.parametrize("code", ["", "of another day"])
def test_a_run_begun_elsewhere_or_by_other_code_is_begun_anew(tmp_path: Path, code: str) -> None:
    own = cell("supervised", method="supervised", steps=2, save_every=1)
    old, new = tmp_path / "old", tmp_path / ("old" if code else "new")
    run, seen = old / "work" / "runs" / own.key, list[int]()
    run.mkdir(parents=True)
    (run / "code.txt").write_text(code or code_digest())
    train(resolve(own.config, tmp_path, old), run, stop_after=1)
    os.rename(old, new)  # the prior store has moved with it
    run_cell(own, new, root=tmp_path, keep=True, progress=lambda step, steps, logs: seen.append(step))
    assert seen == [1, 2] and (new / "work" / "runs" / own.key).is_dir()


def test_a_failed_cell_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    prior = {"prior": "simulated:accuracy=0.8,colour=red"}
    bad = Cell("tiny", "bad", "40 %", 0, TINY.replace("data", **prior))
    alone, lines = cell("prior_only", method="prior_only"), list[str]()
    assert benchmark([tiny(bad, alone)], tmp_path, say=lines.append) == 1
    assert "has no colour" in (tmp_path / "failed" / f"{bad.key}.txt").read_text()
    assert cell_file(tmp_path, alone.key).exists() and not cell_file(tmp_path, bad.key).exists()
    assert lines[-1] == "1 cells made, 1 failed"


def test_keys_are_the_same_everywhere() -> None:
    assert cell("l2l").key == cell("other name").key != cell("l2l", seed=1).key
    on_gpu = cell("l2l").config.replace("train", device="cuda")
    assert on_gpu.hash() == cell("l2l").key
    keys = {one.key for suite in SUITES for one in suite.cells}
    assert not any("/" in one.config.data.data + one.config.data.prior for suite in SUITES for one in suite.cells)
    for suite in SUITES:  # a row, a column and a seed name one cell
        assert len({(one.row, one.column, one.seed) for one in suite.cells}) == len(suite.cells)
    assert len(keys) < sum(len(suite.cells) for suite in SUITES)  # full supervision, the prior alone, L2L at 5 %


def test_settings_that_came_later_do_not_rename_what_was_made() -> None:
    """The cells of this repository are still those of its suites, with eight label seeds where one row has them."""
    made = {path.stem for path in (Path(__file__).parents[1] / "results/benchmark/cells").glob("*.json")}
    assert len(made) > 100 and made <= {one.key for one in plan(with_seeds(SUITES, range(8)))}
    for section, settings in SINCE.items():
        default = getattr(Config(), section)
        changed = [name for name, before in settings.items() if getattr(default, name) != before]
        assert changed == (["together"] if section == "sesm" else [])
    before = Config().to_json()
    for section, settings in SINCE.items():
        for name in settings:
            before[section].pop(name)
    read = Config.from_json(before)  # a run of then is what it was
    assert not read.sesm.together and read.hash() == Config().replace("sesm", together=False).hash()


def test_parts_share_out_the_cells() -> None:
    whole = [one.key for one in plan(SUITES)]
    parts = [[one.key for one in plan(SUITES, part=(i, 3))] for i in (1, 2, 3)]
    assert sorted(key for part in parts for key in part) == sorted(whole) == sorted(set(whole))
    seeds = [one.seed for one in plan(SUITES)]
    assert seeds == sorted(seeds)
    with pytest.raises(InputError, match="part 4/3"):
        plan(SUITES, part=(4, 3))


def test_choosing_cells() -> None:
    scenes = SUITES[:1]
    some = plan(scenes, only="FixMatch", seeds=[1], rates=[0.05])
    assert [one.row for one in some] == ["fixmatch"]  # a row of that very name comes first
    some = plan(scenes, only=["FixM", "dam_net"], seeds=[1], rates=[0.05])
    assert [one.row for one in some] == ["fixmatch", "dam_net", "fixmatch, no prior in training"]
    assert [one.key for one in plan(scenes, only=some[0].key)] == [some[0].key]
    full = plan(scenes, only="fully", rates=[0.05])
    assert [one.seed for one in full] == [0, 1, 2] and {one.config.data.rate for one in full} == {1.0}
    assert {one.config.train.steps for one in plan(with_steps(scenes, 3))} == {3}
    with pytest.raises(InputError, match="no cell is left"):
        plan(scenes, only="nothing like it")


def test_more_seeds_than_three() -> None:
    ours, more = plan(SUITES, only="l2l, unguarded"), plan(with_seeds(SUITES, [0, 7, 7]), only="l2l, unguarded")
    assert [one.seed for one in ours] == [0] * 3 + [1] * 3 + [2] * 3  # three columns
    assert [one.key for one in more[:9]] == [one.key for one in ours] and [one.seed for one in more[9:]] == [7] * 3
    assert {one.config.train.seed for one in more[9:]} == {7} and len({one.key for one in more}) == 12
    alone = plan(with_seeds(SUITES, [7]), only=["prior_only", "75"])  # of these there is one, whatever the seed
    assert {one.seed for one in alone} == {0}


def test_a_live_lock_is_respected_and_a_dead_one_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "key"
    code = "import sys; from pathlib import Path; from l2l.benchmark_cell import locked\n"
    code += "with locked(Path(sys.argv[1])) as mine: print(mine, flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "True\n"
    with locked(lock) as mine:
        assert not mine and lock.read_text() == f"{holder.pid}\n"
    holder.kill()
    holder.wait()
    with locked(lock) as mine:  # the file of the dead is still there
        assert mine and lock.read_text() == f"{os.getpid()}\n"


def test_a_cell_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    own, lines = cell("supervised", method="supervised"), list[str]()
    with locked(tmp_path / "work" / "locks" / own.key) as mine:
        assert mine and benchmark([tiny(own)], tmp_path, say=lines.append) == 0
    assert lines[-1].startswith("0 cells made, 0 failed, 1 under way elsewhere") and not (tmp_path / "cells").exists()


def test_absent_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny(dataclasses.replace(cell("l2l"), config=TINY.replace("data", data="fashion", prior="own")))
    lines: list[str] = []
    assert benchmark([photos], tmp_path, root=tmp_path / "none", say=lines.append) == 0
    assert lines[0].startswith("left out 1 cells: no folder fashion in") and "--root" in lines[0]
    assert main(["benchmark", "--suite", "fashion", "--root", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "put the data set there" in capsys.readouterr().err
    assert "scenes and fashion, not coco" in missing_data(Config().replace("data", data="coco"), tmp_path)


def test_named_data_find_their_places(tmp_path: Path) -> None:
    (tmp_path / "fashion").mkdir()
    (tmp_path / "fashion" / "priors.jsonl").touch()
    config = Config().replace("data", data="fashion", prior="own", unlabelled="own")
    data = resolve(config, tmp_path, tmp_path / "out").data
    folder = tmp_path / "fashion"
    assert (data.data, data.prior) == (str(folder), str(folder / "priors.jsonl"))
    assert data.unlabelled == str(folder / "unlabelled.jsonl")
    source = source_of("simulated:accuracy=0.5,seed=3", [])
    assert source.fingerprint() == source_of("simulated:seed=3,accuracy=0.50", []).fingerprint()
    for wrong in ("oracle", "simulated:accuracy=much", "simulated:samples=1"):
        with pytest.raises(InputError, match="prior"):
            source_of(wrong, [])


def result(own: Cell, prior: float | None, free: float | None) -> dict[str, Any]:
    """A cell's file, made by hand."""
    how = {"prior": prior, "no_prior": free}
    if own.config.train.method == "prior_only":
        how = {"prior_alone": prior}
    given = {name: {"mIoU": value} for name, value in how.items() if value is not None}
    bins = [[0.1 * at, 0.1 * at + 0.05, 5] for at in range(10)]
    probes = [{"step": step, "iou_proposal": 0.5, "iou_fused": 0.5 + step / 100, "iou_model": 0.4} for step in (10, 20)]
    return {
        "key": own.key, "config": own.config.to_json(), "scores": given, "probes": probes, "logs": [], "events": [],
        "calibration": {name: {"ece": 0.05, "bins": bins} for name in given if name != "prior_alone"},
        "seconds": {"train": 36.0, "per_step": 0.1, "evaluate": 1.0}, "data": {"prior_simulated": True},
        "machine": {"device": "cpu", "kind": "AVX512", "cores": 2, "threads": 1, "torch": "2", "precision": "bf16",
                    "code": "0badc0de"},
    }  # fmt: skip


def test_the_page_says_mean_and_spread_and_pairs(tmp_path: Path) -> None:
    config = TINY.replace("train", method="fully_supervised")
    cells = [cell("l2l", seed) for seed in (0, 1, 2)]
    cells += [cell("fixmatch", seed, method="fixmatch") for seed in (0, 1)]
    cells += [cell("prior_only", method="prior_only"), Cell("tiny", "fully_supervised", "40 %", 0, config)]
    cells += [dataclasses.replace(cell("l2l", seed=9), column="80 %")]
    suite = tiny(*cells)
    figures = [(0.50, 0.4), (0.60, 0.4), (0.70, 0.4), (0.45, 0.41), (0.59, 0.41), (0.3, None), (0.9, 0.9)]
    found = {one.key: result(one, *both) for one, both in zip(cells, figures, strict=False)}
    (tmp_path / "cells").mkdir()
    for key, value in found.items():
        cell_file(tmp_path, key).write_text(json.dumps(value))

    values = gather(suite, found, miou("prior"))
    assert paired(suite, values, "fixmatch", "40 %") == pytest.approx([0.05, 0.01])
    assert paired(suite, values, "prior_only", "40 %") == pytest.approx([0.2, 0.3, 0.4])
    lines = score_table(suite, values).splitlines()
    assert lines[2] == "| l2l | **60.0 ± 10.0 (3)** | – |"  # the ceiling is above, and not bold
    assert lines[3] == "| fixmatch | 52.0 ± 9.9 (2) | – |"
    assert lines[4:] == ["| prior_only | 30.0 (1) | – |", "| fully_supervised | 90.0 (1) | – |"]

    text = write_page([suite, tiny(name="empty")], tmp_path).read_text()
    assert "## Tiny (simulated prior)" in text and "7 of 8 trainings" in text and "code" in text.lower()
    assert "| fixmatch | +3.0 [+1.0, +5.0] (2) | – |" in text
    assert "| fixmatch | -1.0 [-1.0, -1.0] (2) | – |" in text  # without the prior
    assert "| l2l, 40 % | 50.0 | 70.0 | – |" in text and "There are no cells yet" in text
    assert "| l2l | 5.0 / 5.0 | – |" in text
    pictures = re.findall(r"\]\((plots/[^)]+)\)", text)
    assert [Path(one).stem for one in pictures] == ["tiny-miou", "tiny-pseudo-labels", "tiny-reliability"]
    assert all(0 < (tmp_path / one).stat().st_size < 100_000 for one in pictures)
    table = (tmp_path / "tables" / "tiny.csv").read_text().splitlines()
    assert len(table) == 1 + len(cells) and f"--only {cells[0].key}" in table[1] and ",0.5,0.4," in table[1]


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    own = cell("l2l")
    (tmp_path / "cells").mkdir()
    cell_file(tmp_path, own.key).write_text("{")
    with pytest.raises(InputError, match="remove it"):
        write_page([tiny(own)], tmp_path)


def test_colours_that_are_rare_in_a_plot_stay_apart() -> None:
    def draw(axes: Axes, _: str) -> None:
        for at, colour in enumerate(COLOURS):
            axes.plot(range(9), [at] * 9, "o", color=colour, fillstyle="none", markersize=7)

    with Image.open(io.BytesIO(_panels([""], draw, width=5, height=4))) as picture:
        found = [colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []]
    assert len(COLOURS) >= max(len({row.removesuffix(FREE) for row in suite.rows}) for suite in SUITES if suite.log)
    for colour in COLOURS:
        drawn = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert min(max(abs(a - b) for a, b in zip(drawn, one, strict=True)) for one in found) < 12, colour


def test_the_page_of_cells_that_were_run(made: Path, grid: Suite) -> None:
    text = write_page([grid], made).read_text()
    assert "| prior_only |" in text and "l2l minus" in text and "3 of 3 trainings" in text


def test_the_command_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--suite", "scenes", "--out", str(tmp_path), "--seeds", "0", "--rates", "0.05"]
    first = plan(SUITES[:1], seeds=[0], rates=[0.05])
    (tmp_path / "cells").mkdir()
    cell_file(tmp_path, first[0].key).touch()
    assert main([*arguments, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{first[0].key}  done ") and lines[1].startswith(f"{first[1].key}  missing")
    assert lines[-1] == f"1 of {len(first)} cells done"
    for wrong in (["--suite", "seens"], ["--part", "3"], ["--seeds", "a"], ["--part", "2/1"]):
        assert main(["benchmark", *wrong, "--list"]) == 2
        assert capsys.readouterr().err.startswith("l2l: error: ")


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--page", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "README.md")
    assert "# Benchmark" in (tmp_path / "README.md").read_text()
