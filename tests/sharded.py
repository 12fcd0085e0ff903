"""A tiny run and six shards of pairs for it."""

from __future__ import annotations

from pathlib import Path

from tiny import make_world, stir, train_arguments

import l2l
from l2l.cli import main
from l2l.data.shards import shard_files, write_shards

SHARDS = 6


def make_shards(root: Path) -> tuple[Path, Path]:
    """The run's folder, and the folder of the shards."""
    world = make_world(root)
    assert main(train_arguments(world, world / "run", steps=2)) == 0
    index = write_shards(l2l.read(world / "data" / "unlabelled.jsonl"), world / "shards", per_shard=8)
    assert index["pictures"] >= SHARDS
    files = shard_files(world / "shards")
    assert len(files) >= SHARDS
    return stir(world / "run"), world / "shards"


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
