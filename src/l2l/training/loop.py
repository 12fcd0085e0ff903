"""The training loop, read in the order it runs. Whatever a resume needs sits in one object, `Run`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2l.config import Config
from l2l.data.durable import append, remove_drafts, sync, write_durably
from l2l.data.refer import read_json
from l2l.data.splits import Split
from l2l.data.streams import seed_of
from l2l.errors import InputError
from l2l.labelling.rple import Rple
from l2l.model.network import Network
from l2l.model.pretrained import BACKBONE, TEXT, identities, keep
from l2l.model.rows import share_statistics
from l2l.model.segmenter import Segmenter
from l2l.model.words import vocabulary_of
from l2l.training.checkpoint import (
    divided,
    load_module,
    load_tensors,
    pack_optimiser,
    save_tensors,
    unpack_optimiser,
    whole,
)
from l2l.training.parts import Method, Parts
from l2l.training.prepare import Prepared, Preparing, build_network, choose_precision, prepare
from l2l.training.probe import Probe, measure
from l2l.training.processes import Processes
from l2l.training.stop import Stopped, asked_to_stop
from l2l.training.teacher import follow, make_teacher
from l2l.training.track import check_trackers, tracking

CHECKPOINT, METRICS, CONFIG, SPLIT, ABOUT = (
    "checkpoint.safetensors", "metrics.jsonl", "config.json", "split.json", "about.json",
)  # fmt: skip

Progress = Callable[[int, int, dict[str, float]], None]


class NonFiniteLoss(InputError):
    """Training met a loss that is not a number; nothing was updated with it."""


@dataclass
class Run:
    """A run in memory: all that a checkpoint holds."""

    config: Config
    step: int
    parts: Parts
    method: Method
    optimiser: torch.optim.AdamW
    names: dict[torch.Tensor, str]

    @classmethod
    def start(
        cls, config: Config, prepared: Prepared, *, folder: Path | None = None, processes: Processes | None = None,
        preparing: Preparing | None = None,
    ) -> Run:  # fmt: skip
        """Step 0; with the folder of a run whose checkpoint is to be loaded next, no pretrained weights are read."""
        processes = processes or Processes()
        network = build_network(config, prepared.vocabulary, run=folder)
        if processes.count > 1:
            share_statistics(network)
        teacher = make_teacher(network)
        if processes.count > 1 and config.train.fsdp:
            from l2l.training.fsdp import shard

            for one in (network, teacher):
                shard(one, processes)
        if config.train.compile:
            for one in (network, teacher):
                one.compile(dynamic=True)
        parts = Parts(config, prepared.pool, network, teacher, choose_precision(config), processes, preparing)
        method = make_method(parts)
        method.extra.to(config.train.device)
        rates = method.learning_rates()
        groups: list[dict[str, Any]] = []
        names: dict[torch.Tensor, str] = {}
        modules = {"segmenter": network.segmenter, "sesm": network.sesm, "extra": method.extra}
        slow = pretrained_parameters(network.segmenter)
        for part, module in modules.items():
            for decayed, pretrained in ((True, False), (False, False), (True, True), (False, True)):
                own = [(name, one) for name, one in module.named_parameters()
                       if (one.ndim > 1) == decayed and (one in slow) == pretrained]  # fmt: skip
                names |= {one: f"{part}.{name}" for name, one in own}
                groups.append({
                    "params": [one for _, one in own], "part": part,
                    "peak": rates[part] * config.model.backbone_rate if pretrained else rates[part],
                    "weight_decay": config.train.weight_decay if decayed else 0.0,
                })  # fmt: skip
        optimiser = torch.optim.AdamW([group for group in groups if group["params"]], lr=config.train.rate, fused=True)
        return cls(config, 0, parts, method, optimiser, names)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, whole or not at all; every process must call this, one writes."""
        tensors = {f"student.{name}": one for name, one in self.parts.network.state_dict().items()}
        tensors |= {f"teacher.{name}": one for name, one in self.parts.teacher.state_dict().items()}
        tensors |= {f"extra.{name}": one for name, one in self.method.extra.state_dict().items()}
        tensors |= pack_optimiser(self.optimiser, self.names, "optimiser.")
        tensors = {name: whole(one) for name, one in tensors.items()}
        if self.parts.processes.main:
            save_tensors(folder / CHECKPOINT, tensors, {"step": self.step, "hash": self.config.hash()})

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint. Raises `InputError` if it is damaged or of another configuration."""
        file = folder / CHECKPOINT
        tensors, about = load_tensors(file)
        if about.get("hash") != self.config.hash():
            raise InputError("this checkpoint was made with another configuration", file=file)
        load_module(self.parts.network, "student.", tensors, file=file)
        load_module(self.parts.teacher, "teacher.", tensors, file=file)
        load_module(self.method.extra, "extra.", tensors, file=file)
        unpack_optimiser(self.optimiser, self.names, "optimiser.", tensors)
        self.step = int(about["step"])


def pretrained_parameters(segmenter: Segmenter) -> set[nn.Parameter]:
    """The parameters that were read rather than drawn; none in the compact network."""
    parts = (segmenter.vision, segmenter.text)
    return {one for part in parts if hasattr(part, "pretrained") for one in part.pretrained()}  # type: ignore[operator]


def make_method(parts: Parts) -> Method:
    """The method that a configuration names."""
    match parts.config.train.method:
        case "l2l":
            from l2l.methods.l2l import L2L

            return L2L(parts)
        case "supervised":
            from l2l.methods.supervised import Supervised

            return Supervised(parts)
        case "fully_supervised":
            from l2l.methods.fully_supervised import FullySupervised

            return FullySupervised(parts)
        case "prior_training":
            from l2l.methods.prior_training import PriorTraining

            return PriorTraining(parts)
        case "fixmatch":
            from l2l.methods.fixmatch import FixMatch

            return FixMatch(parts)
        case "mean_teacher":
            from l2l.methods.mean_teacher import MeanTeacher

            return MeanTeacher(parts)
        case "resmatch":
            from l2l.methods.resmatch import ResMatch

            return ResMatch(parts)
        case "semires":
            from l2l.methods.semires import SemiRes

            return SemiRes(parts)
        case "dam_net":
            from l2l.methods.dam_net import DamNet

            return DamNet(parts)
        case other:
            raise InputError(f"method {other} does not train")


def train(
    config: Config, out: Path | str, *, resume: bool = False, progress: Progress | None = None,
    stop_after: int | None = None, tell: Callable[[str], None] | None = None, preparing: Preparing | None = None,
    track: Sequence[str] = (),
) -> Path:  # fmt: skip
    """Train a method and leave a run directory.

    Args:
        out: the run directory: `config.json`, `split.json`, `metrics.jsonl`, `checkpoint.safetensors`, `about.json`;
            where the model has pretrained parts, `backbone/` and `text/` with all but their weights.
        resume: go on from the checkpoint in `out`, if there is one.
        progress: called with (step, steps, last logs).
        tell: takes what happens in words, as when the drift guard steps in; `metrics.jsonl` has it as well.
        preparing: called with (what, done, total) while proposals and regions are made, before the first step.
        stop_after: leave after so many steps in all, as if cut off (for tests and for work in pieces).
        track: trackers that get what `metrics.jsonl` gets, see `training.track`.

    Raises:
        InputError: for a user's mistake; `NonFiniteLoss` if the loss is not a number. `Stopped` after a SIGTERM, once
            the step under way is in a checkpoint.
    """
    out = Path(out)
    check_trackers(track)
    processes = Processes.here(config.train.device)
    begun = processes.agree((out / CONFIG).exists())
    if begun:
        if not resume:
            raise InputError("there is a run here already; add --resume to go on, or choose another folder", file=out)
        if Config.load(out / CONFIG).hash() != config.hash():
            raise InputError("the run here has another configuration; resume it as it was or go elsewhere", file=out)
    asked = config
    if processes.device:
        config = config.replace("train", device=processes.device)
    preparing = preparing if processes.main else None
    with processes.first():
        prepared = prepare(config, run=out if begun else None, preparing=preparing)
    if processes.main:
        _begin(out, asked, prepared, begun=begun)
    if tell and processes.main and prepared.prior and prepared.prior.left:
        tell(f"the prior store lacks {prepared.prior.left} pairs; the l2l prior that made it goes on with them")
    if config.train.method == "prior_only":
        return out

    saved = processes.agree(resume and (out / CHECKPOINT).exists())
    run = Run.start(config, prepared, folder=out if saved else None, processes=processes, preparing=preparing)
    if saved:
        run.load(out)
    if processes.main:
        _cut_metrics(out / METRICS, run.step)
    probe = Probe.draw(run.parts, prepared.truth, prepared.truth_known)
    steps = config.train.steps
    metrics = out / METRICS if processes.main else Path(os.devnull)
    with (
        asked_to_stop() as stopping,
        metrics.open("ab", buffering=0) as log,  # line by line: somebody may be watching
        tracking(track if processes.main else (), asked, out, step=run.step, tell=tell) as trackers,
    ):
        began, first = time.perf_counter(), run.step
        while run.step < steps and (stop_after is None or run.step < stop_after):
            logs = train_step(run)
            for event in run.parts.events:
                _write(log, trackers, {"step": run.step, "event": event})
                if tell and processes.main:
                    tell(f"step {run.step}: {event}")
            run.parts.events.clear()
            seconds = (time.perf_counter() - began) / (run.step - first)
            if run.step % 10 == 0 or run.step == steps:
                _write(log, trackers, {"step": run.step, **logs})
            if probe is not None and (run.step % config.train.probe_every == 0 or run.step == steps):
                rple = run.method.extra if isinstance(run.method.extra, Rple) else None
                _write(log, trackers, {"step": run.step, "probe": measure(probe.judged(run.parts, rple), probe.truth)})
            stopped = processes.anyone(stopping())
            if run.step % config.train.save_every == 0 or run.step == steps or stopped:
                if processes.main:
                    sync(log)  # before the checkpoint, whose steps it must have
                run.save(out)
            if stopped and run.step < steps:
                raise Stopped(run.step)
            if progress and processes.main:
                progress(run.step, steps, {**logs, "seconds": seconds})
    return out


def _begin(out: Path, config: Config, prepared: Prepared, *, begun: bool) -> None:
    """Write what a run directory has before its first step."""
    out.mkdir(parents=True, exist_ok=True)
    if not begun:
        keep(config.model, prepared.vocabulary, out)
    prepared.split.save(out / SPLIT)
    prepared.bad.write(out / "skipped.jsonl")
    about = _about(config, prepared) | _read_from(config, out, begun=begun)
    write_durably(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    write_durably(out / CONFIG, config.to_text().encode())
    for stray in out.glob(f".{CHECKPOINT}.*.part"):  # of a process that was killed while it wrote
        stray.unlink(missing_ok=True)
    remove_drafts(out)


def train_step(run: Run) -> dict[str, float]:
    """One optimiser step; everything random in it is a function of the seed and the step."""
    config, step = run.config, run.step
    torch.manual_seed(seed_of(config.train.seed, "step", step) % 2**63)
    for group in run.optimiser.param_groups:
        group["lr"] = group["peak"] * schedule(step, config.train.steps)
    run.parts.network.train()
    loss, logs = run.method.step(step)
    value = loss.item()
    if not math.isfinite(value):
        shown = ", ".join(f"{name} {part:.3g}" for name, part in logs.items())
        raise NonFiniteLoss(f"the loss is {value} at step {step} ({shown}); {_batch(run)}")
    run.optimiser.zero_grad()
    loss.backward()
    run.parts.processes.average(one for one in run.names if not divided(one))  # FSDP has done the others
    for module in (run.parts.network.segmenter, run.parts.network.sesm, run.method.extra):
        if any(True for _ in module.parameters()):
            norm = whole(nn.utils.clip_grad_norm_(module.parameters(), config.train.clip)).item()
            if not math.isfinite(norm):
                raise NonFiniteLoss(f"a gradient is {norm} at step {step}; {_batch(run)}")
    run.optimiser.step()
    follow(run.parts.teacher, run.parts.network, step=step, decay=config.train.ema)
    run.step += 1
    return {"loss": value, **logs}


def _batch(run: Run) -> str:
    """The pairs of the step under way, by stream."""
    ids = run.parts.pool.ids
    streams = (f"{name}: {', '.join(ids[row] for row in rows.tolist())}" for name, rows in run.parts.dealt.items())
    return f"batch of seed {run.config.train.seed}: {'; '.join(streams)}"


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: up in 5 % of the steps, then down a cosine to 2 %."""
    warm = max(1, round(0.05 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def load_run(
    folder: Path | str, *, attn_implementation: str | None = None
) -> tuple[Config, Network | None, nn.Module, dict[str, Any]]:
    """A finished (or unfinished) run's configuration, teacher, policy (an empty module where it has none), and `about`.

    The network is `None` for `prior_only`. `attn_implementation` is for pretrained parts: with `eager` they can be
    exported. Raises `InputError` if this is no run or it is damaged.
    """
    from l2l.methods.l2l import make_rple

    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"no run here (there is no {CONFIG})", file=folder)
    config = Config.load(folder / CONFIG)
    if config.train.device.startswith("cuda") and not torch.cuda.is_available():
        config = config.replace("train", device="cpu")  # trained elsewhere
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read it: {error}", file=folder / ABOUT) from error
    if not about.get("shared"):  # a model folder says nothing of the pictures it was made from
        Split.load(folder / SPLIT)
    if config.train.method == "prior_only":
        return config, None, nn.Module(), about
    tensors, saved = load_tensors(folder / CHECKPOINT)
    about["step"] = saved["step"]
    vocabulary = vocabulary_of(config, about, folder)
    network = build_network(config, vocabulary, run=folder, attn_implementation=attn_implementation)
    network.eval().requires_grad_(False)
    load_module(network, "teacher.", tensors, file=folder / CHECKPOINT)
    network.sesm.settle()
    extra: nn.Module = nn.Module()
    if config.train.method == "l2l":
        extra = make_rple(config)
        load_module(extra, "extra.", tensors, file=folder / CHECKPOINT)
        extra.to(config.train.device).eval().requires_grad_(False)
    return config, network, extra, about


def _about(config: Config, prepared: Prepared) -> dict[str, Any]:
    """What was found: everything a reader of the run needs beside the configuration."""
    pool = prepared.pool
    return {
        "hash": config.hash(), "data": prepared.dataset.name, "fingerprint": prepared.dataset.fingerprint(),
        "split_hash": prepared.split.hash, "labelled_images": len(prepared.split.images),
        "images": len(pool.images), "refs": len(pool.samples), "labelled_refs": int(pool.labelled.sum()),
        "pairs": len(pool), "pairs_with_prior": int(pool.present.sum()),
        "prior": prepared.prior.name if prepared.prior else "", "sam": prepared.sam,
        "skipped": len(prepared.bad.found),
        "prior_simulated": bool(prepared.prior and prepared.prior.simulated),
        "precision": str(choose_precision(config)).removeprefix("torch."), "torch": torch.__version__,
        "vocabulary": [] if config.model.text else list(prepared.vocabulary.words),  # a tokenizer has files of its own
    }  # fmt: skip


def _read_from(config: Config, out: Path, *, begun: bool) -> dict[str, str]:
    """Which models the pretrained parts were read from: if they are in a checkpoint already, as it was said then."""
    if not (begun and (out / CHECKPOINT).exists() and (out / ABOUT).exists()):
        return identities(config.model)
    told = read_json(out / ABOUT)
    return {part: told.get(part, "") for part in (BACKBONE, TEXT)}


def _write(log: FileIO, trackers: Callable[[dict[str, Any]], None], value: dict[str, Any]) -> None:
    value = {name: part for name, part in value.items() if part == part}  # NaN, what nobody knew, is no JSON
    append(log, (json.dumps(value) + "\n").encode())
    trackers(value)


def _cut_metrics(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint: those steps will be taken again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # cut off in the middle of a line
    write_durably(path, "".join(line + "\n" for line in kept).encode())
