"""What the user got wrong, said in one line; and what to do with a bad record: stop, or set it aside."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from l2l.data.durable import write_durably


def printable(text: str) -> str:
    """Text for a terminal: what would steer it (escapes, changes of direction, half a surrogate) is spelt out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class InputError(ValueError):
    """A mistake in the user's input. The command line prints it as one line and exits with 2, without a traceback.

    Args:
        reason: what is wrong and, where we can say it, what to do.
        file: the file at fault.
        record: the record inside it (a ref id, a line number, a sentence).
    """

    def __init__(self, reason: str, *, file: object = None, record: object = None):
        self.reason, self.file, self.record = reason, file, record
        place = ", ".join(str(part) for part in (file, record) if part is not None)
        text = f"{place}: {reason}" if place else reason
        super().__init__(printable(" ".join(text.split())))


@dataclass(frozen=True)
class BadRecord:
    """One record that was set aside."""

    file: str
    record: str
    reason: str


@dataclass
class BadRecords:
    """Collects bad records when `skip` is set; otherwise the first one raises `InputError`."""

    skip: bool = False
    found: list[BadRecord] = field(default_factory=list)

    def add(self, reason: str, *, file: object, record: object) -> None:
        """Report one bad record. Raises `InputError` unless `skip` is set."""
        if not self.skip:
            raise InputError(reason, file=file, record=record)
        self.found.append(BadRecord(str(file), str(record), " ".join(reason.split())))

    def write(self, path: Path) -> None:
        """Write what was set aside as JSON lines (`file`, `record`, `reason`); nothing is written when all was well."""
        if self.found:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, "".join(json.dumps(asdict(bad)) + "\n" for bad in self.found).encode())
