"""Ask a frozen model about every pair of a data set, once, and keep its answers in a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from l2l.data.read import DataSet, read
from l2l.data.readable import readable
from l2l.errors import BadRecords, InputError
from l2l.priors.prior import Source
from l2l.priors.store import PriorStore, fill
from l2l.sample import Sample

SourceName = Literal["grounder", "simulated", "precomputed"]


def make_priors(
    data: DataSet, out: Path | str, *, source: SourceName | Source = "grounder", file: Path | str | None = None,
    accuracy: float = 0.7, seed: int = 0, unlabelled: Path | str | None = None, skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PriorStore:
    """Fill a store with the priors of all pairs of `data`, all splits. What the store has already is not asked again.

    Args:
        out: the store's folder.
        source: `grounder`, the embedded frozen model; `simulated`, boxes drawn from the true masks; `precomputed`, a
            file of any tool; or a source, such as a `priors.endpoint.Endpoint` or a `priors.mllm.Mllm`.
        file: for `precomputed`, the JSONL file.
        accuracy: for `simulated`, the chance of the right object.
        seed: for `simulated`, of its draws.
        unlabelled: JSONL file of further pairs to ask about.
        skip_bad: set bad records aside, in `skipped.jsonl` in the store's folder.

    Raises:
        InputError: for anything wrong with the data, the file or the store.
    """
    bad = BadRecords(skip=skip_bad, found=list(data.bad))
    samples = list(data.samples)
    if unlabelled:
        more = read(unlabelled, skip_bad=skip_bad)
        bad.found.extend(more.bad)
        samples += [dataclasses.replace(sample, targets=None) for sample in more.samples]
    if not isinstance(source, str) and file is not None:
        raise InputError("--file is for --source precomputed")
    asked = _source(source, samples, file, accuracy, seed, bad) if isinstance(source, str) else source
    if source == "simulated":
        samples = [sample for sample in samples if sample.targets is not None]
        if not samples or unlabelled:
            raise InputError("a simulated prior is drawn from true masks, and these pairs have none", file=unlabelled)
    if skip_bad:
        samples = readable(samples, bad)
    store = PriorStore(out, create=True)
    for done, total in fill(store, asked, samples):
        if progress:
            progress(done, total)
    bad.write(Path(out) / "skipped.jsonl")
    return store


def _source(
    name: SourceName, samples: list[Sample], file: Path | str | None, accuracy: float, seed: int, bad: BadRecords
) -> Source:
    if (file is not None) != (name == "precomputed"):
        raise InputError("--source precomputed takes --file PRIORS.jsonl, and no other source does")
    match name:
        case "grounder":
            from l2l.priors.grounder import Grounder

            return Grounder()
        case "simulated":
            from l2l.priors.simulated import Simulated

            if not 0 <= accuracy <= 1:
                raise InputError(f"an accuracy of {accuracy:g}; it lies in [0, 1]")
            return Simulated(samples, accuracy=accuracy, seed=seed)
        case "precomputed":
            from l2l.priors.precomputed import Precomputed

            assert file is not None
            return Precomputed(file, bad=bad)
        case _:
            raise InputError(f"no prior source {name}; there are grounder, simulated and precomputed")
