"""The command line. Every command is also a function of the package; here is only what turns words into arguments.

Nothing heavy is imported before a command runs: `l2l --help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from l2l.errors import InputError

if TYPE_CHECKING:
    from l2l.config import Config
    from l2l.data.read import DataSet

_AGAIN = "; the same command goes on where this one stopped"
RESUMES = {
    "train": "; go on from its last checkpoint with --resume", "demo": _AGAIN, "label": _AGAIN, "prior": _AGAIN,
    "benchmark": _AGAIN,
}  # fmt: skip
DATA_HELP = "a folder (REFER layout or metadata.jsonl), a .jsonl of pairs, or the word scenes"


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"l2l: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 `data check` found problems, `data recipe` a set that
    is not whole, or a cell of `benchmark` failed, 2 a mistake, 130 interrupted."""
    try:
        args = parser().parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as stop:  # argparse
        return stop.code if isinstance(stop.code, int) else 2
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader had enough, as in `l2l ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except KeyboardInterrupt:
        print(f"l2l: interrupted{RESUMES.get(args.command, '')}", file=sys.stderr)
        return 130


def _fail(reason: str) -> int:
    print(f"l2l: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    from l2l import __version__

    top = Parser(prog="l2l", description="Referring expression segmentation from few masks: Learning to Label.")
    top.add_argument("--version", action="version", version=f"l2l {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    one = _command(commands, "demo", _demo, "supervised, prior alone and L2L on drawn scenes, in minutes",
                   "l2l demo --out demo")  # fmt: skip
    one.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="where everything goes (demo)")
    one.add_argument("--steps", type=int, metavar="N", help="optimiser steps of each method")

    data = commands.add_parser("data", help="look at, draw and split data sets", description="Data sets.")
    kinds = data.add_subparsers(dest="kind", required=True, metavar="COMMAND", parser_class=Parser)
    one = _command(kinds, "check", _data_check, "what is in a data set and what is wrong with it; exits 1 on problems",
                   "l2l data check refcoco --refs unc --deep")  # fmt: skip
    one.add_argument("data", metavar="PATH", help=DATA_HELP)
    _where(one)
    _scenes(one)
    one.add_argument("--deep", action="store_true", help="decode every picture and compare their bytes")
    one.add_argument("--skip-bad", action="store_true", help="records that training would set aside are no problem")

    one = _command(kinds, "scenes", _data_scenes, "write the embedded world as a REFER set",
                   "l2l data scenes my-scenes --count 200 --seed 0")  # fmt: skip
    one.add_argument("out", type=Path, metavar="OUT", help="folder")
    one.add_argument("--count", type=int, required=True, metavar="N", help="pictures; every tenth is of split val")
    one.add_argument("--seed", type=int, default=0, metavar="S", help="which pictures (0)")
    one.add_argument("--unlabelled-share", type=float, default=0.5, metavar="SHARE",
                     help="of the train pictures, how many come as pairs without masks (0.5)")  # fmt: skip

    one = _command(kinds, "split", _data_split, "draw which train images are labelled, into a file to keep",
                   "l2l data split refcoco --rate 0.05 --seed 0 --out refcoco-5.json")  # fmt: skip
    one.add_argument("data", metavar="DATA", help=DATA_HELP)
    one.add_argument("--rate", type=float, default=0.05, help="share of the train images (0.05)")
    one.add_argument("--seed", type=int, default=0, help="which of them (0)")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="the split file")
    _where(one)
    _scenes(one)
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside")

    one = _command(kinds, "recipe", _data_recipe, "RefCOCO and its kin: what to get, what is there, the field's splits",
                   "l2l data recipe refcoco_unc --root data")  # fmt: skip
    one.add_argument("name", metavar="NAME", help="refcoco_unc, refcoco_google, refcoco+_unc, refcocog_umd, "
                     "refcocog_google or grefcoco_unc")  # fmt: skip
    one.add_argument("--root", type=Path, default=Path("data"), metavar="DIR",
                     help="the folder that holds the set's folder and the pictures' (data)")  # fmt: skip

    one = _command(kinds, "shard", _data_shard, "write a data set as shards, pictures included, for many machines",
                   "l2l data shard refcoco --out shards --format wds --per-shard 1000")  # fmt: skip
    one.add_argument("data", metavar="DATA", help=DATA_HELP)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    one.add_argument("--format", choices=["wds", "parquet"], default="wds",
                     help="WebDataset tars, or parquet as Hugging Face datasets opens it (wds)")  # fmt: skip
    one.add_argument("--per-shard", type=int, default=1000, metavar="N", help="pairs in a shard (1000)")
    _where(one)
    _scenes(one)
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in DIR/skipped.jsonl")

    one = _command(commands, "prior", _prior, "ask a frozen model about every pair, once",
                   "l2l prior refcoco --source precomputed --file answers.jsonl --out priors")  # fmt: skip
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

    one = _command(commands, "train", _train, "train a method and leave a run directory",
                   "l2l train --data refcoco --prior priors --method l2l --rate 0.05 --out runs/a")  # fmt: skip
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

    one = _command(commands, "evaluate", _evaluate, "scores of a run on a split, beside the prior alone",
                   "l2l evaluate runs/a --data refcoco --split testA")  # fmt: skip
    _run_and_prior(one)
    one.add_argument("--split", default="val", help="which split (val)")
    one.add_argument("--json", action="store_true", help="print JSON")

    one = _command(commands, "predict", _predict, "the pixels that a sentence means in one picture",
                   'l2l predict runs/a street.jpg "left black shoe" --out mask.png --overlay over.png')  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="the run's folder")
    one.add_argument("image", metavar="IMAGE", help="a picture")
    one.add_argument("sentence", metavar="SENTENCE", help="what is meant")
    one.add_argument("--out", type=Path, required=True, metavar="MASK.png", help="8-bit grey PNG, 255 what is meant")
    one.add_argument("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"),
                     help="where something points, pixels; it may be wrong")  # fmt: skip
    one.add_argument("--overlay", type=Path, metavar="OVER.png", help="also draw the mask over the picture")

    one = _command(commands, "label", _label, "masks with scores for every unlabelled pair",
                   "l2l label runs/a --out labels")  # fmt: skip
    _run_and_prior(one)
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for labels.jsonl")
    one.add_argument("--unlabelled", type=Path, metavar="FILE", help="JSONL file of further pairs")
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in DIR/skipped.jsonl")
    one.add_argument("--all", action="store_true", help="the labelled pairs too")
    _shards(one)
    one.add_argument("--device", help="torch device (the run's own; --shards)")

    one = _command(commands, "report", _report, "one page on a run, or on several side by side",
                   "l2l report runs/l2l --beside runs/supervised --out report.html")  # fmt: skip
    one.add_argument("run_folder", metavar="RUN", help="the run's folder")
    one.add_argument("--beside", action="append", default=[], metavar="RUN", help="another run; may be repeated")
    one.add_argument("--out", type=Path, metavar="FILE", help="the page (RUN/report.html)")

    one = _command(commands, "benchmark", _benchmark, "methods x label rates x seeds x data, in tables and plots",
                   "l2l benchmark --suite scenes --seeds 0 --workers 2")  # fmt: skip
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
                     help="rows or columns with this name or part of it, or a cell by its key; may be repeated")
    one.add_argument("--seeds", metavar="S,S", help="label seeds, as in 0,1")
    one.add_argument("--rates", metavar="R,R", help="label rates, as in 0.01,0.05")
    one.add_argument("--steps", type=int, metavar="N", help="other steps than the suites', for a try elsewhere")
    one.add_argument("--keep", action="store_true", help="leave the runs in DIR/work/runs")
    what = one.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="only say which cells are done and which are missing")
    what.add_argument("--page", action="store_true", help="only write tables and plots anew")
    return top


def _command(parent: Any, name: str, run: Any, text: str, example: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = parent.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: {example}"
    )
    one.set_defaults(run=run)
    return one


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


def _demo(args: argparse.Namespace) -> None:
    from l2l.demo import demo

    demo(args.out, args.steps)


def _read(args: argparse.Namespace, *, skip_bad: bool) -> DataSet:
    from l2l.data.read import read

    world = {"scenes_count": args.count, "scenes_seed": args.scenes_seed}
    given = {name: value for name, value in world.items() if value is not None}
    return read(args.data, images=args.images, refs=args.refs, skip_bad=skip_bad, **given)


def _data_check(args: argparse.Namespace) -> int:
    from l2l.data.check import check, render

    dataset = _read(args, skip_bad=True)
    aside = dataset.bad if args.skip_bad else ()
    report = check(dataclasses.replace(dataset, bad=() if aside else dataset.bad), deep=args.deep)
    print(render(report))
    if aside:
        print(f"\nset aside: {len(aside):,}", *(f"  {bad.file}, {bad.record}: {bad.reason}" for bad in aside), sep="\n")
    return 1 if report.problems else 0


def _data_scenes(args: argparse.Namespace) -> None:
    from l2l.data.scene_set import write_scenes

    known, unknown = write_scenes(args.out, count=args.count, seed=args.seed, unlabelled_share=args.unlabelled_share)
    print(f"{args.out}: {args.count} pictures, {known} records with masks" + (
        f", {unknown} without, in {args.out / 'unlabelled.jsonl'}" if unknown else ""))  # fmt: skip


def _data_split(args: argparse.Namespace) -> None:
    from l2l.data.splits import draw

    dataset = _read(args, skip_bad=args.skip_bad)
    split = draw(dataset.samples, args.rate, args.seed, data=dataset.name)
    split.save(args.out)
    print(f"{args.out}: {len(split.images)} labelled images, hash {split.hash}")


def _data_shard(args: argparse.Namespace) -> None:
    from l2l.data.shards import write_shards
    from l2l.progress import Progress

    dataset = _read(args, skip_bad=args.skip_bad)
    with Progress("shards") as progress:
        index = write_shards(dataset, args.out, format=args.format, per_shard=args.per_shard, skip_bad=args.skip_bad,
                             progress=progress)  # fmt: skip
    print(f"{args.out}: {len(index['shards'])} shards, {index['pairs']} pairs, {index['pictures']} pictures, "
          f"{index['bytes'] / 1e6:.1f} MB")  # fmt: skip


def _data_recipe(args: argparse.Namespace) -> int:
    from l2l.data.refcoco import guide

    text, whole = guide(args.name, args.root)
    print(text)
    return 0 if whole else 1


def _prior(args: argparse.Namespace) -> int:
    if args.shards is not None:
        return _prior_shards(args)
    if args.data is None:
        raise InputError("DATA is missing: whose pairs shall be asked about? (or --shards)")
    _only_with_shards(args)
    from l2l.priors.make import make_priors
    from l2l.progress import Progress

    if args.source == "mllm":
        check_device(args.device or "cpu")
    make = _source_of(args)
    source = args.source if make is None else make()
    missed: list[str] = getattr(source, "missed", [])
    dataset = _read(args, skip_bad=args.skip_bad)
    with Progress("priors") as progress:
        store = make_priors(
            dataset, args.out, source=source, file=args.file, accuracy=args.accuracy, seed=args.seed,
            unlabelled=args.unlabelled, skip_bad=args.skip_bad, progress=progress,
        )  # fmt: skip
    print(f"{args.out}: {len(store)} priors of {store.about()['name']}")
    store.close()
    if missed:
        print(f"l2l: {len(missed)} pairs got no answer ({missed[-1]}); {RESUMES['prior'][2:]}", file=sys.stderr)
    return int(bool(missed))


def _source_of(args: argparse.Namespace) -> Any:
    """What makes a source that needs nothing but the pair, here or in any worker; `None` for the other sources."""
    from functools import partial

    if args.source != "endpoint" and (args.url or args.dialect or (args.model and args.source != "mllm")):
        raise InputError("--url and --dialect are for --source endpoint, --model for that and for mllm")
    own = {name: getattr(args, name) for name in ("revision", "device", "batch", "readout")}
    given = {name: value for name, value in own.items() if value is not None}
    if given and args.source != "mllm":
        raise InputError(f"{', '.join(f'--{name}' for name in given)}: for --source mllm")
    match args.source:
        case "grounder":
            from l2l.priors.grounder import Grounder

            return Grounder
        case "endpoint":
            from l2l.priors.endpoint import Endpoint

            return partial(
                Endpoint, url=args.url, model=args.model, dialect=args.dialect, concurrency=args.concurrency,
                per_minute=args.per_minute, retries=args.retries, timeout=args.timeout,
            )  # fmt: skip
        case "mllm":
            from l2l.priors.mllm import Mllm

            return partial(Mllm, args.model, **given)
    return None


def _prior_shards(args: argparse.Namespace) -> int:
    from l2l.progress import Progress
    from l2l.scale.prior_shards import prior_shards

    if args.data or args.unlabelled or args.images or args.refs:
        raise InputError("--shards says what the pairs are: no DATA, --unlabelled, --images or --refs beside it")
    make = _source_of(args)
    if make is None or args.file:
        raise InputError(f"--source {args.source} needs more than the pair; with --shards: grounder, endpoint, mllm")
    with Progress("prior shards") as progress:
        about = prior_shards(make, args.shards, args.out, engine=args.engine, workers=args.workers,
                             threads=args.threads, device=args.device or "cpu", progress=progress)  # fmt: skip
    return _say_shards(args, about, f"of {about['source']}, nothing said of {about.get('empty', 0)}")


def _train(args: argparse.Namespace) -> None:
    config = configure(args)
    from l2l.config import Config
    from l2l.progress import Progress
    from l2l.training.checkpoint import load_tensors
    from l2l.training.loop import CHECKPOINT, CONFIG, train

    check_device(config.train.device)
    run, steps = args.out, config.train.steps
    if args.resume and (run / CHECKPOINT).exists() and Config.load(run / CONFIG).hash() == config.hash():
        step = int(load_tensors(run / CHECKPOINT)[1]["step"])
        if step >= steps:
            print(f"{run}: finished already, {step} of {steps} steps; there is nothing to do")
            return
        print(f"{run}: going on from step {step} of {steps}")
    with Progress(f"train {config.train.method}") as progress:
        train(config, run, resume=args.resume, progress=progress, tell=progress.tell)
    print(f"{run}: {config.train.method}, run {config.hash()}; next: l2l evaluate {run}")


def configure(args: argparse.Namespace) -> Config:
    """The configuration of `l2l train`: the defaults, or with --resume the run's own, changed by what is given."""
    from l2l.config import Config
    from l2l.training.loop import CONFIG

    saved = args.out / CONFIG
    resumed = args.resume and saved.exists()
    config = Config.load(saved) if resumed else Config()
    if args.data is None and not resumed:
        raise InputError("--data is missing: what shall it be trained on?")
    data = {
        "data": args.data, "images": args.images and str(args.images), "refs": args.refs, "unlabelled": args.unlabelled,
        "prior": args.prior, "rate": args.rate, "split_file": args.split_file, "scenes_count": args.count,
        "scenes_seed": args.scenes_seed, "skip_bad": args.skip_bad,
    }  # fmt: skip
    if args.size is not None:
        height, times, width = args.size.partition("x")
        if not (times and height.isdecimal() and width.isdecimal()):
            raise InputError(f"--size {args.size}: write height x width in pixels, as in 96x128")
        data |= {"height": int(height), "width": int(width)}
    train = {"seed": args.seed, "steps": args.steps, "device": args.device}
    config = config.replace("data", **{name: value for name, value in data.items() if value is not None})
    config = config.replace("train", **{name: value for name, value in train.items() if value is not None})
    return config.override(*([f"train.method={args.method}"] if args.method else []), *args.set)


def check_device(name: str) -> None:
    """Raises `InputError` if torch cannot work there."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name} cannot be used: {str(error).splitlines()[0]}") from error


def _evaluate(args: argparse.Namespace) -> None:
    from l2l.evaluate import evaluate, generalised_table, table
    from l2l.progress import Progress

    with Progress("evaluate") as progress:
        found = evaluate(
            args.run_folder, data=args.data, split=args.split, prior=args.prior, no_prior=args.no_prior,
            images=args.images, refs=args.refs, progress=progress,
        )  # fmt: skip
    if args.json:
        long = ("pairs", "predicted")
        print(json.dumps([{name: value for name, value in one.to_json().items() if name not in long} for one in found]))
        return
    guided = [one.prior and one.method != "prior alone" for one in found]
    names = [f"{one.method} + prior" if given else one.method for one, given in zip(found, guided, strict=True)]
    print(f"{found[0].data}, split {found[0].split}, percent")
    print(table([(name, one.scores) for name, one in zip(names, found, strict=True)]))
    general = [(name, one.generalised) for name, one in zip(names, found, strict=True) if one.generalised]
    if general:
        print(f"sentences that mean nothing, or several things, are among them:\n{generalised_table(general)}")
    for name, one in zip(names, found, strict=True):
        if one.method != "prior alone" and len(one.calibration.bins) > 1:
            print(f"{name}: expected IoU is off by {one.calibration.ece:.3f} on average (expected calibration error)")
    if found[0].prior:
        warning = " (simulated: drawn from the true masks)" if found[0].prior_simulated else ""
        print(f"prior: {found[0].prior}{warning}")


def _predict(args: argparse.Namespace) -> None:
    from l2l.predict import pixels, predict, save_mask, save_overlay

    picture = pixels(args.image)
    found = predict(args.run_folder, picture, args.sentence, box=args.box)
    save_mask(found.mask, args.out)
    if args.overlay:
        save_overlay(picture, found.mask, args.overlay)
    where = "nothing" if found.box is None else "box {} {} {} {}".format(*found.box)
    print(f"{args.out}: {where}, {found.mask.mean():.2%} of the picture, expected IoU {found.score:.2f}")


def _label(args: argparse.Namespace) -> int:
    from l2l.label import label
    from l2l.progress import Progress

    if args.shards is not None:
        return _label_shards(args)
    _only_with_shards(args)
    with Progress("label") as progress:
        path = label(
            args.run_folder, args.out, data=args.data, prior=args.prior, no_prior=args.no_prior,
            unlabelled=args.unlabelled, everything=args.all, skip_bad=args.skip_bad, images=args.images, refs=args.refs,
            progress=progress,
        )  # fmt: skip
    about = json.loads((path.parent / "about.json").read_text(encoding="utf-8"))
    print(f"{path}: {about['pairs']} pairs, {about['accepted']} accepted, mean expected IoU {about['mean_score']:.2f}")
    return 0


def _label_shards(args: argparse.Namespace) -> int:
    from l2l.progress import Progress
    from l2l.scale.label_shards import label_shards

    if args.data or args.unlabelled or args.images or args.refs:
        raise InputError("--shards says what the pairs are: no --data, --unlabelled, --images or --refs beside it")
    with Progress("label shards") as progress:
        about = label_shards(
            args.run_folder, args.shards, args.out, prior=args.prior, no_prior=args.no_prior, everything=args.all,
            engine=args.engine, workers=args.workers, threads=args.threads, device=args.device or "",
            progress=progress,
        )  # fmt: skip
    mean = about.get("score", 0.0) / max(1, about.get("pairs", 0))
    return _say_shards(args, about, f"{about.get('accepted', 0)} accepted, mean expected IoU {mean:.2f}")


def _say_shards(args: argparse.Namespace, about: dict[str, Any], more: str) -> int:
    """What became of the shards; returns the exit code, 1 if there is something left to do."""
    pairs, before = about.get("pairs", 0), about["kept"]
    print(f"{args.out}: {about['shards']} shards ({before} were done before), {pairs} pairs, {more}")
    if about["skipped"]:
        print(f"l2l: {about['skipped']} records set aside, see {args.out / 'skipped.jsonl'}", file=sys.stderr)
    for name, reason in list(about["failed"].items())[:10]:
        print(f"l2l: {name} failed: {reason}", file=sys.stderr)
    if not about["finished"]:
        print(f"l2l: {len(about['failed'])} shards failed, {about.get('missed', 0)} pairs got no answer{_AGAIN}",
              file=sys.stderr)  # fmt: skip
    return int(not about["finished"])


def _only_with_shards(args: argparse.Namespace) -> None:
    device = args.command == "label" and args.device  # of `l2l prior`, it is the mllm's
    if args.engine != "local" or args.workers != 1 or args.threads != 1 or device:
        raise InputError("--engine, --workers and --threads are for --shards, as is --device of l2l label")


def _report(args: argparse.Namespace) -> None:
    from l2l.report import report

    print(report(args.run_folder, beside=args.beside, out=args.out))


def _benchmark(args: argparse.Namespace) -> int:
    from l2l.benchmark import benchmark, plan
    from l2l.benchmark_page import listing, write_page
    from l2l.benchmark_suites import SUITES, with_steps

    suites = list(SUITES) if args.steps is None else with_steps(SUITES, args.steps)
    names = [suite.name for suite in suites]
    for name in args.suite or ():
        if name not in names:
            raise InputError(f"--suite {name}: there are {', '.join(names)}")
    chosen = [suite for suite in suites if suite.name in (args.suite or names)]
    part = _numbers(args.part, "--part", int, "/")
    if len(part) != 2:
        raise InputError(f"--part {args.part}: write i/n, as in 1/4")
    which: dict[str, Any] = {
        "part": tuple(part), "only": args.only, "seeds": args.seeds and _numbers(args.seeds, "--seeds", int),
        "rates": args.rates and _numbers(args.rates, "--rates", float),
    }  # fmt: skip
    failed = 0
    if args.list:
        print(listing(plan(chosen, **which), args.out))
        return 0
    if not args.page:
        check_device(args.device)
        failed = benchmark(
            chosen, args.out, root=args.root, workers=args.workers, threads=args.threads, device=args.device,
            keep=args.keep, strict=args.suite is not None, say=_say, **which,
        )  # fmt: skip
    print(write_page(suites, args.out))
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _numbers(text: str, option: str, kind: type, between: str = ",") -> list[Any]:
    try:
        return [kind(one) for one in text.split(between)]
    except ValueError:
        raise InputError(f"{option} {text}: not numbers with {between!r} between them") from None


if __name__ == "__main__":
    raise SystemExit(main())
