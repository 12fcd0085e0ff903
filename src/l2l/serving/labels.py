"""What people say of masks, kept: a label is on the disk before anybody is told so.

The folder:

- `corrections.jsonl`: everything that was said, a line each, oldest first, only ever appended to. Another name than
  that of `l2l label`, which cuts its file to what it expects.
- `images/`: the pictures, under the digest of their content.
- `metadata.jsonl`: of each id, the last word where it was `accept`, in the layout that `l2l train --data` reads. Made
  from the former when the server starts and when it stops.

A decision of the queue can be taken back: its line has the verdict `open`, and whoever reads the file takes the pair as
one that nobody decided on (`exchange.decisions`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from l2l.data.durable import write_durably
from l2l.data.refer import MALFORMED, plain_path, plain_text
from l2l.errors import InputError
from l2l.exchange.decisions import CORRECTIONS, OPEN
from l2l.rle import Rle
from l2l.serving.pictures import Picture
from l2l.serving.refusal import Refusal

METADATA, IMAGES = "metadata.jsonl", "images"


class LabelFolder:
    """Takes labels from many threads; several servers may share the folder on one machine.

    Args:
        folder: made if it is not there.

    Raises:
        InputError: if it cannot be written, or holds a file of these names that is something else.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / CORRECTIONS
        self._lock = threading.Lock()
        self._said: dict[str, tuple[str, int]] = {}  # id -> its last verdict, and where the line begins
        self._read = 0
        try:
            (folder / IMAGES).mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                _locked(file)
                _cut_torn(file)
            _sync(folder)
        except OSError as error:
            raise InputError(f"labels cannot be written here: {error.strerror}", file=folder) from error
        self.write_metadata()

    def add(
        self, *, sentence: str, verdict: str, mask: Rle | None, picture: Picture | None,
        key: str | int | None = None, more: dict[str, Any] | None = None,
    ) -> str | int:
        """Keep one label; returns its id once it is on the disk.

        Args:
            sentence: what was meant.
            verdict: `accept`, `reject`, or `open`, which takes back what was said of this id.
            mask: of the picture's size; `None` where nobody drew one. picture: `None` where it cannot be got.
            key: the id of the pair; if there is none, one that the same label gets again, when it is sent once more
                because no answer came.
            more: what else is known, for the line.

        Raises:
            Refusal: if the disk does not take it (507); then nothing of it is in the file.
        """
        name = f"{IMAGES}/{picture.digest}{picture.suffix}" if picture else None
        said = {"file_name": name, "sentence": sentence, "verdict": verdict, "mask": mask.to_coco() if mask else None}
        if key is None:
            key = hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()
        line = {
            "id": key, **said, "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **(more or {}),
        }  # fmt: skip
        text = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            with self._lock:
                if picture and name and not (self.folder / name).exists():
                    write_durably(self.folder / name, picture.content)
                with self.path.open("ab+", buffering=0) as file:
                    _locked(file)
                    _cut_torn(file)  # of another server that was killed
                    _append(file, text)
        except OSError as error:
            raise Refusal(507, "disk", "the label could not be kept", "there may be no room on the server's disk; "
                          "send it again later") from error  # fmt: skip
        return key

    def verdicts(self) -> dict[str, str]:
        """The last word on each id, `accept` or `reject`; what other servers wrote here is among it."""
        with self._lock:
            self._catch_up()
            return {key: verdict for key, (verdict, _) in self._said.items() if verdict != OPEN}

    def last(self, key: str) -> dict[str, Any] | None:
        """The last line about an id, as it was written; `None` if nobody said anything of it, or took it back."""
        with self._lock:
            self._catch_up()
            if self._said.get(key, (OPEN, 0))[0] == OPEN:
                return None
            with self.path.open("rb") as file:
                file.seek(self._said[key][1])
                line: dict[str, Any] = json.loads(file.readline())
        return line

    def _catch_up(self) -> None:
        """Read what was appended since the last time."""
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:  # somebody cut the file
                self._read, self._said = 0, {}
            file.seek(self._read)
            for text in file:
                if not text.endswith(b"\n"):
                    break  # of a server that writes it at this moment
                line = json.loads(text)
                self._said[str(line["id"])] = (str(line["verdict"]), self._read)
                self._read += len(text)

    def write_metadata(self) -> int:
        """Make `metadata.jsonl` anew; returns its lines. Raises `InputError` for a damaged line."""
        last: dict[str, dict[str, Any]] = {}
        with self.path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if not text.endswith(b"\n"):
                    break  # of a server that writes it at this moment
                try:
                    line = json.loads(text)
                    key, verdict, name = str(line["id"]), str(line["verdict"]), line.get("file_name")
                    last.pop(key, None)
                    last[key] = _record(line, plain_path(name)) if verdict == "accept" and name else {}
                except MALFORMED as error:
                    raise InputError("this is no line of ours", file=self.path, record=f"line {number}") from error
        kept = [line for line in last.values() if line]
        write_durably(self.folder / METADATA, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return len(kept)


def _record(line: dict[str, Any], name: str) -> dict[str, Any]:
    """A line as `l2l.data.folder` reads it; an empty mask is a sentence that means nothing."""
    mask = Rle.from_coco(line["mask"])
    return {
        "id": str(line["id"]), "file_name": name, "sentence": plain_text(line["sentence"]),
        "masks": [mask.to_coco()] if mask.area() else [],
    }  # fmt: skip


def _locked(file: Any) -> None:
    """Until the file is closed, no other process writes to it."""
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def _cut_torn(file: Any) -> None:
    """Remove what was half written when a server was killed: whatever stands behind the last line end."""
    end = file.seek(0, os.SEEK_END)
    kept = end
    while kept:
        start = max(0, kept - 65536)
        file.seek(start)
        found = file.read(kept - start).rfind(b"\n")
        if found >= 0:
            kept = start + found + 1
            break
        kept = start
    if kept != end:
        file.truncate(kept)


def _append(file: Any, text: bytes) -> None:
    """All of it, on the disk, or nothing."""
    before = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(text)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(before)
        raise


def _sync(folder: Path) -> None:
    """Names of new files reach the disk only with their folder."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
