"""Priors of all pairs of all shards, from a source that needs nothing but the pair: grounder, endpoint, mllm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2l.errors import BadRecords, InputError
from l2l.priors.prior import Source
from l2l.sample import Sample
from l2l.scale.engine import Engine, run_shards
from l2l.scale.one_shard import Line, Work, decodable


def prior_shards(
    make: Callable[[], Source], shards: Path | str, out: Path | str, *, batch: int = 64, engine: Engine = "local",
    workers: int = 1, threads: int = 1, device: str = "cpu", progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask a frozen model about every pair of every shard, all splits; `priors-SHARD.jsonl` has one line per pair.

    A line is a prior as JSON (shares of the picture's width and height, `normalised`) with `id`, `image`, `sentence`
    and `source`: a form that `priors.precomputed` reads. A pair that got no answer has no line, and the same call asks
    about it again.

    Args:
        make: makes the source, once here and once in every worker, such as `Grounder`; it has to be picklable.
        device: where the source works; with `ray`, a worker on `cuda` takes one GPU.
        batch, threads: see `label_shards`. The rest: see `scale.engine.run_shards`.

    Returns:
        See `run_shards`; sums are `pairs`, `empty` (the model saw nothing) and `missed` (no answer).

    Raises:
        InputError: as `run_shards` and as `make`.
    """
    source = make()
    settings = {"version": 1, "source": source.name, "fingerprint": source.fingerprint(), "batch": batch,
                "threads": threads, "device": device}  # fmt: skip
    job = PriorJob(make=make, threads=threads, device=device, settings=settings)
    del source  # its memory, before workers need theirs
    return run_shards(job, shards, out, engine=engine, workers=workers, progress=progress)


@dataclass(frozen=True, kw_only=True)
class PriorJob:
    """See `scale.one_shard.Job`."""

    make: Callable[[], Source]
    threads: int
    device: str
    settings: dict[str, Any]
    kind: str = "priors"

    def inputs(self, shard: Path, digest: str) -> dict[str, str]:
        """None."""
        return {}

    def load(self) -> Work:
        """The source. Raises `InputError` if it is another here than where the call was made."""
        source = self.make()
        if source.fingerprint() != self.settings["fingerprint"]:
            raise InputError(f"{source.name} is another model here than where the work was begun")

        def work(
            shard: Path, samples: list[Sample], known: Mapping[str, Line], bad: BadRecords
        ) -> tuple[list[Line], dict[str, float]]:
            samples = decodable(shard, samples, bad)  # beforehand: a model's time costs more than a second decoding
            asked = [(sample, *pair) for sample in samples for pair in sample.pairs()]
            todo = [one for one in asked if one[1] not in known]
            lines = dict(known)
            for start in range(0, len(todo), self.settings["batch"]):
                part = todo[start : start + self.settings["batch"]]
                try:
                    answers = source.answer([(sample, sentence) for sample, _, sentence in part])
                except InputError:
                    if not lines:
                        raise
                    break  # what was answered is paid for; the rest is missed, and asked another time
                for (sample, key, sentence), answer in zip(part, answers, strict=True):
                    if answer is not None:
                        lines[key] = {"id": key, "image": sample.image, "sentence": sentence, **answer.to_json(),
                                      "normalised": True, "source": source.name}  # fmt: skip
            found = [lines[key] for _, key, _ in asked if key in lines]
            empty = sum(not (line.get("boxes") or line.get("points") or line.get("mask")) for line in found)
            return found, {"empty": empty, "missed": len(asked) - len(found)}

        return work
