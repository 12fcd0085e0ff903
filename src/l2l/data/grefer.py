"""gRefCOCO's layout: that of REFER, but the refs are JSON, and a sentence may mean several things or nothing.

`grefs(NAME).json` is a list of refs as in `refs(NAME).p`. `ann_id` lists annotations of the `instances.json` beside it;
`[-1]` or an empty list, with the flag `no_target`, says that nothing in the picture is meant.
Data set: Liu, Ding, Jiang, "GRES: Generalized Referring Expression Segmentation", CVPR 2023,
https://github.com/henghuiding/gRefCOCO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2l.data.refer import read_json, read_records
from l2l.errors import BadRecords, InputError
from l2l.sample import Sample


def read_grefer(
    root: Path, *, images: Path | None = None, refs: str | None = None, bad: BadRecords | None = None
) -> list[Sample]:
    """Read a gRefCOCO set: one sample per ref, in the file's order.

    A sample has one target per annotation, none where nothing is meant; `Sample.mask` is their union. A ref without a
    sentence, of which the released file has some, is a bad one, and so is one whose `no_target` contradicts its
    annotations.

    Args:
        root: the folder with `grefs(*).json` and `instances.json`.
        images: the picture folder; otherwise the places where the REFER toolkit and COCO put it are searched.
        refs: which `grefs(*).json` where there are several.
        bad: takes refs that cannot be used; without it the first one raises.

    Raises:
        InputError: if a file is missing or unreadable, if it is not clear which refs are meant, or for a bad ref.
    """
    path = grefs_file(root, refs)
    bad = BadRecords() if bad is None else bad
    return read_records(path, read_json(path), images=images, bad=bad, check=_check_flag)


def grefs_files(root: Path) -> dict[str, Path]:
    """The `grefs(NAME).json` files of a folder by NAME, sorted."""
    return {path.name[6:-6]: path for path in sorted(root.glob("grefs(*).json"))}


def grefs_file(root: Path, refs: str | None) -> Path:
    """The one that is meant. Raises `InputError` if it is not there, or if it takes `refs` to choose."""
    found = grefs_files(root)
    if refs is not None and refs in found:
        return found[refs]
    if refs is None and len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise InputError("no grefs(*).json in this folder", file=root)
    wish = "say which refs to read" if refs is None else f"no grefs({refs}).json"
    raise InputError(f"{wish}; there are: {', '.join(found)}", file=root)


def _check_flag(ref: dict[str, Any], sample: Sample) -> None:
    """`ann_id` is what counts; `no_target`, where it is given, has to say the same."""
    flag = ref.get("no_target")
    if flag is not None and bool(flag) == bool(sample.targets):
        raise InputError(f"no_target is {flag}, but ann_id names {len(sample.targets or ())} annotations")
