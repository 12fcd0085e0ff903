"""A look at a data set before it is trained on: what is in it, and what is wrong with it."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l2l.data.images import SCENES, digest, load, size
from l2l.data.read import DataSet, read
from l2l.errors import BadRecord, InputError, printable
from l2l.sample import Sample

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one split holds."""

    images: int
    refs: int
    """Samples."""
    sentences: int
    masks: int
    no_target: int
    """Samples whose sentences mean nothing in the picture."""
    several_targets: int
    """Samples with more than one mask."""
    unlabelled: int
    """Samples about whose masks nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check` found."""

    name: str
    splits: dict[str, Counts]
    total: Counts
    words: tuple[int, float, int]
    """Words per sentence: smallest, median, largest."""
    vocabulary: int
    """Different words, in lower case."""
    mask_share: tuple[float, ...]
    """Mask area over image area, in [0, 1], at `QUANTILES`; empty without masks."""
    problems: tuple[BadRecord, ...]
    """What has to be put right."""
    notes: tuple[BadRecord, ...]
    """What is worth knowing."""


def check(
    data: DataSet | str | Path, *, images: Path | None = None, refs: str | None = None, deep: bool = False
) -> Report:
    """Count a data set and look for missing or damaged pictures, wrong sizes, empty masks and leaks between splits.

    Args:
        data: a data set, or what `l2l.data.read.read` takes; then bad records become problems.
        images: as for `read`.
        refs: as for `read`.
        deep: decode every picture and compare the pictures' bytes; otherwise only headers and checksums are looked at.

    Raises:
        InputError: if there is no data set to look at.
    """
    dataset = data if isinstance(data, DataSet) else read(data, images=images, refs=refs, skip_bad=True)
    samples = dataset.samples
    masks = [(sample, target) for sample in samples for target in sample.targets or ()]
    shares = [target.area() / (target.height * target.width) for _, target in masks]
    lengths = [len(sentence.split()) for sample in samples for sentence in sample.sentences]
    vocabulary = {word for sample in samples for text in sample.sentences for word in re.findall(r"\w+", text.lower())}
    empty = [_finding(sample, "an empty mask") for (sample, _), share in zip(masks, shares, strict=True) if not share]
    return Report(
        name=dataset.name,
        splits={name: _count(dataset.split(name)) for name in dataset.splits()},
        total=_count(samples),
        words=(min(lengths), statistics.median(lengths), max(lengths)) if lengths else (0, 0, 0),
        vocabulary=len(vocabulary),
        mask_share=tuple(float(share) for share in np.quantile(shares, QUANTILES)) if shares else (),
        problems=(*dataset.bad, *_pictures(samples, deep), *empty, *_leaks(samples, deep), *_unscorable(samples)),
        notes=tuple(_repeated(samples)),
    )


def render(report: Report, *, most: int = 20) -> str:
    """The report as plain text in aligned columns; of problems and notes the first `most`."""
    heads = ["split", *(field.replace("_", " ") for field in Counts.__dataclass_fields__)]
    counted = [*report.splits.items(), ("total", report.total)]
    rows = [heads, *([name, *(f"{value:,}" for value in vars(counts).values())] for name, counts in counted)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [report.name, ""]
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    least, median, longest = report.words
    lines += ["", f"words per sentence  {least} to {longest}, median {median:g}; {report.vocabulary:,} different words"]
    if report.mask_share:
        shares = "  ".join(f"{at:.0%} {share:.2%}" for at, share in zip(QUANTILES, report.mask_share, strict=True))
        lines.append(f"mask area of image  {shares}  (quantiles)")
    for title, findings in (("problems", report.problems), ("notes", report.notes)):
        lines += ["", f"{title}: {len(findings):,}" if findings else f"{title}: none"]
        lines += [printable(f"  {found.file}, {found.record}: {found.reason}") for found in findings[:most]]
        if len(findings) > most:
            lines.append(f"  ... and {len(findings) - most:,} more")
    return "\n".join(lines)


def _count(samples: Iterable[Sample]) -> Counts:
    samples = list(samples)
    targets = [sample.targets for sample in samples]
    return Counts(
        images=len({sample.image_id for sample in samples}),
        refs=len(samples),
        sentences=sum(len(sample.sentences) for sample in samples),
        masks=sum(len(known or ()) for known in targets),
        no_target=sum(known == () for known in targets),
        several_targets=sum(len(known or ()) > 1 for known in targets),
        unlabelled=sum(known is None for known in targets),
    )


def _finding(sample: Sample, reason: str) -> BadRecord:
    return BadRecord(sample.image, sample.provenance or f"record {sample.id}", reason)


def _pictures(samples: Iterable[Sample], deep: bool) -> list[BadRecord]:
    """Missing or damaged files, and sizes that are not the file's."""
    first = {(sample.image, sample.size): sample for sample in samples}
    found = []
    for (image, stated), sample in first.items():
        if image.startswith(SCENES) and not deep:
            continue
        try:
            real = size(image, verify=True)
            if deep:
                load(image)
        except InputError as error:
            found.append(_finding(sample, error.reason))
            continue
        if real != stated:
            stated_text, real_text = (f"{height} x {width}" for height, width in (stated, real))
            found.append(_finding(sample, f"the record says {stated_text} pixels, the file has {real_text}"))
    return found


def _leaks(samples: Iterable[Sample], deep: bool) -> list[BadRecord]:
    """Pictures in more than one split, by id, by file and, if `deep`, by content; and ids with several files."""
    found = []
    splits: dict[tuple[str, str], dict[str, Sample]] = defaultdict(dict)
    files: dict[str, dict[str, Sample]] = defaultdict(dict)
    contents: dict[str, str] = {}
    for sample in samples:
        if deep and sample.image not in contents:
            try:
                contents[sample.image] = digest(sample.image)
            except InputError:  # reported with the pictures
                contents[sample.image] = sample.image
        key = contents[sample.image] if deep else sample.image
        files[sample.image_id].setdefault(sample.image, sample)
        splits["id", sample.image_id].setdefault(sample.split, sample)
        splits["file", key].setdefault(sample.split, sample)
    reported = set()
    for places in splits.values():
        first, *others = places.values()
        if others and first.image not in reported:
            reported.add(first.image)
            found.append(_finding(first, f"the image is in more than one split: {', '.join(places)}"))
    for image_id, same in files.items():
        first, *others = same.values()
        if others:
            found.append(_finding(first, f"image id {image_id} stands for several files, also {others[0].image}"))
    return found


def _unscorable(samples: Iterable[Sample]) -> list[BadRecord]:
    return [
        _finding(sample, f"no mask is known in split {sample.split}; give it one, or move the line to "
                 "a file for --unlabelled")
        for sample in samples
        if sample.targets is None and sample.split != "train"
    ]


def _repeated(samples: Iterable[Sample]) -> list[BadRecord]:
    """Sentences said of one image, in one split, by several samples."""
    said: dict[tuple[str, str, str], Sample] = {}
    notes = []
    for sample in samples:
        for sentence in dict.fromkeys(sample.sentences):
            first = said.setdefault((sample.split, sample.image_id, sentence), sample)
            if first is not sample:
                meaning = "of the same pixels" if first.targets == sample.targets else "of other pixels"
                known = f" {meaning}" if first.targets is not None and sample.targets is not None else ""
                other = first.provenance or f"record {first.id}"
                notes.append(_finding(sample, f"{sentence!r} is also said{known} in {other}"))
    return notes
