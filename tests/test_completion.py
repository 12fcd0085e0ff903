"""The tab key in a real shell; help texts whose examples are understood; and that neither costs time at start."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from l2l import completion
from l2l.cli import main, parser
from l2l.errors import InputError

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    file = tmp_path_factory.mktemp("completion") / "l2l.bash"
    file.write_text(completion.script(parser(), "bash"))
    return file


def complete(script: Path, *words: str, folder: Path) -> list[str]:
    """What bash offers for the last of the words, in a folder."""
    if BASH is None:
        pytest.skip("no bash here")
    code = (
        f"source {shlex.quote(str(script))}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        "_shtab_l2l l2l; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run([BASH, "--norc", "-c", code], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]


def test_commands_and_options_complete(script: Path, tmp_path: Path) -> None:
    assert complete(script, "l2l", "tr", folder=tmp_path) == ["train"]
    assert {"check", "scenes", "split"} <= set(complete(script, "l2l", "data", "", folder=tmp_path))
    assert complete(script, "l2l", "train", "--resu", folder=tmp_path) == ["--resume"]
    assert complete(script, "l2l", "watch", "--h", folder=tmp_path) == ["--help"]


def test_choices_complete(script: Path, tmp_path: Path) -> None:
    assert complete(script, "l2l", "data", "shard", "x", "--format", "", folder=tmp_path) == ["wds", "parquet"]
    assert complete(script, "l2l", "train", "--method", "semi", folder=tmp_path) == ["semires"]
    assert complete(script, "l2l", "train", "--track", "t", folder=tmp_path) == ["tensorboard", "trackio"]
    assert complete(script, "l2l", "benchmark", "--suite", "sc", folder=tmp_path) == ["scenes"]


def test_files_and_folders_complete(script: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    assert complete(script, "l2l", "watch", "r", folder=tmp_path) == ["runs"]
    assert complete(script, "l2l", "train", "--out", "r", folder=tmp_path) == ["runs"]
    assert set(complete(script, "l2l", "train", "--data", "r", folder=tmp_path)) == {"runs", "rows.jsonl"}
    assert complete(script, "l2l", "data", "check", "ro", folder=tmp_path) == ["rows.jsonl"]
    assert complete(script, "l2l", "predict", "runs", "ro", folder=tmp_path) == ["rows.jsonl"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    printed = capsys.readouterr().out
    assert "l2l" in printed and "semires" in printed
    assert not printed.count("Traceback")


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[completion\]'"):
        completion.script(parser(), "bash")
    assert main(["--print-completion", "bash"]) == 2
    assert ".[completion]" in capsys.readouterr().err


# --- help -------------------------------------------------------------------------------------------------------------


def subparsers(above: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield above
    for action in above._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from subparsers(below)


PARSERS = {one.prog: one for one in subparsers(parser())}


@pytest.mark.parametrize("name", PARSERS)
def test_help_has_examples_that_are_understood(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split()[1:], "--help"]) == 0
    _, _, end = capsys.readouterr().out.partition("\nexamples:\n")
    examples = [line.strip() for line in end.splitlines() if line.strip()]
    assert 1 <= len(examples) <= 3, name
    for example in examples:
        words = shlex.split(example)
        assert words[: len(name.split())] == name.split(), example
        if "--help" in words or "--print-completion" in words:  # these print and leave
            assert main(words[1:]) == 0
            continue
        args = parser().parse_args(words[1:])
        assert callable(args.run), example


def test_examples_are_written_one_a_line() -> None:
    assert parser().format_help().rstrip().endswith("  l2l --print-completion bash")
    help_text = PARSERS["l2l train"].format_help()
    assert all(len(line) < 120 for line in help_text.splitlines())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from l2l.cli import main; assert main(['--help']) == 0; assert main(['train', '--help']) == 0; "
        "print(*sys.modules, file=sys.stderr)"
    )
    source = str(Path(completion.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": source})  # fmt: skip
    heavy = {"torch", "numpy", "rich", "accelerate", "shtab", "safetensors", "matplotlib"}
    assert not heavy & set(done.stderr.split())
