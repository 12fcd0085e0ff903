"""The prior store: a frozen model is paid once per image, sentence and model, whatever happens in between.

One SQLite file (its journal makes a write whole or absent, also when the process is killed in the middle), keyed by the
content of the picture, the sentence and the source's fingerprint. So a store can be moved, merged, or resumed.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from l2l.data.images import digest
from l2l.errors import InputError
from l2l.priors.prior import Prior, Source
from l2l.sample import Sample, pair_key

FILE, LEFT = "priors.sqlite", "left"
UNWRITTEN = {sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_TRUNCATE,
             sqlite3.SQLITE_IOERR_SHMSIZE}  # fmt: skip


class PriorStore:
    """Priors on disk.

    Args:
        path: the store's folder, made if it is not there and `create` is set.
        create: open for writing.

    Raises:
        InputError: if there is no store at `path`, or what is there is damaged.
    """

    def __init__(self, path: Path | str, *, create: bool = False):
        self.path, self._writes = Path(path), create
        file = self.path / FILE
        if not create and not file.is_file():
            raise InputError(f"no prior store here (there is no {FILE})", file=self.path)
        if create:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot make a store: {error.strerror}", file=self.path) from error
        with self._damage():
            self._db = sqlite3.connect(file if create else f"{file.resolve().as_uri()}?mode=ro", uri=not create)
            self._db.execute("PRAGMA trusted_schema=OFF")
            foreign = "sql IS NOT NULL AND (type != 'table' OR sql LIKE 'CREATE VIRTUAL%')"
            other = self._db.execute(f"SELECT name FROM sqlite_master WHERE {foreign}").fetchone()
            if other:  # a view may compute without end, a trigger write what nobody asked for
                raise InputError(f"no prior store of ours: it holds {other[0]}", file=file)
            if create:
                self._db.execute("PRAGMA journal_mode=WAL")
                columns = "key TEXT PRIMARY KEY, value TEXT NOT NULL"
                self._db.execute(f"CREATE TABLE IF NOT EXISTS prior ({columns}) WITHOUT ROWID")
                self._db.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self._db.execute("SELECT key FROM prior LIMIT 1").fetchall()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / FILE)) from error
            if error.sqlite_errorcode in UNWRITTEN:
                raise InputError(f"the prior store cannot be written ({error}); nothing that was written before is "
                                 "lost: make room; the same command goes on", file=self.path / FILE) from error
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise InputError("another process is writing this prior store: wait for it; the same command goes on",
                                 file=self.path / FILE) from error  # fmt: skip
            raise InputError(f"the prior store is damaged or not writable: {error}", file=self.path / FILE) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise InputError(f"the prior store is damaged or not writable: {error}", file=self.path / FILE) from error

    def about(self) -> dict[str, str]:
        """What was written with `describe`: the source's `name` and `fingerprint`."""
        with self._damage():
            told = dict(self._db.execute("SELECT name, value FROM about WHERE name != ?", (LEFT,)))
        if not all(isinstance(part, str) for pair in told.items() for part in pair):
            raise InputError("no prior store of ours: what it says of its source is no text", file=self.path / FILE)
        return told

    def describe(self, source: Source) -> None:
        """Note whose priors these are. Raises `InputError` if the store already holds another source's."""
        mine = {"name": source.name, "fingerprint": source.fingerprint()}
        already = self.about()
        if already and already != mine:
            whose = already.get("name")
            raise InputError(f"this store holds priors of {whose}; give {source.name} its own", file=self.path)
        with self._damage(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", mine.items())

    def expect(self, left: int) -> None:
        """Note how many pairs are to be asked about yet; `put` counts down."""
        with self._damage(), self._db:
            self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (LEFT, str(left)))

    def left(self) -> int:
        """Of the last filling, the pairs that were not answered: 0 unless it was cut off, or the model gave none."""
        with self._damage():
            row = self._db.execute("SELECT value FROM about WHERE name = ?", (LEFT,)).fetchone()
        return int(row[0]) if row and str(row[0]).isdecimal() else 0

    def __len__(self) -> int:
        with self._damage():
            return int(self._db.execute("SELECT COUNT(*) FROM prior").fetchone()[0])

    def get(self, keys: Sequence[str]) -> dict[str, Prior]:
        """The priors there are for these keys. Raises `InputError` where a stored value is damaged."""
        found: dict[str, Prior] = {}
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            with self._damage():
                rows = self._db.execute(f"SELECT key, value FROM prior WHERE key IN ({marks})", part).fetchall()
            for key, value in rows:
                try:
                    found[key] = Prior.from_json(json.loads(value))
                except (ValueError, TypeError, RecursionError) as error:
                    raise InputError(f"a damaged prior: {error}", file=self.path / FILE, record=key) from error
        return found

    def known(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that have a prior; the priors themselves are not read."""
        found: set[str] = set()
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            marks = ",".join("?" * len(part))
            with self._damage():
                found.update(key for key, in self._db.execute(f"SELECT key FROM prior WHERE key IN ({marks})", part))
        return found

    def put(self, items: Iterable[tuple[str, Prior]]) -> None:
        """Write priors, all or none of this call."""
        rows = [(key, json.dumps(prior.to_json(), separators=(",", ":"))) for key, prior in items]
        with self._damage(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO prior VALUES (?, ?)", rows)
            self._db.execute("UPDATE about SET value = MAX(0, value - ?) WHERE name = ?", (len(rows), LEFT))

    def close(self) -> None:
        """Close the file; a writer leaves it in a form that a read-only folder can serve."""
        if self._writes:
            with self._damage():
                self._db.execute("PRAGMA journal_mode=DELETE")
        self._db.close()


class ImageDigests:
    """Digest of each picture, read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, image: str) -> str:
        if image not in self._known:
            self._known[image] = digest(image)
        return self._known[image]


def keys_of(pairs: Sequence[tuple[Sample, str]], digests: ImageDigests) -> list[str]:
    """The store's key of each (sample, sentence): the picture's content and the sentence."""
    return [pair_key(digests(sample.image), sentence) for sample, sentence in pairs]


def fill(
    store: PriorStore, source: Source, samples: Sequence[Sample], *, batch: int = 64
) -> Iterator[tuple[int, int]]:
    """Ask `source` for every pair that the store does not hold yet; yields (done, total) after each batch."""
    store.describe(source)
    pairs = [(sample, sentence) for sample in samples for sentence in sample.sentences]
    keys = keys_of(pairs, ImageDigests())
    have = store.known(keys)
    todo = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in have}
    left = list(todo.items())
    store.expect(len(left))
    yield len(keys) - len(left), len(keys)
    for start in range(0, len(left), batch):
        part = left[start : start + batch]
        answers = source.answer([pair for _, pair in part])
        asked = zip((key for key, _ in part), answers, strict=True)
        store.put((key, answer) for key, answer in asked if answer is not None)
        yield len(keys) - len(left) + start + len(part), len(keys)
