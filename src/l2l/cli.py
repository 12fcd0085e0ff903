"""The command line. Every command is also a function of the package; here is only what turns words into arguments.

Nothing heavy is imported before a command runs: `l2l --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from l2l.commands import (
    RESUMES,
    benchmark,
    data_check,
    data_recipe,
    data_scenes,
    data_shard,
    data_split,
    demo,
    evaluate,
    label,
    predict,
    prior,
    report,
    save,
    serve,
    train,
    watch,
)
from l2l.completion import SHELLS, PrintCompletion
from l2l.data.durable import FULL
from l2l.errors import InputError
from l2l.exchange.commands import add as add_exchange
from l2l.serving.commands import EXAMPLE, TEXT, serve_options
from l2l.subcommand import Help, listed, outlines_option, subcommand
from l2l.training.stop import TERMINATED, Stopped, on_sigterm, terminate

if TYPE_CHECKING:
    pass

DATA_HELP = "a folder (REFER layout or metadata.jsonl), a .jsonl of pairs, or the word scenes"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"l2l: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 `data check` found problems, `data recipe` a set that
    is not whole, or a cell of `benchmark` failed, 2 a mistake, 130 interrupted, 143 ended by SIGTERM."""
    try:
        args = parser().parse_args(argv)
        with on_sigterm(terminate) if args.command in RESUMES else nullcontext():
            code = args.run(args)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as stop:  # argparse, or SIGTERM
        if stop.code == TERMINATED:
            print(f"l2l: ended by SIGTERM{RESUMES.get(args.command, '')}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 2
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader had enough, as in `l2l ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        if error.errno in FULL:
            if error.filename is None:  # of files all errors have a name
                reason = f"the output: {reason}"
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            reason += f"; nothing that was written before is lost: make room{RESUMES.get(args.command, '')}"
        return _fail(reason)
    except KeyboardInterrupt:
        print(f"l2l: interrupted{RESUMES.get(args.command, '')}", file=sys.stderr)
        return 130
    except Stopped as stopped:
        print(f"l2l: {stopped}{RESUMES.get(args.command, '')}", file=sys.stderr)
        return TERMINATED


def _fail(reason: str) -> int:
    with suppress(OSError):  # where errors go may be full as well
        print(f"l2l: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    from l2l import __version__

    top = Parser(prog="l2l", description="Referring expression segmentation from few masks: Learning to Label.",
                 epilog=listed("l2l demo", "l2l train --help", "l2l --print-completion bash"),
                 formatter_class=Help)  # fmt: skip
    top.add_argument("--version", action="version", version=f"l2l {__version__}")
    top.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, metavar="SHELL",
                     help="print what bash, zsh or tcsh needs to complete with the tab key, and exit")  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    one = subcommand(commands, "demo", demo, "supervised, prior alone and L2L on drawn scenes, in minutes",
                     "l2l demo", "l2l demo --out demo --steps 200")  # fmt: skip
    one.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where everything goes (demo)")
    one.add_argument("--steps", type=int, metavar="N", help="optimiser steps of each method")

    data = subcommand(commands, "data", None, "look at, draw and split data sets", "l2l data check refcoco --deep",
                      "l2l data scenes my-scenes --count 200")  # fmt: skip
    kinds = data.add_subparsers(dest="kind", required=True, metavar="COMMAND", parser_class=Parser)
    one = subcommand(kinds, "check", data_check, "what is in a data set and what is wrong with it; exits 1 on problems",
                     "l2l data check refcoco --refs unc --deep",
                     "l2l data check pairs.jsonl --images photos --skip-bad")  # fmt: skip
    one.add_argument("data", metavar="PATH", help=DATA_HELP)
    _where(one)
    _scenes(one)
    one.add_argument("--deep", action="store_true", help="decode every picture and compare their bytes")
    one.add_argument("--skip-bad", action="store_true", help="records that training would set aside are no problem")

    one = subcommand(kinds, "scenes", data_scenes, "write the embedded world as a REFER set",
                     "l2l data scenes my-scenes --count 200 --seed 0")  # fmt: skip
    one.add_argument("out", type=Path, metavar="OUT", help="folder")
    one.add_argument("--count", type=int, required=True, metavar="N", help="pictures; every tenth is of split val")
    one.add_argument("--seed", type=int, default=0, metavar="S", help="which pictures (0)")
    one.add_argument("--unlabelled-share", type=float, default=0.5, metavar="SHARE",
                     help="of the train pictures, how many come as pairs without masks (0.5)")  # fmt: skip

    one = subcommand(kinds, "split", data_split, "draw which train images are labelled, into a file to keep",
                     "l2l data split refcoco --rate 0.05 --seed 0 --out refcoco-5.json")  # fmt: skip
    one.add_argument("data", metavar="DATA", help=DATA_HELP)
    one.add_argument("--rate", type=float, default=0.05, help="share of the train images (0.05)")
    one.add_argument("--seed", type=int, default=0, help="which of them (0)")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="the split file")
    _where(one)
    _scenes(one)
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside")

    one = subcommand(kinds, "recipe", data_recipe,
                     "RefCOCO and its kin: what to get, what is there, the field's splits",
                     "l2l data recipe refcoco_unc --root data",
                     "l2l data recipe grefcoco_unc")  # fmt: skip
    one.add_argument("name", metavar="NAME", help="refcoco_unc, refcoco_google, refcoco+_unc, refcocog_umd, "
                     "refcocog_google or grefcoco_unc")  # fmt: skip
    one.add_argument("--root", type=Path, default=Path("data"), metavar="DIR",
                     help="the folder that holds the set's folder and the pictures' (data)")  # fmt: skip

    one = subcommand(kinds, "shard", data_shard, "write a data set as shards, pictures included, for many machines",
                     "l2l data shard refcoco --out shards --format wds --per-shard 1000",
                     "l2l data shard pool.jsonl --out shards --format parquet")  # fmt: skip
    one.add_argument("data", metavar="DATA", help=DATA_HELP)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    one.add_argument("--format", choices=["wds", "parquet"], default="wds",
                     help="WebDataset tars, or parquet as Hugging Face datasets opens it (wds)")  # fmt: skip
    one.add_argument("--per-shard", type=int, default=1000, metavar="N", help="pairs in a shard (1000)")
    _where(one)
    _scenes(one)
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in DIR/skipped.jsonl")

    one = subcommand(commands, "prior", prior, "ask a frozen model about every pair, once",
                     "l2l prior refcoco --source precomputed --file answers.jsonl --out priors",
                     "l2l prior refcoco --source mllm --model Qwen/Qwen2.5-VL-7B-Instruct --device cuda --out priors",
                     "l2l prior scenes --source simulated --accuracy 0.6 --out priors")  # fmt: skip
    one.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP)
    _shards(one)
    one.add_argument("--source", choices=["grounder", "simulated", "precomputed", "endpoint", "mllm"],
                     default="grounder", help="whose answers (grounder); endpoint: a model behind an OpenAI-compatible "
                     "server; mllm: a multimodal model that runs here (Qwen2.5-VL, Qwen3-VL, InternVL, Florence-2, "
                     "Grounding DINO)")  # fmt: skip
    one.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the prior store")
    one.add_argument("--file", type=Path, metavar="PRIORS.jsonl", help="the answers (precomputed)")
    one.add_argument("--accuracy", type=float, default=0.7, help="chance of the right object (simulated; 0.7)")
    one.add_argument("--seed", type=int, default=0, help="of the draws (simulated; 0)")
    one.add_argument("--url", default="", help="base address, as in http://127.0.0.1:8000/v1 (endpoint)")
    one.add_argument("--model", default="", help="its name on the server (endpoint); the key is in OPENAI_API_KEY. "
                     "Its name on the Hugging Face hub, or a folder (mllm)")  # fmt: skip
    one.add_argument("--dialect", default="", help="how it writes boxes, if its name does not tell (endpoint)")
    one.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once (endpoint; 8)")
    one.add_argument("--per-minute", type=int, default=0, metavar="N",
                     help="requests begun in a minute at most (endpoint; no limit)")  # fmt: skip
    one.add_argument("--retries", type=int, default=5, metavar="N", help="tries after the first (endpoint; 5)")
    one.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds of one try (endpoint; 60)")
    one.add_argument("--revision", help="branch, tag or commit on the hub (mllm; main)")
    one.add_argument("--device", help="torch device (mllm; cpu)")
    one.add_argument("--batch", type=int, metavar="N", help="sentences about one picture at once (mllm; 8)")
    one.add_argument("--readout", choices=["reply", "attention"],
                     help="the boxes that it writes, or where it looks, as a mask (mllm: Qwen; reply)")  # fmt: skip
    one.add_argument("--unlabelled", type=Path, metavar="FILE", help="JSONL file of further pairs")
    _where(one)
    _scenes(one)
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in STORE/skipped.jsonl")

    one = subcommand(commands, "train", train, "train a method and leave a run directory",
                     "l2l train --data refcoco --prior priors --method l2l --rate 0.05 --out runs/a",
                     "l2l train --out runs/a --resume --track tensorboard",
                     "l2l train --data scenes --method supervised --set train.labelled=16 --out runs/b")  # fmt: skip
    one.add_argument("--data", help=DATA_HELP)
    one.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    one.add_argument("--method", help="l2l, supervised, prior_training, fixmatch, mean_teacher, resmatch, semires, "
                     "dam_net, prior_only, or fully_supervised, which sees all masks (l2l)")  # fmt: skip
    one.add_argument("--rate", type=float, help="share of the train images whose masks are used (0.05)")
    one.add_argument("--seed", type=int, help="of the label split, the weights, the streams and the views (0)")
    one.add_argument("--split-file", metavar="FILE", help="a split made with `l2l data split`")
    one.add_argument("--prior", metavar="STORE|FILE", help="a prior store or a JSONL file of priors")
    one.add_argument("--unlabelled", metavar="FILE", help="JSONL file of further pairs without masks")
    _where(one)
    _scenes(one)
    one.add_argument("--steps", type=int, metavar="N", help="optimiser steps (1000)")
    one.add_argument("--size", metavar="HxW", help="what the network sees, pixels (96x96)")
    one.add_argument("--resume", action="store_true", help="go on with the run in RUN; its settings are known")
    one.add_argument("--skip-bad", action="store_true", default=None,
                     help="set bad records aside, in RUN/skipped.jsonl")  # fmt: skip
    one.add_argument("--set", action="append", default=[], metavar="SECTION.SETTING=VALUE",
                     help="any setting of config.json; may be repeated")  # fmt: skip
    one.add_argument("--device", help="torch device (cpu)")
    one.add_argument("--track", action="append", default=[], metavar="NAME",
                     help="hand the figures to tensorboard, trackio or wandb too; may be repeated")  # fmt: skip

    one = subcommand(commands, "watch", watch, "how a run goes that another process trains, until its end",
                     "l2l watch runs/a")  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="the run's folder; it need not be there yet")

    one = subcommand(commands, "evaluate", evaluate, "scores of a run on a split, beside the prior alone",
                     "l2l evaluate runs/a --data refcoco --split testA",
                     "l2l evaluate runs/a --no-prior --json")  # fmt: skip
    _run_and_prior(one)
    one.add_argument("--split", default="val", help="which split (val)")
    one.add_argument("--json", action="store_true", help="print JSON")
    outlines_option(one)

    one = subcommand(commands, "predict", predict, "the pixels that a sentence means in one picture",
                     'l2l predict runs/a street.jpg "left black shoe" --out mask.png --overlay over.png',
                     'l2l predict runs/a street.jpg "the coat" --box 40 10 180 320 --out mask.png')  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="the run's folder")
    one.add_argument("image", metavar="IMAGE", help="a picture")
    one.add_argument("sentence", metavar="SENTENCE", help="what is meant")
    one.add_argument("--out", type=Path, required=True, metavar="MASK.png", help="8-bit grey PNG, 255 what is meant")
    one.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"),
                     help="where something points, pixels; it may be wrong")  # fmt: skip
    one.add_argument("--overlay", type=Path, metavar="OVER.png", help="also draw the mask over the picture")
    outlines_option(one)

    one = subcommand(commands, "save", save, "a model folder with its card, for others or the hub; or ONNX",
                     "l2l save runs/a --out street-clothes --license cc-by-4.0",
                     "l2l save runs/a --onnx model.onnx")  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="folder of a run, or a model folder")
    one.add_argument("--out", type=Path, metavar="DIR", help="the model folder to make")
    one.add_argument("--license", default="", metavar="NAME", help="of the weights, as the hub names licences")
    one.add_argument("--onnx", type=Path, metavar="FILE", help="write the network as ONNX, checked by onnxruntime")
    one.add_argument("--push-to-hub", metavar="OWNER/NAME", help="put the model folder on the hub, private")

    serve_options(subcommand(commands, "serve", serve, TEXT, EXAMPLE))

    one = subcommand(commands, "label", label, "masks with scores for every unlabelled pair",
                     "l2l label runs/a --out labels",
                     "l2l label runs/a --unlabelled more.jsonl --skip-bad --out labels",
                     "l2l label runs/a --shards shards --engine ray --workers 8 --out labels")  # fmt: skip
    _run_and_prior(one)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for labels.jsonl")
    one.add_argument("--unlabelled", type=Path, metavar="FILE", help="JSONL file of further pairs")
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in DIR/skipped.jsonl")
    one.add_argument("--all", action="store_true", help="the labelled pairs too")
    outlines_option(one)
    _shards(one)
    one.add_argument("--device", help="torch device (the run's own; --shards)")

    one = subcommand(commands, "report", report, "one page on a run, or on several side by side",
                     "l2l report runs/l2l --beside runs/supervised --out report.html",
                     "l2l report runs/l2l")  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="the run's folder")
    one.add_argument("--beside", action="append", default=[], metavar="RUN", help="another run; may be repeated")
    one.add_argument("--out", type=Path, metavar="FILE", help="the page (RUN/report.html)")

    one = subcommand(commands, "benchmark", benchmark, "methods x label rates x seeds x data, in tables and plots",
                     "l2l benchmark --suite scenes --seeds 0 --workers 2",
                     "l2l benchmark --suite ablations --list")  # fmt: skip
    one.add_argument("--suite", action="append", metavar="NAME",
                     help="scenes, fashion, ablations, prior-quality or shift; may be repeated (all)")  # fmt: skip
    one.add_argument("--out", type=Path, default=Path("results/benchmark"), metavar="DIR",
                     help="cells, tables and plots (results/benchmark)")  # fmt: skip
    one.add_argument("--root", type=Path, default=Path("../shared/data"), metavar="DIR",
                     help="the folder that holds fashion/ (../shared/data)")  # fmt: skip
    one.add_argument("--part", default="1/1", metavar="I/N", help="every N-th cell from the I-th, for several machines")
    one.add_argument("--workers", type=int, default=1, metavar="N", help="cells at once (1)")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each (1)")
    one.add_argument("--device", default="cpu", help="torch device (cpu)")
    one.add_argument("--only", action="append", metavar="TEXT",
                     help="rows or columns with this name or part of it, or a cell by its key; may be "
                     "repeated")  # fmt: skip
    one.add_argument("--seeds", metavar="S,S", help="label seeds, as in 0,1; others than 0, 1 and 2 are added")
    one.add_argument("--rates", metavar="R,R", help="label rates, as in 0.01,0.05")
    one.add_argument("--steps", type=int, metavar="N", help="other steps than the suites', for a try elsewhere")
    one.add_argument("--keep", action="store_true", help="leave the runs in DIR/work/runs")
    what = one.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only say which cells are done and which are missing")
    what.add_argument("--page", action="store_true", help="only write tables and plots anew")
    add_exchange(commands)
    return top


def _where(one: argparse.ArgumentParser) -> None:
    one.add_argument("--images", type=Path, metavar="DIR", help="where the pictures are, if not in the usual place")
    one.add_argument("--refs", metavar="NAME", help="which refs(*).p, where there are several: unc, umd, google")


def _scenes(one: argparse.ArgumentParser) -> None:
    one.add_argument("--count", type=int, metavar="N", help="for scenes: pictures (1000)")
    one.add_argument("--scenes-seed", type=int, metavar="S", help="for scenes: which pictures (0)")


def _shards(one: argparse.ArgumentParser) -> None:
    one.add_argument("--shards", type=Path, metavar="DIR",
                     help="the pairs are these shards (see l2l data shard); --out gets a file for each")  # fmt: skip
    one.add_argument("--engine", choices=["local", "ray"], default="local",
                     help="shards one by one here, or many at once with Ray (local; --shards)")  # fmt: skip
    one.add_argument("--workers", type=int, default=1, metavar="N", help="shards at once (--engine ray; 1)")
    one.add_argument("--threads", type=int, default=1, metavar="N", help="of each worker (--shards; 1)")


def _run_and_prior(one: argparse.ArgumentParser) -> None:
    one.add_argument("run_folder", metavar="RUN", help="the run's folder")
    one.add_argument("--data", help=f"{DATA_HELP}; the run's own if not given")
    _where(one)
    which = one.add_mutually_exclusive_group()
    which.add_argument("--prior", metavar="STORE|FILE", help="another prior than the run's own")
    which.add_argument("--no-prior", action="store_true", help="the network alone")


if __name__ == "__main__":
    raise SystemExit(main())
