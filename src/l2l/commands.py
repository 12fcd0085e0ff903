"""What each command of the command line does, from its parsed arguments to what it prints.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from l2l.errors import InputError

if TYPE_CHECKING:
    from l2l.config import Config
    from l2l.data.read import DataSet

_AGAIN = "; the same command goes on where this one stopped"
RESUMES = {
    "train": "; go on from its last checkpoint with --resume", "demo": _AGAIN, "label": _AGAIN, "prior": _AGAIN,
    "benchmark": _AGAIN,
}  # fmt: skip


def demo(args: argparse.Namespace) -> None:
    from l2l.demo import demo

    demo(args.out, args.steps)


def _read(args: argparse.Namespace, *, skip_bad: bool) -> DataSet:
    from l2l.data.read import read

    world = {"scenes_count": args.count, "scenes_seed": args.scenes_seed}
    given = {name: value for name, value in world.items() if value is not None}
    return read(args.data, images=args.images, refs=args.refs, skip_bad=skip_bad, **given)


def data_check(args: argparse.Namespace) -> int:
    from l2l.data.check import check, render

    dataset = _read(args, skip_bad=True)
    aside = dataset.bad if args.skip_bad else ()
    report = check(dataclasses.replace(dataset, bad=() if aside else dataset.bad), deep=args.deep)
    print(render(report))
    if aside:
        print(f"\nset aside: {len(aside):,}", *(f"  {bad.file}, {bad.record}: {bad.reason}" for bad in aside), sep="\n")
    return 1 if report.problems else 0


def data_scenes(args: argparse.Namespace) -> None:
    from l2l.data.scene_set import write_scenes

    known, unknown = write_scenes(args.out, count=args.count, seed=args.seed, unlabelled_share=args.unlabelled_share)
    print(f"{args.out}: {args.count} pictures, {known} records with masks" + (
        f", {unknown} without, in {args.out / 'unlabelled.jsonl'}" if unknown else ""))  # fmt: skip


def data_split(args: argparse.Namespace) -> None:
    from l2l.data.splits import draw

    dataset = _read(args, skip_bad=args.skip_bad)
    split = draw(dataset.samples, args.rate, args.seed, data=dataset.name)
    split.save(args.out)
    print(f"{args.out}: {len(split.images)} labelled images, hash {split.hash}")


def data_shard(args: argparse.Namespace) -> None:
    from l2l.data.shards import write_shards
    from l2l.progress import Progress

    dataset = _read(args, skip_bad=args.skip_bad)
    with Progress("shards") as progress:
        index = write_shards(dataset, args.out, format=args.format, per_shard=args.per_shard, skip_bad=args.skip_bad,
                             progress=progress)  # fmt: skip
    print(f"{args.out}: {len(index['shards'])} shards, {index['pairs']} pairs, {index['pictures']} pictures, "
          f"{index['bytes'] / 1e6:.1f} MB")  # fmt: skip


def data_recipe(args: argparse.Namespace) -> int:
    from l2l.data.refcoco import guide

    text, whole = guide(args.name, args.root)
    print(text)
    return 0 if whole else 1


def prior(args: argparse.Namespace) -> int:
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


def train(args: argparse.Namespace) -> None:
    config = configure(args)
    track = [name for given in args.track for name in given.split(",") if name]
    from l2l.config import Config
    from l2l.live import History, Live
    from l2l.training.checkpoint import load_tensors
    from l2l.training.loop import CHECKPOINT, CONFIG, METRICS, train
    from l2l.training.processes import Processes
    from l2l.training.track import check_trackers
    from l2l.watch import Tail

    check_trackers(track)
    check_device(config.train.device)
    run, steps, history = args.out, config.train.steps, History(f"train {config.train.method}")
    say = print if Processes.here(config.train.device).main else _silent
    if args.resume and (run / CHECKPOINT).exists() and Config.load(run / CONFIG).hash() == config.hash():
        step = int(load_tensors(run / CHECKPOINT)[1]["step"])
        if step >= steps:
            say(f"{run}: finished already, {step} of {steps} steps; there is nothing to do")
            return
        say(f"{run}: going on from step {step} of {steps}")
        for line in Tail(run / METRICS).new()[1]:
            if line["step"] <= step:
                history.take(line)
    with Live(history) as progress:
        train(config, run, resume=args.resume, progress=progress, tell=progress.tell, preparing=progress.before,
              track=track)  # fmt: skip
    say(f"{run}: {config.train.method}, run {config.hash()}; next: l2l evaluate {run}")


def watch(args: argparse.Namespace) -> None:
    from l2l.watch import watch

    watch(args.run_folder)


def _silent(line: str) -> None:
    """What all processes but one say."""


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


def evaluate(args: argparse.Namespace) -> None:
    from l2l.evaluate import evaluate, generalised_table, table
    from l2l.progress import Progress

    with Progress("evaluate") as progress:
        found = evaluate(
            args.run_folder, data=args.data, split=args.split, prior=args.prior, no_prior=args.no_prior,
            images=args.images, refs=args.refs, outlines=args.outlines, progress=progress,
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


def predict(args: argparse.Namespace) -> None:
    from l2l.predict import pixels, predict, save_mask, save_overlay

    picture = pixels(args.image)
    found = predict(args.run_folder, picture, args.sentence, box=args.box, outlines=args.outlines)
    save_mask(found.mask, args.out)
    if args.overlay:
        save_overlay(picture, found.mask, args.overlay)
    where = "nothing" if found.box is None else "box {} {} {} {}".format(*found.box)
    print(f"{args.out}: {where}, {found.mask.mean():.2%} of the picture, expected IoU {found.score:.2f}")


def save(args: argparse.Namespace) -> None:
    from l2l.sharing.folder import push_to_hub, save_pretrained

    if args.out is None and args.onnx is None:
        raise InputError("nothing to write: name a folder with --out, a file with --onnx, or both")
    if args.push_to_hub and args.out is None:
        raise InputError("--push-to-hub needs the model folder: name it with --out")
    if args.out is not None:
        save_pretrained(args.run_folder, args.out, licence=args.license, name=args.push_to_hub or "")
        print(f'{args.out}: a model folder; l2l.load("{args.out}") reads it, its card is README.md')
    if args.onnx is not None:
        from l2l.sharing.onnx import export_onnx

        apart = export_onnx(args.run_folder, args.onnx)
        print(f"{args.onnx}: onnxruntime's answers differ from torch's by {apart:.1g} at most")
    if args.push_to_hub:
        print(push_to_hub(args.out, args.push_to_hub))


def serve(args: argparse.Namespace) -> None:
    from l2l.serving.commands import serve

    serve(args)


def label(args: argparse.Namespace) -> int:
    from l2l.label import label
    from l2l.progress import Progress

    if args.shards is not None:
        return _label_shards(args)
    _only_with_shards(args)
    with Progress("label") as progress:
        path = label(
            args.run_folder, args.out, data=args.data, prior=args.prior, no_prior=args.no_prior,
            unlabelled=args.unlabelled, everything=args.all, skip_bad=args.skip_bad, images=args.images, refs=args.refs,
            outlines=args.outlines, progress=progress,
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
            outlines=args.outlines, engine=args.engine, workers=args.workers, threads=args.threads,
            device=args.device or "", progress=progress,
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


def report(args: argparse.Namespace) -> None:
    from l2l.report import report

    print(report(args.run_folder, beside=args.beside, out=args.out))


def benchmark(args: argparse.Namespace) -> int:
    from l2l.benchmark import benchmark, plan
    from l2l.benchmark_page import listing, write_page
    from l2l.benchmark_suites import SUITES, with_seeds, with_steps

    seeds = args.seeds and _numbers(args.seeds, "--seeds", int)
    suites = with_seeds(SUITES, seeds or ())
    if args.steps is not None:
        suites = with_steps(suites, args.steps)
    names = [suite.name for suite in suites]
    for name in args.suite or ():
        if name not in names:
            raise InputError(f"--suite {name}: there are {', '.join(names)}")
    chosen = [suite for suite in suites if suite.name in (args.suite or names)]
    part = _numbers(args.part, "--part", int, "/")
    if len(part) != 2:
        raise InputError(f"--part {args.part}: write i/n, as in 1/4")
    which: dict[str, Any] = {
        "part": tuple(part), "only": args.only, "seeds": seeds,
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
