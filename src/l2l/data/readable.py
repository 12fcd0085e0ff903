"""Pictures that cannot be decoded, found before the work starts: what `--skip-bad` sets aside beyond bad records."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from l2l.data.images import SCENES, load
from l2l.errors import BadRecords, InputError
from l2l.sample import Sample


def readable(samples: Iterable[Sample], bad: BadRecords) -> list[Sample]:
    """The samples whose picture can be decoded; the others go to `bad`, which raises unless it skips."""
    samples = list(samples)
    names = list(dict.fromkeys(sample.image for sample in samples if not sample.image.startswith(SCENES)))

    def broken(name: str) -> str:
        try:
            load(name)
        except InputError as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as workers:
        reasons = dict(zip(names, workers.map(broken, names), strict=True))
    kept = []
    for sample in samples:
        if reason := reasons.get(sample.image):
            bad.add(reason, file=sample.image, record=sample.provenance or sample.id)
        else:
            kept.append(sample)
    return kept
