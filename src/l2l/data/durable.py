"""Files that survive a power cut and many writers: a reader sees the old file or the whole new one, on any host."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

DRAFT = ".draft"


def write_durably(path: Path, content: bytes) -> None:
    """Write under a name that nobody else uses, wait for the disk, then rename. Many hosts may share the folder."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def remove_drafts(folder: Path) -> None:
    """What killed writers left in a folder. Nobody else may be writing there."""
    for draft in folder.glob(f"*{DRAFT}"):
        draft.unlink(missing_ok=True)
