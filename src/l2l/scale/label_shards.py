"""Masks for all pairs of all shards: `l2l label` for pools that outgrow one machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l2l.data.images import digest
from l2l.data.read import DataSet
from l2l.errors import BadRecords, InputError
from l2l.evaluate import outline_gain, prepare_split, weights_of
from l2l.label import label_rows, to_label
from l2l.labelling.rple import Rple
from l2l.model.words import vocabulary_of
from l2l.outlines import Drawer
from l2l.priors.prior import Prior
from l2l.priors.store import FILE
from l2l.proposals.bank import read_priors, soft_maps
from l2l.sample import Sample
from l2l.scale.engine import Engine, run_shards
from l2l.scale.one_shard import Line, Work, decodable, paths_of
from l2l.training.loop import load_run
from l2l.training.pool import grid_size
from l2l.training.prepare import choose_sam


def label_shards(
    run: Path | str, shards: Path | str, out: Path | str, *, prior: Path | str | None = None, no_prior: bool = False,
    everything: bool = False, outlines: bool = False, batch: int = 64, engine: Engine = "local", workers: int = 1,
    threads: int = 1, device: str = "", progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Label the train pairs without a mask of every shard; `labels-SHARD.jsonl` has the lines of `l2l label`.

    Only `image` differs: it is the picture's name in its shard, `pairs-000000.tar/00000012.jpg`. Set end to end, the
    files are what `labels.jsonl` would be.

    Args:
        run: the run's folder. shards, out, engine, workers, progress: see `scale.engine.run_shards`.
        prior: what `prior_shards` wrote for these shards; or a store, or a file, which every worker reads whole.
        no_prior: let the network answer alone. For a run that was trained with a prior, one of the two is to be said.
        everything: label the train pairs with masks as well.
        outlines: as in `l2l.label.label`.
        batch: pairs at a time; with `threads`, of each worker, part of what makes two calls equal to the bit.
        device: where the network runs, if not where it was trained; with `ray`, a worker on `cuda` takes one GPU.

    Returns:
        See `run_shards`; sums are `pairs`, `pairs_with_prior`, `accepted` and `score`.

    Raises:
        InputError: as `run_shards`, or if the run or the prior is not there.
    """
    run = Path(run).resolve()
    config, network, _, about = load_run(run)
    if network is None:
        raise InputError("this run is the prior alone; it has no network to label with", file=run)
    if prior is None and not no_prior and config.data.prior:
        raise InputError("the run's own prior knows other pairs: name these shards' with --prior, or say --no-prior")
    where = "" if no_prior or prior is None else str(Path(prior).resolve())
    settings = {
        "version": 1, "run": about["hash"], "step": about["step"], "weights": weights_of(run),
        **_about_prior(where), "everything": everything, "batch": batch, "threads": threads,
        "device": device or config.train.device,
    }  # fmt: skip
    if outlines:
        settings["outlines"] = outline_gain(run, config, network, about, prior=bool(where))
    job = LabelJob(run=str(run), prior=where, threads=threads, device=settings["device"], settings=settings)
    return run_shards(job, shards, out, engine=engine, workers=workers, progress=progress)


def _about_prior(where: str) -> dict[str, Any]:
    """`prior`: whose; `prior_hash`: of a store or a file, while that of each shard's own priors is in its receipt."""
    path = Path(where)
    if not where:
        return {"prior": "", "prior_hash": ""}
    if path.is_file():
        return {"prior": path.name, "prior_hash": digest(where)}
    if (path / FILE).is_file():
        return {"prior": path.name, "prior_hash": digest(str(path / FILE))}
    try:
        told = json.loads((path / "about.json").read_text(encoding="utf-8"))
        return {"prior": f"{told['source']} {told['fingerprint']}", "prior_hash": ""}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError("no priors here: neither a store nor a file nor priors of shards", file=where) from error


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """See `scale.one_shard.Job`."""

    run: str
    prior: str
    """A file, a store, or a folder of priors of shards; empty for none."""
    threads: int
    device: str
    settings: dict[str, Any]
    kind: str = "labels"

    def inputs(self, shard: Path, digest_of_shard: str) -> dict[str, str]:
        """The digest of this shard's priors, if they have a file of their own."""
        folder = Path(self.prior)
        if not self.prior or folder.is_file() or (folder / FILE).is_file():
            return {}
        lines, receipt = paths_of("priors", shard, folder)
        try:
            note = json.loads(receipt.read_text(encoding="utf-8"))
            made_for, found = note["inputs"]["shard"], note["output"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError("no priors for this shard", file=receipt, record=shard.name) from error
        if made_for != digest_of_shard or found != digest(str(lines)):
            raise InputError("these priors are damaged, or of another shard of the name", file=lines)
        return {"priors": str(found)}

    def load(self) -> Work:
        """The run's network, on `device`."""
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {self.device} cannot be used: {str(error).splitlines()[0]}") from error
        config, network, extra, about = load_run(self.run)
        assert network is not None
        if weights_of(Path(self.run)) != self.settings["weights"]:
            raise InputError("the run was trained on while its labels are being made", file=self.run)
        config = config.replace("train", device=self.device)
        network.to(self.device)
        policy = extra.to(self.device) if isinstance(extra, Rple) else None
        vocabulary, sam = vocabulary_of(config, about, Path(self.run)), choose_sam(config)
        cells = grid_size((config.data.height, config.data.width))

        def work(
            shard: Path, samples: list[Sample], known: Mapping[str, Line], bad: BadRecords
        ) -> tuple[list[Line], dict[str, float]]:
            todo = to_label(DataSet(shard.name, tuple(samples)), None, self.settings["everything"])
            if not todo:
                return [], _sums([])
            try:
                pool, _ = prepare_split(todo, config, vocabulary, "")
            except InputError:  # a picture that cannot be decoded: look for it only now, as each look costs a decoding
                todo = decodable(shard, todo, bad)
                if not todo:
                    return [], _sums([])
                pool, _ = prepare_split(todo, config, vocabulary, "")
            if self.prior:
                priors = self._priors(shard, todo)
                pool = pool.with_proposals(*soft_maps(priors, pool.images, pool.image_of, cells, sam=sam,
                                                      pictures=pool.pictures))  # fmt: skip
            gain = self.settings.get("outlines")
            draw = Drawer(pool) if gain else None
            batches = torch.arange(len(pool)).split(self.settings["batch"])
            lines = [line for rows in batches
                     for line in label_rows(network, policy, pool, rows, config, prior=bool(self.prior), draw=draw,
                                            gain=gain or 1.0)]  # fmt: skip
            return lines, _sums(lines)

        return work

    def _priors(self, shard: Path, samples: Sequence[Sample]) -> list[Prior]:
        """One per pair, empty where there is none: that no pair of a shard has one is no error."""
        folder = Path(self.prior)
        if folder.is_file() or (folder / FILE).is_file():
            try:
                return list(read_priors(folder, samples, bad=BadRecords(skip=True)).priors)
            except InputError as error:
                if not error.reason.startswith("holds no prior"):
                    raise
                return [Prior() for sample in samples for _ in sample.sentences]
        with paths_of("priors", shard, folder)[0].open(encoding="utf-8") as file:
            found = {line["id"]: Prior.from_json(line) for line in map(json.loads, file)}
        return [found.get(key, Prior()) for sample in samples for key in sample.sentence_ids]


def _sums(lines: Sequence[Line]) -> dict[str, float]:
    """Counts, and the sum of the scores."""
    return {
        "pairs_with_prior": sum(line["prior"] for line in lines),
        "accepted": sum(line["accepted"] for line in lines),
        "score": round(sum(line["score"] for line in lines), 4),
    }
