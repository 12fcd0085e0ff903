"""What came back from an annotation tool, as a data set that `l2l train --data` reads.

The folder holds `metadata.jsonl` (the corrected pairs, with masks), `unlabelled.jsonl` (the pairs that nobody looked
at), `rejected.jsonl` (what is not to be learned from, and why) and the pictures. The last two lists have the form that
`l2l train --unlabelled` reads. A picture that is of another split than `train` in the data set with the first masks
stays there, with all that is said of it; pairs of it that nobody looked at are among the rejected.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import Any

import numpy as np

from l2l.data.durable import write_whole
from l2l.data.read import DataSet
from l2l.data.refer import plain_path
from l2l.errors import BadRecords, InputError
from l2l.exchange.labels import Label, picture_names, place_pictures
from l2l.rle import Rle

METADATA, UNLABELLED, REJECTED = "metadata.jsonl", "unlabelled.jsonl", "rejected.jsonl"
SKIPPED = "skipped.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """One answer of a person about one pair."""

    id: str
    """Sentence id."""
    mask: Rle | None = None
    """The corrected mask; all background says that the sentence means nothing in the picture."""
    nothing: bool = False
    """The same, where the tool does not tell the picture's size."""
    rejected: str = ""
    """Why it was rejected; empty if it was not."""
    image: str = ""
    """The picture's name in the other tool's file, if it says one; checked, never used."""
    record: str
    """Where in the file it stands, for messages."""


@dataclass(frozen=True, slots=True)
class Imported:
    """How many pairs went where."""

    corrected: int
    rejected: int
    unlabelled: int
    added: int
    skipped: int


def write_corrected(
    file: Path, corrections: Iterable[Correction], labels: list[Label], out: Path, *, bad: BadRecords | None = None,
    also: DataSet | None = None,
) -> Imported:
    """Write the folder. Several masks of one pair become their union; a pair without any is rejected.

    Args:
        file: what the corrections were read from, for messages.
        corrections: what came back, in any order.
        labels: what was sent out; ids, sentences and pictures are taken from here.
        out: a new folder, or one without `metadata.jsonl`.
        bad: takes corrections that fit no label; without it the first one raises.
        also: a data set whose labelled records are written as well, so that training has old and new masks together.

    Raises:
        InputError: if `out` holds a data set, a picture is missing, nothing came back, or a correction does not fit.
    """
    bad = BadRecords() if bad is None else bad
    if (out / METADATA).exists():
        raise InputError("there is a data set in this folder; choose another one", file=out)
    known = {label.id: label for label in labels}
    masks, rejected = _gather(file, corrections, known, bad)
    if not masks and not rejected:
        first = f"; the first was set aside because: {bad.found[0].reason}" if bad.found else ""
        raise InputError(f"nothing in it belongs to these labels{first}", file=file)
    splits = {abspath(one.image): one.split for one in also.samples if one.split != "train"} if also else {}
    records, said, rest, held = [], [], [], 0
    for label in labels:
        split = splits.get(abspath(label.image), "train")
        if label.id in masks:
            records.append(_record(label, masks[label.id], split))
        elif label.id in rejected:
            said.append({**_pair(label), "reason": rejected[label.id]})
        elif split == "train":
            rest.append(_pair(label))
        else:
            held += 1
            said.append({**_pair(label), "reason": f"nobody looked at it, and its picture is of split {split}"})
    pictures = {label.file_name: label.image for label in labels}
    named = {abspath(label.image): label.file_name for label in labels}
    more = _labelled(also, records, named, pictures) if also else []
    for name in pictures:
        if plain_path(name) in (METADATA, UNLABELLED, REJECTED, SKIPPED):
            raise InputError(f"a picture called {name} would stand in the way of the list of that name", file=out)
    out.mkdir(parents=True, exist_ok=True)
    place_pictures(pictures, out)
    for name, lines in ((UNLABELLED, rest), (REJECTED, said), (METADATA, [*more, *records])):
        write_whole(out / name, "".join(json.dumps(line) + "\n" for line in lines).encode())
    bad.write(out / SKIPPED)
    return Imported(len(records), len(said) - held, len(rest) + held, len(more), len(bad.found))


def _gather(
    file: Path, corrections: Iterable[Correction], known: Mapping[str, Label], bad: BadRecords
) -> tuple[dict[str, Rle], dict[str, str]]:
    """Mask of each corrected pair, and reason of each rejected one."""
    masks: dict[str, Rle] = {}
    rejected: dict[str, str] = {}
    for one in corrections:
        try:
            label = _belongs(one, known)
        except InputError as error:
            bad.add(error.reason, file=file, record=one.record)
            continue
        mask = Rle.encode(np.zeros(label.size, bool)) if one.nothing else one.mask
        if mask is None:
            rejected.setdefault(label.id, one.rejected or "rejected")
        elif label.id in masks:
            masks[label.id] = Rle.encode(masks[label.id].decode() | mask.decode())
        else:
            masks[label.id] = mask
    return masks, {key: why for key, why in rejected.items() if key not in masks}


def _belongs(one: Correction, known: Mapping[str, Label]) -> Label:
    label = known.get(one.id)
    if label is None:
        raise InputError(f"no label has the id {one.id}; were these the labels that were sent out?")
    if one.image:
        ours, theirs = f"/{label.file_name}", f"/{plain_path(one.image)}"
        if not (ours.endswith(theirs) or theirs.endswith(ours)):  # a tool may add a folder, or leave it out
            raise InputError(f"pair {one.id} is of the picture {label.file_name}, not of {one.image}")
    if one.mask is not None and (one.mask.height, one.mask.width) != label.size:
        raise InputError(
            f"a mask of {one.mask.height} x {one.mask.width} on a picture of {label.size[0]} x {label.size[1]}"
        )
    return label


def _pair(label: Label) -> dict[str, Any]:
    return {"image": label.file_name, "sentence": label.sentence, "id": label.id}


def _record(label: Label, mask: Rle, split: str) -> dict[str, Any]:
    return {
        "file_name": label.file_name, "id": label.id, "sentences": [label.sentence], "sentence_ids": [label.id],
        "split": split, "masks": [mask.to_coco()] if mask.area() else [], "chosen": True,
    }  # fmt: skip


def _labelled(
    dataset: DataSet, records: list[dict[str, Any]], named: Mapping[str, str], pictures: dict[str, str]
) -> list[dict[str, Any]]:
    """The labelled records of a data set, in the same form; what was corrected since is left out."""
    samples = [one for one in dataset.samples if one.targets is not None]
    taken = {record["id"] for record in records}
    others = picture_names({one.image for one in samples if abspath(one.image) not in named}, None)
    lines = []
    for one in samples:
        if not taken.isdisjoint(one.sentence_ids):
            continue
        name = named.get(abspath(one.image)) or f"{dataset.name}/{others[one.image][1]}"
        pictures.setdefault(name, one.image)
        lines.append({
            "file_name": name, "id": f"{dataset.name}-{one.id}" if one.id in taken else one.id,
            "sentences": list(one.sentences), "sentence_ids": list(one.sentence_ids), "split": one.split,
            "masks": [target.to_coco() for target in one.targets or ()], "chosen": one.chosen,
        })  # fmt: skip
    return lines
