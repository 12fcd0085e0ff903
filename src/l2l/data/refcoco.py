"""The published sets of the RefCOCO family: which files they are, what is in them, and the field's splits of them.

Counts: Yu et al., "Modeling Context in Referring Expressions", ECCV 2016 (RefCOCO, RefCOCO+); Mao et al., "Generation
and Comprehension of Unambiguous Object Descriptions", CVPR 2016 (RefCOCOg, google), Nagaraja et al., ECCV 2016
(RefCOCOg, umd); Liu et al., "GRES", CVPR 2023 (gRefCOCO); as in the released files, by
https://www.tensorflow.org/datasets/catalog/ref_coco and the papers that use them.
"""

from __future__ import annotations

import math
import os
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from l2l.data.pickles import load_plain
from l2l.data.refer import MALFORMED, plain_id, plain_path, plain_text, read_json
from l2l.errors import InputError

PICTURES = ("images/mscoco/images/train2014", "images/train2014", "train2014")
"""Where the pictures may be, relative to the root; the last place needs `--images`."""
RATES = (0.001, 0.01, 0.05, 0.1)
"""The field's label rates: shares of the train images."""
UNKNOWN = "not known here"
TOOLKIT = "https://github.com/lichengunc/refer"


@dataclass(frozen=True)
class Counts:
    """What one split holds; `None` is not known here."""

    images: int | None = None
    refs: int | None = None
    sentences: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published set."""

    title: str
    folder: str
    """Its folder under the root."""
    refs: str
    """The NAME of its refs file, for `--refs`."""
    file: str
    """Its refs file."""
    source: tuple[str, ...]
    """Where the files in its folder come from, in lines."""
    known: dict[str, Counts]
    """What is in it, by split."""
    notes: tuple[str, ...] = ()
    """What to know before it is used."""
    skip_bad: bool = False
    """Whether the released file holds bad records."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is there of a set."""

    missing: tuple[str, ...]
    """One line for each file or folder."""
    counts: dict[str, Counts] | None
    """By split; `None` without a refs file."""
    shared: int
    """Images in more than one split."""
    malformed: int
    """Records that cannot be counted."""
    pictures: str
    """Which of `PICTURES` is there; empty for none."""


def _unc(folder: str) -> tuple[str, ...]:
    """Where a set of the REFER toolkit came from."""
    return (
        f"They were the folder {folder}/ of http://bvisionweb1.cs.unc.edu/licheng/referit/data/{folder}.zip",
        f"({TOOLKIT}). That server has been off since 2022, and nobody hosts it any more.",
        f"Ask whoever has a copy; {TOOLKIT}/issues/14 tells of some.",
        "This command compares the counts of what you find with the published ones.",
    )


_SHARED = (
    "This partition is by object: one image may be in several splits, so scores on it are not scores on unseen images.",
    "`l2l data check` will say so of every such image.",
)

RECIPES = {
    "refcoco_unc": Recipe(
        title="RefCOCO (unc)", folder="refcoco", refs="unc", file="refs(unc).p", source=_unc("refcoco"),
        known={
            "train": Counts(16_994, 42_404, 120_624), "val": Counts(1_500, 3_811, 10_834),
            "testA": Counts(750, 1_975, 5_657), "testB": Counts(750, 1_810, 5_095),
        },
        notes=(
            "The published draw at 1 % has 169 images, 432 masks and 1,222 sentences. It is one draw: another has",
            "as many images, but which they are depends on the seed, and so do the numbers of masks and sentences.",
        ),
    ),
    "refcoco_google": Recipe(
        title="RefCOCO (google)", folder="refcoco", refs="google", file="refs(google).p", source=_unc("refcoco"),
        known={"train": Counts(19_213, 40_000), "val": Counts(4_559, 5_000), "test": Counts(4_527, 5_000)},
        notes=_SHARED,
    ),
    "refcoco+_unc": Recipe(
        title="RefCOCO+ (unc)", folder="refcoco+", refs="unc", file="refs(unc).p", source=_unc("refcoco+"),
        known={
            "train": Counts(16_992, 42_278, 120_191), "val": Counts(1_500, 3_805, 10_758),
            "testA": Counts(750, 1_975, 5_726), "testB": Counts(750, 1_798, 4_889),
        },
    ),
    "refcocog_umd": Recipe(
        title="RefCOCOg (umd)", folder="refcocog", refs="umd", file="refs(umd).p", source=_unc("refcocog"),
        known={
            "train": Counts(21_899, 42_226, 80_512), "val": Counts(1_300, 2_573, 4_896),
            "test": Counts(2_600, 5_023, 9_602),
        },
    ),
    "refcocog_google": Recipe(
        title="RefCOCOg (google)", folder="refcocog", refs="google", file="refs(google).p", source=_unc("refcocog"),
        known={"train": Counts(24_698, 44_822, 85_474), "val": Counts(4_650, 5_000, 9_536)},
        notes=(*_SHARED, "There is no public test split."),
    ),
    "grefcoco_unc": Recipe(
        title="gRefCOCO (unc)", folder="grefcoco", refs="unc", file="grefs(unc).json",
        source=("The README of https://github.com/henghuiding/gRefCOCO has the links to both.",),
        known={
            "train": Counts(sentences=209_344), "val": Counts(), "testA": Counts(), "testB": Counts(),
        },
        notes=(
            "The paper counts 278,232 sentences on 19,994 images; the released file has 259,859: some were held back.",
            "Some refs of the released file have no sentence: --skip-bad sets them aside.",
        ),
        skip_bad=True,
    ),
}  # fmt: skip


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises `InputError` if there is none."""
    if name not in RECIPES:
        raise InputError(f"no recipe {name}; there are: {', '.join(RECIPES)}")
    return RECIPES[name]


def look(recipe: Recipe, root: Path) -> Found:
    """Look which files are there, and count refs and sentences; pictures are looked for by name and not opened.

    Raises:
        InputError: if a file is there and cannot be read.
    """
    file, instances = root / recipe.folder / recipe.file, root / recipe.folder / "instances.json"
    missing = [str(path) for path in (file, instances) if not path.is_file()]
    pictures = next((place for place in PICTURES if (root / place).is_dir()), "")
    if not pictures:
        missing.append(f"{root / PICTURES[0]}{os.sep}, the folder of the pictures")
    counts, splits_of, malformed = _count(_records(file)) if file.is_file() else (None, {}, 0)
    if splits_of and instances.is_file():
        names = _picture_names(instances)
        missing += [f"{instances}: nothing about image {image}" for image in splits_of if image not in names]
        if pictures:
            missing += _missing_pictures(root / pictures, [names[image] for image in splits_of if image in names])
    shared = sum(len(splits) > 1 for splits in splits_of.values())
    return Found(missing=tuple(missing), counts=counts, shared=shared, malformed=malformed, pictures=pictures)


def differences(recipe: Recipe, found: Found) -> list[str]:
    """One line for each count that is not the known one; what is not known, or not there, is not compared."""
    if found.counts is None:
        return []
    lines = []
    for split in [*recipe.known, *(name for name in found.counts if name not in recipe.known)]:
        known, here = recipe.known.get(split), found.counts.get(split, Counts(0, 0, 0))
        if known is None:
            lines.append(f"{split}: a split that the published set does not have")
            continue
        for one in fields(Counts):
            wanted, number = getattr(known, one.name), getattr(here, one.name)
            if wanted is not None and number != wanted:
                lines.append(f"{split}: {one.name} {number:,}, the published set has {wanted:,}")
    return lines


def labelled_images(rate: float, images: int) -> int:
    """How many images `l2l.data.splits.draw` labels: floor(`rate` x `images`), in decimals."""
    return math.floor(Fraction(str(float(rate))) * images)


def guide(name: str, root: Path) -> tuple[str, bool]:
    """What to get, what is there, what differs, and the commands of the field's splits.

    Args:
        name: a key of `RECIPES`.
        root: the folder that holds the set's folder and the pictures'.

    Returns:
        Plain text, and whether all files are there and all known counts are met.

    Raises:
        InputError: if there is no such recipe, if `root` is the set's own folder, or if a file cannot be read.
    """
    recipe = find_recipe(name)
    if (root / recipe.file).is_file():
        raise InputError(f"the data set's own folder; the root is the one that holds {recipe.folder}/", file=root)
    found = look(recipe, root)
    wrong = differences(recipe, found)
    lines = [f"{recipe.title}, in {root}", ""]
    if found.missing:
        lines += ["missing:", *(f"  {line}" for line in found.missing), "", *_how_to_get(recipe, root), ""]
    else:
        lines += ["all files are there", ""]
    if found.counts is None:
        lines += ["published counts:", *_table(recipe.known)]
    else:
        unknown = any(None in vars(known).values() for known in recipe.known.values())
        agree = "none" + (f"; some published counts are {UNKNOWN}" if unknown else "")
        lines += [f"counts of {recipe.file} as it is here:", *_table(found.counts), ""]
        lines += [f"differences: {len(wrong) or agree}", *(f"  {line}" for line in wrong)]
    if found.malformed:
        lines.append(f"malformed records, not counted: {found.malformed:,}; `l2l data check` names them")
    if found.shared:
        lines.append(f"images in more than one split: {found.shared:,}")
    lines += ["", *recipe.notes] if recipe.notes else []
    lines += ["", *_protocol(name, recipe, root, found)]
    return "\n".join(lines), not (found.missing or wrong or found.malformed)


def _records(file: Path) -> list[Any]:
    records = read_json(file) if file.suffix == ".json" else load_plain(file)
    if not isinstance(records, list):
        raise InputError("a refs file is a list of refs", file=file)
    return records


@dataclass
class _Tally:
    images: set[str] = field(default_factory=set)
    refs: int = 0
    sentences: int = 0


def _count(records: list[Any]) -> tuple[dict[str, Counts], dict[str, set[str]], int]:
    """Counts by split, the splits of each image, and how many records cannot be counted."""
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    malformed = 0
    for ref in records:
        try:
            split, image = plain_text(ref.get("split", "train")), plain_id(ref["image_id"])
            sentences = len(ref["sentences"])
        except MALFORMED:
            malformed += 1
            continue
        tally = tallies[split]
        tally.images.add(image)
        tally.refs += 1
        tally.sentences += sentences
        splits_of[image].add(split)
    counts = {name: Counts(len(one.images), one.refs, one.sentences) for name, one in tallies.items()}
    return counts, splits_of, malformed


def _picture_names(instances: Path) -> dict[str, str]:
    """The pictures' file names by image id."""
    try:
        return {plain_id(row["id"]): plain_path(row["file_name"]) for row in read_json(instances)["images"]}
    except InputError:
        raise
    except MALFORMED as error:
        raise InputError("a COCO file lists images, each with id and file_name", file=instances) from error


def _missing_pictures(folder: Path, names: Sequence[str]) -> list[str]:
    """One line for each picture that is not in the folder; one for all of them where there is none at all."""
    with os.scandir(folder) as entries:
        there = {entry.name for entry in entries}
    absent = [name for name in dict.fromkeys(names) if name not in there]
    if len(absent) > 1 and len(absent) == len(set(names)):
        return [f"{folder}{os.sep}: none of the {len(absent):,} pictures is in it, such as {absent[0]}"]
    return [str(folder / name) for name in absent]


def _how_to_get(recipe: Recipe, root: Path) -> list[str]:
    return [
        f"{recipe.file} and instances.json:", *(f"  {line}" for line in recipe.source),
        "the pictures:",
        "  train2014.zip of COCO, 82,783 pictures, 13 GB: https://cocodataset.org/#download",
        "how to lay them out:",
        f"  {root}{os.sep}",
        f"    {recipe.folder}/{recipe.file}",
        f"    {recipe.folder}/instances.json",
        f"    {PICTURES[0]}/COCO_train2014_000000000009.jpg and so on ({' or '.join(PICTURES[1:])} will do)",
    ]  # fmt: skip


def _table(counts: dict[str, Counts]) -> list[str]:
    """Counts in aligned columns, indented."""
    rows = [["split", *(one.name for one in fields(Counts))]]
    for split, numbers in counts.items():
        values = vars(numbers).values()
        rows.append([split, *(UNKNOWN if value is None else f"{value:,}" for value in values)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(["", *cells]))
    return lines


def _protocol(name: str, recipe: Recipe, root: Path, found: Found) -> list[str]:
    """The label rates, and the commands that draw and train on them."""
    images = (recipe.known if found.counts is None else found.counts).get("train", Counts(0)).images
    head = "label rates: floor(rate x train images) images are labelled, with all their refs; the others have no mask"
    if images == 0:
        return [head, "  there is no split train here, so there is nothing to draw from"]
    if images is None:
        rates = [f"  {rate:>5.1%}  {UNKNOWN}: it takes the data to count the train images" for rate in RATES]
    else:
        rates = [f"  {rate:>5.1%}  {labelled_images(rate, images):>6,} of {images:,} images" for rate in RATES]
    where = [shlex.quote(str(root / recipe.folder)), "--refs", recipe.refs]
    if found.pictures == PICTURES[-1]:  # the reader does not look there by itself
        where += ["--images", shlex.quote(str(root / found.pictures))]
    data = " ".join([*where, *(["--skip-bad"] if recipe.skip_bad else [])])
    lines = [
        head, *rates, "",
        "commands, for seed 0; draw several seeds, and report mean and spread:",
        f"  l2l data check {data} --deep",
        f"  l2l prior {data} --source endpoint --url http://127.0.0.1:8000/v1 --model MODEL --out priors/{name}",
    ]  # fmt: skip
    for rate in RATES:
        if images is not None and not labelled_images(rate, images):
            lines.append(f"  (a rate of {rate:g} yields no image here)")
            continue
        draw = f"{name}-{100 * rate:g}pct-seed0"
        lines += [
            f"  l2l data split {data} --rate {rate:g} --seed 0 --out splits/{draw}.json",
            f"  l2l train --data {data} --split-file splits/{draw}.json --seed 0 --prior priors/{name} --method l2l "
            f"--size 480x480 --out runs/{draw}-l2l",
        ]
    drawn = [rate for rate in RATES if images is None or labelled_images(rate, images)]
    shown = 0.01 if 0.01 in drawn else max(drawn, default=0.01)
    tests = [split for split in recipe.known if split != "train"]
    return [
        *lines,
        *(f"  l2l evaluate runs/{name}-{100 * shown:g}pct-seed0-l2l --split {split}" for split in tests),
        "--method supervised needs no --prior. 480x480 is what published code sees; --steps and --device are yours to",
        "choose. A model that gives priors has often seen RefCOCO in its training: say so beside the numbers.",
    ]
