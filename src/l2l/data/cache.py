"""The cache of things that are made once from the data: decoded pictures, soft proposals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from l2l.data.durable import naming


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
    return _kept(key, lambda file: np.save(file, build()))


def cached_parts(key: str, shape: tuple[int, ...], dtype: type, build: Callable[[], Iterable[np.ndarray]]) -> Tensor:
    """As `cached`, for tables that need not fit into memory: `build` makes their rows part by part, in order."""
    def write(file: BinaryIO) -> None:
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        rows = 0
        for part in build():
            assert part.shape[1:] == shape[1:] and part.dtype == dtype
            file.write(np.ascontiguousarray(part).data)
            rows += len(part)
        assert rows == shape[0]

    return _kept(key, write)


def _kept(key: str, write: Callable[[BinaryIO], None]) -> Tensor:
    path = cache_folder() / f"{key}.npy"
    try:
        array = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            with naming(path), part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        array = np.load(path, mmap_mode="c")
    return torch.from_numpy(array)
