"""The embedded world on disk: `scenes` as a REFER set with unlabelled pairs beside it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from l2l.data.refer import write_refer
from l2l.data.scenes import world_samples
from l2l.errors import InputError


def write_scenes(
    out: Path | str, *, count: int, seed: int = 0, world: str = "home", unlabelled_share: float = 0.5
) -> tuple[int, int]:
    """Draw `count` pictures and write them as a REFER set; every tenth is of split `val`.

    Args:
        out: the folder.
        unlabelled_share: of the train pictures, how many come without masks, as pairs in `unlabelled.jsonl`.

    Returns:
        Records with masks, and records without.

    Raises:
        InputError: if an argument is out of its range.
    """
    if count < 1:
        raise InputError(f"count {count}: there has to be a picture")
    if not 0 <= unlabelled_share <= 1:
        raise InputError(f"an unlabelled share of {unlabelled_share:g}; it lies in [0, 1]")
    samples = world_samples(count, seed, world=world)
    train = {sample.image_id for sample in samples if sample.split == "train"}
    order = sorted(train, key=lambda name: hashlib.blake2b(f"unlabelled/{seed}/{name}".encode()).digest())
    hidden = set(order[: int(unlabelled_share * len(order))])
    shown = [replace(one, targets=None) if one.image_id in hidden else one for one in samples]
    write_refer(Path(out), ((sample, None) for sample in shown), name="scenes")
    without = sum(sample.targets is None for sample in shown)
    return len(shown) - without, without
