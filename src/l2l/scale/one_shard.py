"""One shard in, one file out: done once, in one piece, whoever does it and however often it is begun.

`KIND-SHARD.jsonl` holds the lines; `KIND-SHARD.receipt.json` is written after it, and says from which bytes, with which
settings, to which bytes. A shard whose receipt fits is skipped. So a worker may die at any moment, and two may even do
the same shard: each writes the same file, whole.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from l2l.data.cache import cache_in
from l2l.data.durable import naming, write_durably
from l2l.data.readable import readable
from l2l.data.shards import digest_of, read_shard, shard_bytes
from l2l.errors import BadRecords, InputError
from l2l.sample import Sample

ATTEMPTS = ".attempts"
MOST_ATTEMPTS = 4  # in one call: a shard that takes too much memory must not kill worker after worker for ever

Line = dict[str, Any]
Work = Callable[[Path, list[Sample], Mapping[str, Line], BadRecords], tuple[list[Line], dict[str, float]]]
"""(shard, its samples, lines that are known already by their ids, where to set bad records aside) -> lines and sums.

Each sample's `image` is a file that can be read, and so is a new line's. If `missed` is among the sums and not 0, the
shard is not finished: the next call does it again, and knows these lines.
"""


class Job(Protocol):
    """What is to be done with every shard; small enough to be sent to any worker."""

    @property
    def kind(self) -> str:
        """`labels` or `priors`."""
        ...

    @property
    def threads(self) -> int:
        """Of one worker; part of `settings`, as the last bit of a sum depends on it."""
        ...

    @property
    def device(self) -> str:
        """Where it works."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that the lines depend on, beside the shard and `inputs`."""
        ...

    def inputs(self, shard: Path, digest: str) -> dict[str, str]:
        """Digests of further files that the lines of this shard depend on. Raises `InputError` if one is missing."""
        ...

    def load(self) -> Work:
        """The model, ready to work; heavy."""
        ...


def paths_of(kind: str, shard: Path, out: Path) -> tuple[Path, Path]:
    """The file of a shard's lines, and its receipt."""
    return out / f"{kind}-{shard.stem}.jsonl", out / f"{kind}-{shard.stem}.receipt.json"


def forget_attempts(kind: str, out: Path) -> None:
    """Before a call, and after it: an attempt that was killed together with the call says nothing of the shard."""
    for file in out.glob(f"{kind}-*{ATTEMPTS}"):
        file.unlink(missing_ok=True)


def do_shard(job: Job, work: Work, shard: Path, out: Path) -> dict[str, Any]:
    """Do one shard, unless that was done before.

    Returns:
        `shard`; `state`, one of `done`, `kept` (its receipt fits) and `failed`; `reason` of a failure, `pairs`, further
        sums, `skipped` (records set aside: `file`, `record`, `reason`), `seconds`.
    """
    began = time.monotonic()
    try:
        row = _do(job, work, shard, out)
    except (InputError, OSError, RuntimeError, MemoryError) as error:  # others are ours, and stop the job
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        if isinstance(error, OSError) and error.filename and error.strerror:
            kind, error = "", OSError(f"{error.filename}: {error.strerror}")
        row = {"state": "failed", "reason": " ".join(f"{kind}{error}".split())}
    return {"shard": shard.name, **row, "seconds": round(time.monotonic() - began, 3)}


def _do(job: Job, work: Work, shard: Path, out: Path) -> dict[str, Any]:
    target, receipt = paths_of(job.kind, shard, out)
    content = shard_bytes(shard)
    digest = digest_of(content)
    origin = {"shard": shard.name, "inputs": {"shard": digest, **job.inputs(shard, digest)}, "settings": job.settings}
    before, known = _before(target, receipt, origin)
    if before is not None and not before["sums"].get("missed"):
        return {"state": "kept", **before["sums"], "skipped": before["skipped"]}
    attempts = out / f"{job.kind}-{shard.stem}{ATTEMPTS}"
    with naming(attempts), attempts.open("ab") as file:
        # A byte for each attempt: who is killed in one cannot count it afterwards.
        file.write(b".")
        if file.tell() > MOST_ATTEMPTS:
            raise InputError(f"whoever did this shard died, {MOST_ATTEMPTS} times", file=shard)
    bad = BadRecords(skip=True)
    with tempfile.TemporaryDirectory(prefix="l2l-") as scratch, cache_in(Path(scratch) / "cache"):
        samples, names = _unpack(shard, content, Path(scratch), bad)
        lines, sums = work(shard, samples, known, bad)
    for line in lines:
        line["image"] = names.get(line["image"], line["image"])
    written = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sums = {"pairs": len(lines), **sums}
    skipped = [dataclasses.asdict(one) for one in bad.found]
    write_durably(target, written)
    note = {**origin, "output": digest_of(written), "sums": sums, "skipped": skipped}
    write_durably(receipt, (json.dumps(note, indent=1) + "\n").encode())
    attempts.unlink(missing_ok=True)
    return {"state": "done", **sums, "skipped": skipped}


def _before(target: Path, receipt: Path, origin: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Line]]:
    """The receipt, and the lines by their ids, if they are whole and of the same origin."""
    try:
        note = json.loads(receipt.read_text(encoding="utf-8"))
        written = target.read_bytes()
        if any(note[name] != value for name, value in origin.items()) or note["output"] != digest_of(written):
            return None, {}
        if not note["sums"].get("missed"):
            return note, {}
        lines = [json.loads(line) for line in written.splitlines()]
        return note, {line["id"]: line for line in lines}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, {}


def _unpack(shard: Path, content: bytes, scratch: Path, bad: BadRecords) -> tuple[list[Sample], dict[str, str]]:
    """Pictures as files, since every model and every source reads files; what each is called in the shard."""
    files: dict[str, str] = {}
    samples = []
    for sample, picture in read_shard(shard, content=content, bad=bad):
        if sample.image not in files:
            file = scratch / f"{len(files)}{Path(sample.image).suffix}"
            with naming(file):
                file.write_bytes(picture)
            files[sample.image] = str(file)
        samples.append(dataclasses.replace(sample, image=files[sample.image]))
    return samples, {file: image for image, file in files.items()}


def decodable(shard: Path, samples: list[Sample], bad: BadRecords) -> list[Sample]:
    """The samples whose picture can be decoded; the others are set aside, by their place in the shard."""
    found = BadRecords(skip=True)
    kept = readable(samples, found)
    for one in found.found:
        bad.add(one.reason, file=shard.name, record=one.record)
    return kept
