"""Files that survive a power cut and many writers: a reader sees the old file or the whole new one, on any host."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

DRAFT = ".draft"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No room: on the disk, in the user's share of it, or for a file of that size."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it an `OSError` that does not say which file it is about says this one, as when there is no room left."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_durably(path: Path, content: bytes) -> None:
    """Write under a name that nobody else uses, wait for the disk, then rename. Many hosts may share the folder."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT}")
    try:
        with naming(path), draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename gets there with its folder only."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old one or the whole new one; after a power cut it may be gone."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def append(file: FileIO, text: bytes) -> None:
    """Write to the end of an unbuffered file, all of it; an `OSError` names the file, and closing raises no other."""
    with naming(Path(str(file.name))):
        rest = memoryview(text)
        while rest:
            rest = rest[file.write(rest) :]


def sync(file: FileIO) -> None:
    """Wait until what was written is on the disk; an `OSError` names the file."""
    with naming(Path(str(file.name))):
        os.fsync(file.fileno())


def remove_drafts(folder: Path) -> None:
    """What killed writers left in a folder. Nobody else may be writing there."""
    for draft in folder.glob(f"*{DRAFT}"):
        draft.unlink(missing_ok=True)
