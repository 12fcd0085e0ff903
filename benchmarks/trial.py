"""One run on a world that the benchmark does not report, where settings are tried: other drawn scenes (`scenes_seed`
1), or photographs of fashion's training part alone, a hundred of which are measured on.

    python benchmarks/trial.py NAME METHOD [--world fashion] [--steps 300] [--rate 0.05] [--seed 0]
                               [--prior 0.6[,scores=blank]] [--oracle] [--snapshot 240 [--pictures]] [--voices]
                               [--set A.B=C]

Writes OUT/NAME.log: the yardsticks of the pseudo-labels as the run goes, and val mIoU and P@0.5 with the prior, without
it and of the prior alone, each also with the outlines of the picture (`l2l.outlines`; scores are left as they are).
`--oracle` lets the truth decide what L2L accepts (exactly the right cells): what any rule of acceptance could win at
most. Not a method: it looks at what nobody may see. `--snapshot STEP` keeps what all voices say after that step, of
2,400 pairs of the pool (with `--pictures`: of all pairs of 600 pictures) and of all labelled ones, in OUT/NAME.pt for
`benchmarks/fusions.py`, `drawing.py` and, with `--pictures`, `neighbours.py`. `--voices` keeps what they say in the end
of all pairs that are measured, in OUT/NAME.voices.pt for `outlining.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pickle
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from l2l.benchmark_cell import ROOT, source_of
from l2l.benchmark_suites import FASHION, SCENES
from l2l.config import Config
from l2l.data.augment import Geometry
from l2l.data.read import DataSet
from l2l.evaluate import answers_and_rho, prepare_split, prior_answers, score_pairs
from l2l.labelling.policy import State
from l2l.labelling.rple import Rple
from l2l.methods.l2l import L2L
from l2l.metrics import calibration, summarise
from l2l.outlines import Drawer
from l2l.priors.make import make_priors
from l2l.proposals.bank import PriorBank
from l2l.training.loop import Run, train_step
from l2l.training.pool import Pool, normalise
from l2l.training.prepare import Prepared, prepare, read_data
from l2l.training.probe import Probe, measure


def configure(args: argparse.Namespace, out: Path) -> Config:
    """The benchmark's settings on the trial world, with a simulated prior of that accuracy (or the grounder's; fashion
    has its own)."""
    if args.world == "fashion":
        folder = fashion_trial(args.root / "fashion", out / "fashion-trial")
        config = FASHION.replace("data", rate=args.rate, data=str(folder), prior=str(folder / "priors.jsonl"))
        config = config.replace("train", method=args.method, steps=args.steps or FASHION.train.steps, seed=args.seed)
        return config.override(*args.set)
    config = SCENES.replace("data", rate=args.rate, scenes_seed=1, prior="")
    steps = args.steps or SCENES.train.steps
    config = config.replace("train", method=args.method, steps=steps, seed=args.seed, probe_every=100)
    if args.prior != "none":
        store = out / f"prior-{args.prior}"
        if not store.exists():
            make_prior(read_data(config.data), store, args.prior)
        config = config.replace("data", prior=str(store))
    return config.override(*args.set)


def fashion_trial(fashion: Path, folder: Path) -> Path:
    """Fashion without its val: every seventh training photograph, 100 of them, takes its place."""
    if (folder / "refs(trial).p").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "instances.json", "priors.jsonl"):
        with contextlib.suppress(FileExistsError):
            (folder / name).symlink_to((fashion / name).resolve())
    with (fashion / "refs(ccp).p").open("rb") as file:  # a file of our own: no stranger's pickle
        refs = [ref for ref in pickle.load(file) if ref["split"] == "train"]
    names = sorted({ref["file_name"] for ref in refs})
    for ref in refs:
        ref["split"] = "val" if ref["file_name"] in names[::7][:100] else "train"
    with (folder / "refs.part").open("wb") as file:
        pickle.dump(refs, file)
    os.replace(folder / "refs.part", folder / "refs(trial).p")
    return folder


def make_prior(data: DataSet, store: Path, which: str) -> None:
    """The grounder's, or a simulated one, as in `0.6` or `0.6,scores=blank,errors=systematic`."""
    if which == "grounder":
        make_priors(data, store).close()
    else:
        make_priors(data, store, source=source_of(f"simulated:accuracy={which}", data.samples)).close()


def let_truth_decide(run: Run, prepared: Prepared) -> None:
    """Replace L2L's rule of acceptance by the truth."""
    rple, parts = run.method.extra, run.parts
    assert isinstance(rple, Rple)
    geometry, drawn = parts.view, {}

    def view(rows: Tensor, name: str, step: int) -> tuple[Geometry, torch.Generator]:
        made = geometry(rows, name, step)
        if name == "unlabelled":
            truth = prepared.truth[parts.pool.ref_of[rows]][:, None].float() / 255
            drawn["truth"] = made[0].apply(truth)[:, 0] > 0.5
        return made

    def accept(state: State, cells: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        believed, taken = cells.sigmoid(), samples.sigmoid()
        count = len(drawn["truth"])
        if len(state.label) > count:  # not while the labels alone are learned from
            believed[-count:] = (state.label[-count:] == drawn["truth"]).float()
            taken[-count:] = 1
        return believed, taken

    object.__setattr__(parts, "view", view)
    rple.accept = accept  # type: ignore[method-assign]


def some_of(pool: Pool, *, pictures: bool = False) -> Tensor:
    """Rows (N,) of 2,400 unlabelled pairs, or of all unlabelled pairs of 600 pictures; always the same ones."""
    free = (~pool.labelled[pool.ref_of]).nonzero()[:, 0]
    if pictures:
        names = pool.image_of[free].unique()
        chosen = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:600]
        return free[torch.isin(pool.image_of[free], names[chosen])]
    return free[torch.randperm(len(free), generator=torch.Generator().manual_seed(0))[:2400]]


@torch.no_grad()
def voices(run: Run, pool: Pool, rows: Tensor) -> dict[str, Tensor]:
    """What P, Q and M, the fused proposal and the answer say of some pairs of a pool, and what SESM makes of them."""
    run.parts.teacher.eval()
    pieces: dict[str, list[Tensor]] = {}
    for some in rows.split(32):
        batch = pool.batch(some)
        with run.parts.autocast():
            answer = run.parts.teacher(normalise(batch.image), batch.tokens, batch.proposals)
        elevated, given = answer.elevated, batch.proposals
        assert elevated is not None and answer.guided is not None
        found = {
            "prior": given.soft, "score": given.score, "present": given.present, "model": answer.q,
            "guided": answer.guided, "fused": elevated.fused, "answer": elevated.answer, "rho": elevated.rho,
            "expected": elevated.score, "weights": elevated.weights,
        }  # fmt: skip
        for key, value in found.items():
            pieces.setdefault(key, []).append(value.float())
    return {key: torch.cat(values) for key, values in pieces.items()}


def snapshot(run: Run, prepared: Prepared, path: Path, *, pictures: bool = False) -> None:
    """What all voices say of pairs of the pool, of the held-out labels and of those that are learned from."""
    assert isinstance(run.method, L2L)
    pool = run.parts.pool
    seen, held = run.method.fold_at(run.step)
    rows = {"pool": some_of(pool, pictures=pictures)} | {
        name: torch.tensor([row for ref in refs.tolist() for row in pool.pairs_of[ref]])
        for name, refs in (("held", held), ("seen", seen))
    }
    kept = {}
    for name, own in rows.items():
        refs = pool.ref_of[own]
        truth = (prepared.truth + pool.masks)[refs].float() / 255
        kept[name] = voices(run, pool, own) | {"truth": truth, "picture": pool.image_of[own], "ref": refs}
    torch.save(kept, path)


def validation(config: Config, prepared: Prepared, args: argparse.Namespace) -> tuple[Pool, PriorBank | None]:
    """Pictures of a third world, many of them: on the 800 pairs of a benchmark's val two points are noise."""
    if args.world == "fashion":
        return prepare_split(prepared.dataset.split("val"), config, prepared.vocabulary, config.data.prior)
    data = read_data(dataclasses.replace(config.data, scenes_seed=2, scenes_count=args.val))
    store = args.out / f"prior-{args.prior}-val-{args.val}"
    if args.prior != "none" and not store.exists():
        make_prior(data, store, args.prior)
    return prepare_split(data.samples, config, prepared.vocabulary, str(store) if args.prior != "none" else "")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Which trial: its name, and what its world and labels were made from."""
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, default=Path("trials"))
    parser.add_argument("--world", choices=("scenes", "fashion"), default="scenes")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder that holds fashion/")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", default="0.6", help="accuracy of a simulated one, grounder, or none")
    parser.add_argument("--val", type=int, default=600, help="pictures to measure on")
    parser.set_defaults(method="l2l", steps=0, set=[])


def main() -> None:
    parser = argparse.ArgumentParser()
    arguments(parser)
    parser.add_argument("method")
    parser.add_argument("--steps", type=int, default=0, help="if not the benchmark's")
    parser.add_argument("--snapshot", type=int, default=0, help="keep what all voices say after this step")
    parser.add_argument("--pictures", action="store_true", help="... of whole pictures")
    parser.add_argument("--voices", action="store_true", help="keep what all voices say of what is measured")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    config = configure(args, args.out)
    prepared = prepare(config)
    run = Run.start(config, prepared)
    if args.oracle:
        let_truth_decide(run, prepared)
    probe = Probe.draw(run.parts, prepared.truth, prepared.truth_known)
    began = time.perf_counter()
    with (args.out / f"{args.name}.log").open("w", encoding="utf-8") as log:

        def say(value: object) -> None:
            print(value if isinstance(value, str) else json.dumps(value), file=log, flush=True)

        say(" ".join(sys.argv[1:]))
        while run.step < config.train.steps:
            train_step(run)
            if run.step == args.snapshot:
                snapshot(run, prepared, args.out / f"{args.name}.pt", pictures=args.pictures)
            for event in run.parts.events:
                say({"step": run.step, "event": event})
            run.parts.events.clear()
            if probe and (run.step % config.train.probe_every == 0 or run.step == config.train.steps):
                rple = run.method.extra if isinstance(run.method.extra, Rple) else None
                found = measure(probe.judged(run.parts, rple), probe.truth)
                say({"step": run.step, "seconds": round(time.perf_counter() - began)}
                    | {name: round(100 * value, 1) for name, value in found.items()})  # fmt: skip
        pool, bank = validation(config, prepared, args)
        network = run.parts.teacher.eval()
        if args.voices:
            torch.save(voices(run, pool, torch.arange(len(pool))), args.out / f"{args.name}.voices.pt")
        bare = pool.with_proposals(pool.soft, pool.score, torch.zeros_like(pool.present))
        ways = {"without": answers_and_rho(network, bare, config, prior=False)}
        if bank:
            ways |= {"with": answers_and_rho(network, pool, config, prior=True), "alone": prior_answers(pool)}
        draw = Drawer(pool)
        for name, results in {name: list(found) for name, found in ways.items()}.items():
            for outlines in (False, True):
                pairs = score_pairs(pool, results, draw=draw if outlines else None)
                scores = summarise([one.intersection for one in pairs], [one.union for one in pairs])
                error = calibration([one.score for one in pairs], [one.iou for one in pairs]).ece
                say({"val": name + ", with outlines" * outlines, "mIoU": round(100 * scores.miou, 2),
                     "P@0.5": round(100 * scores.precision["P@0.5"], 1), "ECE": round(error, 3)})  # fmt: skip


if __name__ == "__main__":
    main()
