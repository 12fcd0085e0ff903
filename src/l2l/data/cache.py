"""The cache of things that are made once from the data: decoded pictures, soft proposals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def cache_folder() -> Path:
    """Where decoded pictures and proposals are kept: `$L2L_CACHE`, else the user's cache folder."""
    return Path(os.environ.get("L2L_CACHE") or Path.home() / ".cache" / "l2l")


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Within it the cache is `folder`, for the whole process: for pictures that are seen once and never again."""
    before = os.environ.get("L2L_CACHE")
    os.environ["L2L_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["L2L_CACHE"]
        else:
            os.environ["L2L_CACHE"] = before


def cached(key: str, build: Callable[[], np.ndarray]) -> Tensor:
    """An array from the cache, memory-mapped, or built and put there; a damaged file is built again."""
    path = cache_folder() / f"{key}.npy"
    try:
        array = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        made = build()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, made)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        array = np.load(path, mmap_mode="c")
    return torch.from_numpy(array)
