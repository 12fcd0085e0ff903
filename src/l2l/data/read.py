"""One way in: a path, or the word `scenes`, becomes a data set."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from l2l.data.folder import read_folder, read_pairs
from l2l.data.grefer import grefs_file, grefs_files, read_grefer
from l2l.data.refer import read_refer, refs_file, refs_files
from l2l.errors import BadRecord, BadRecords, InputError
from l2l.sample import Sample

_SPLIT_ORDER = ("train", "val", "test", "testA", "testB")


@dataclass(frozen=True)
class DataSet:
    """Samples that belong together."""

    name: str
    """How reports call it: the folder's or the file's name, or `scenes`."""
    samples: tuple[Sample, ...]
    """All splits, in the order they were read."""
    root: Path | None = None
    """The folder (or file) it was read from; none for drawn pictures."""
    bad: tuple[BadRecord, ...] = ()
    """The records that were set aside."""

    def splits(self) -> dict[str, int]:
        """Samples per split: train, val, the tests, then what else there is by name."""
        counts = Counter(sample.split for sample in self.samples)
        known = [name for name in _SPLIT_ORDER if name in counts]
        return {name: counts[name] for name in [*known, *sorted(set(counts) - set(known))]}

    def split(self, name: str) -> list[Sample]:
        """The samples of one split. Raises `InputError` if there are none."""
        samples = [sample for sample in self.samples if sample.split == name]
        if not samples:
            raise InputError(f"no split {name}; there are: {', '.join(self.splits()) or 'none'}", file=self.root)
        return samples

    def fingerprint(self) -> str:
        """16 hex digits that change when an id, a sentence, a mask or a split does; order and place do not matter."""
        return fingerprint(self.samples)


def fingerprint(samples: Iterable[Sample]) -> str:
    """See `DataSet.fingerprint`."""
    lines = []
    for sample in samples:
        masks = None if sample.targets is None else [target.to_coco() for target in sample.targets]
        pairs = list(sample.pairs())
        lines.append(json.dumps([sample.id, sample.image_id, sample.split, sample.size, pairs, masks]))
    lines.sort()
    found = hashlib.blake2b(digest_size=8)
    for number, line in enumerate(lines):
        found.update((b"\n" if number else b"") + line.encode())
    return found.hexdigest()


def read(
    data: str | Path,
    *,
    images: Path | None = None,
    refs: str | None = None,
    skip_bad: bool = False,
    scenes_count: int = 1000,
    scenes_seed: int = 0,
    scenes_world: str = "home",
    scenes_no_target: float = 0.0,
    scenes_several: float = 0.0,
) -> DataSet:
    """Read a data set by what is there.

    Args:
        data: `scenes` for drawn pictures, a folder with `refs(*).p` (REFER), `grefs(*).json` (gRefCOCO) or
            `metadata.jsonl`, or a JSONL file of image-sentence pairs.
        images: the picture folder, if it is not where the format puts it.
        refs: which `refs(*).p` or `grefs(*).json` of a folder that has several.
        skip_bad: set bad records aside (`DataSet.bad`) instead of stopping at the first.
        scenes_count: how many pictures to draw.
        scenes_seed: the seed to draw them from.
        scenes_no_target, scenes_several: shares of drawn sentences that mean nothing, or several things.
        scenes_world: `home`, `away`, or `both`: every other group of ten pictures is of the other world.

    Raises:
        InputError: if there is no data set, if it holds no usable record, or for a bad record unless `skip_bad`.
    """
    if str(data) == "scenes":
        from l2l.data.scenes import world_samples

        name = "scenes" if scenes_world == "home" else f"scenes ({scenes_world})"
        draw = partial(world_samples, scenes_count, scenes_seed, no_target=scenes_no_target, several=scenes_several)
        if scenes_world != "both":
            return DataSet(name, tuple(draw(world=scenes_world)))
        worlds = (draw(world=world) for world in ("home", "away"))
        mixed = [one for turn, world in enumerate(worlds) for one in world if _index(one) // 10 % 2 == turn]
        return DataSet(name, tuple(mixed))
    path = Path(data)
    bad = BadRecords(skip=skip_bad)
    name = path.resolve().name
    if path.is_dir() and grefs_files(path):
        if refs_files(path):
            raise InputError("both refs(*).p and grefs(*).json; give each set a folder of its own", file=path)
        file = grefs_file(path, refs)
        name = name if refs is None else f"{name}_{refs}"
        samples = read_grefer(path, images=images, refs=refs, bad=bad)
    elif path.is_dir() and refs_files(path):
        file = refs_file(path, refs)
        name = name if refs is None else f"{name}_{refs}"
        samples = read_refer(path, images=images, refs=refs, bad=bad)
    elif refs is not None:
        raise InputError(f"refs={refs} chooses among refs(*).p or grefs(*).json, and there are none here", file=path)
    elif path.is_dir() and (path / "metadata.jsonl").is_file():
        file = path / "metadata.jsonl"
        samples = read_folder(path, images=images, bad=bad)
    elif path.is_file() and path.name == "metadata.jsonl":
        return read(path.parent, images=images, skip_bad=skip_bad)
    elif path.is_file() and path.suffix == ".jsonl":
        file, name = path, path.stem
        samples = read_pairs(path, images=images, bad=bad)
    else:
        raise InputError(_what_is_wrong(path), file=path)
    if not samples:
        first = f", the first because: {bad.found[0].reason}" if bad.found else ""
        raise InputError(f"no usable record ({len(bad.found)} set aside{first})", file=file)
    return DataSet(name, tuple(samples), path, tuple(bad.found))


def _index(sample: Sample) -> int:
    return int(sample.image_id.rpartition("-")[2])


def _what_is_wrong(path: Path) -> str:
    if not path.exists():
        return "no such file or folder (and the only data set with a name is scenes)"
    if not path.is_dir():
        return "of files, only .jsonl with image-sentence pairs can be read"
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    inside = [str(folder) for folder in folders if refs_files(folder) or grefs_files(folder)]
    if inside:
        return f"this folder holds data sets; name one of them: {', '.join(inside)}"
    return "no data set: looked for refs(*).p or grefs(*).json with instances.json, and for metadata.jsonl"
