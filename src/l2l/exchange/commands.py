"""`l2l export`, `l2l import` and `l2l rank`: their arguments, and what they print.

Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l.errors import BadRecords, InputError, printable
from l2l.subcommand import subcommand

if TYPE_CHECKING:
    from l2l.exchange.labels import Label

EXPORTS = ("coco", "png", "hub", "label-studio", "cvat")
IMPORTS = ("coco", "cvat", "label-studio", "png", "review")


def add(commands: Any) -> None:
    """Add the three commands to what `argparse.ArgumentParser.add_subparsers` returned."""
    one = subcommand(commands, "rank", rank, "which labels to trust, which to look at, and which pairs to label next",
                     "l2l rank labels --next 40",
                     "l2l rank labels --trust 0.9 --out ranking.csv")  # fmt: skip
    _labels(one)
    _reviewed(one, "pairs that were decided on there are left out")
    one.add_argument("--out", type=Path, metavar="FILE", help="the list, CSV (ranking.csv beside the labels)")
    one.add_argument("--next", type=int, default=40, metavar="N", help="how many pairs can be labelled (40)")
    one.add_argument("--trust", type=float, default=0.8, metavar="IOU", help="expected IoU to trust a mask by (0.8)")

    one = subcommand(commands, "export", export, "hand labels to another tool",
                     "l2l export labels --to label-studio --out tasks --min-score 0.3",
                     "l2l export labels --to coco --polygons --tolerance 1 --out coco.json",
                     "l2l export labels --reviewed corrections --to png --out masks")  # fmt: skip
    _labels(one)
    _reviewed(one, "accepted masks take the place of the labels', with a score of 1, and rejected pairs are left out")
    one.add_argument("--to", choices=EXPORTS, required=True,
                     help="coco: a JSON file; png: masks and index.csv; hub: parquet for Hugging Face datasets; "
                     "label-studio: a folder with tasks.json; cvat: a zip in the layout COCO 1.0")  # fmt: skip
    one.add_argument("--out", type=Path, required=True, metavar="PATH", help="the file (coco, cvat) or the folder")
    one.add_argument("--polygons", action="store_true", help="outlines, not pixels (coco, label-studio, cvat)")
    one.add_argument("--tolerance", type=float, metavar="PIXELS",
                     help="how far an outline may stray, for fewer points (--polygons; 0, exact)")  # fmt: skip
    one.add_argument("--min-score", type=float, default=0.0, metavar="S", help="only expected IoUs of S or more (0)")
    one.add_argument("--no-pictures", action="store_true", help="leave the pictures out (cvat)")
    one.add_argument("--address", default="", metavar="URL",
                     help="where pictures are served, as in https://host/images/ (label-studio; local)")  # fmt: skip

    one = subcommand(commands, "import", import_, "corrected masks, as a data set to go on training with",
                     "l2l import export.json --from label-studio --labels labels --out corrected",
                     "l2l import corrections --from review --labels labels --also DATA --out corrected")  # fmt: skip
    one.add_argument("file", type=Path, metavar="FILE", help="what the other tool exported; for png and review the "
                     "folder")  # fmt: skip
    one.add_argument("--from", dest="source", choices=IMPORTS, required=True,
                     help="which tool it was; review: the queue of l2l serve")  # fmt: skip
    _labels(one, "--labels", required=True)
    one.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the new data set")
    one.add_argument("--also", metavar="DATA", help="a data set whose labelled records are to stand beside them")
    one.add_argument("--skip-bad", action="store_true", help="set bad records aside, in FOLDER/skipped.jsonl")


def _labels(one: argparse.ArgumentParser, name: str = "labels", **more: Any) -> None:
    one.add_argument(name, type=Path, metavar="LABELS", help="the folder that l2l label wrote", **more)
    one.add_argument("--images", type=Path, metavar="DIR",
                     help="where the pictures are, if not where they were; or where the shards are")  # fmt: skip


def _read(args: argparse.Namespace) -> list[Label]:
    """The labels; if they are not all there yet, that is said."""
    from l2l.exchange.labels import read_labels, unfinished

    if said := unfinished(args.labels):
        print(said, file=sys.stderr)
    return read_labels(args.labels, images=args.images)


def _reviewed(one: argparse.ArgumentParser, what: str) -> None:
    one.add_argument("--reviewed", type=Path, metavar="DIR", help=f"what l2l serve kept of a review: {what}")


def rank(args: argparse.Namespace) -> None:
    from collections import Counter

    from l2l.exchange.rank import rank, shown, write_ranking

    labels = _read(args)
    if args.reviewed is not None:
        from l2l.exchange.decisions import read_decisions

        decided = {one.id for one in read_decisions(args.reviewed)}
        labels = [one for one in labels if one.id not in decided]
    found = rank(labels, next=args.next, trust=args.trust)
    folder = args.labels if args.labels.is_dir() else args.labels.parent
    out = args.out or folder / "ranking.csv"
    write_ranking(found, out)
    counts = Counter(one.action for one in found)
    print(f"{out}: {counts['label next']} to label next, {counts['look']} to look at, {counts['trust']} to trust")
    for one in found[:5]:
        if one.action == "label next":
            said = printable(f"{shown(one.label.image)}: {' '.join(one.label.sentence.split())}")
            print(f"  {said} (expected IoU {one.label.score:.2f})")


def export(args: argparse.Namespace) -> None:
    _check(args)
    labels = _read(args)
    left = labels
    if args.reviewed is not None:
        from l2l.exchange.decisions import apply_decisions, read_decisions

        left = apply_decisions(labels, read_decisions(args.reviewed), file=args.reviewed)
    chosen = [one for one in left if one.score >= args.min_score]
    if not chosen:
        raise InputError(f"no label has an expected IoU of {args.min_score:g} or more", file=args.labels)
    outline: dict[str, Any] = {"polygons": args.polygons, "tolerance": args.tolerance or 0.0}
    match args.to:
        case "coco":
            from l2l.exchange.coco import write_coco

            write_coco(chosen, args.out, **outline)
        case "png":
            from l2l.exchange.png import write_png

            write_png(chosen, args.out)
        case "hub":
            from l2l.exchange.hub import write_hub

            write_hub(chosen, args.out)
        case "label-studio":
            from l2l.exchange.label_studio import write_label_studio

            write_label_studio(chosen, args.out, address=args.address, **outline)
        case "cvat":
            from l2l.exchange.cvat import write_cvat

            write_cvat(chosen, args.out, pictures=not args.no_pictures, **outline)
    rejected = f", {len(labels) - len(left)} rejected ones left out" if args.reviewed is not None else ""
    print(f"{args.out}: {len(chosen)} of {len(labels)} labels, in {len({one.file_name for one in chosen})} pictures"
          + rejected)  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    """What goes with what."""
    if args.polygons and args.to not in ("coco", "label-studio", "cvat"):
        raise InputError(f"--polygons is for coco, label-studio and cvat, not for {args.to}")
    if args.tolerance is not None and (not args.polygons or not 0 <= args.tolerance < 1000):
        raise InputError("--tolerance is a number of pixels, 0 or more, and goes with --polygons")
    if args.no_pictures and args.to != "cvat":
        raise InputError("--no-pictures is for cvat")
    if args.address and args.to != "label-studio":
        raise InputError("--address is for label-studio")


def import_(args: argparse.Namespace) -> None:
    from l2l.data.read import read
    from l2l.exchange.corrected import REJECTED, UNLABELLED, write_corrected

    labels = _read(args)
    also = None if args.also is None else read(args.also)
    bad = BadRecords(skip=args.skip_bad)
    match args.source:
        case "coco":
            from l2l.exchange.coco import read_coco as reading
        case "cvat":
            from l2l.exchange.cvat import read_cvat as reading
        case "label-studio":
            from l2l.exchange.label_studio import read_label_studio as reading
        case "review":
            from l2l.exchange.decisions import read_decisions as reading
        case _:
            from l2l.exchange.png import read_png as reading
    found = write_corrected(args.file, reading(args.file, bad=bad), labels, args.out, bad=bad, also=also)
    print(
        f"{args.out}: {found.corrected} corrected, {found.rejected} rejected ({REJECTED}), {found.unlabelled} that "
        f"nobody looked at ({UNLABELLED})" + (f", {found.added} records of {args.also}" if also else "")
        + (f", {found.skipped} bad ones set aside" if found.skipped else "")
    )  # fmt: skip
    print(f"next: l2l train --data {args.out} --rate 1 --unlabelled {args.out / UNLABELLED} --out RUN")
