"""Many shards: one after another in this process, or many at once with Ray Data. The files are the same, bit for bit.

Why Ray Data, and not actors of our own: it starts the workers and loads a model once in each, feeds them over many
machines, starts dead ones again and tries again what they had in hand. What it cannot promise is that a shard is begun
once only (a worker may die after its work and before its answer). It need not: `one_shard` makes a second time
harmless.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from l2l.data.durable import remove_drafts, write_durably
from l2l.data.shards import shard_files
from l2l.errors import InputError
from l2l.scale.one_shard import Job, do_shard, forget_attempts

Engine = Literal["local", "ray"]
ABOUT, SKIPPED = "about.json", "skipped.jsonl"
GIVE_UP = 8  # failures one after another: then it is not the shards


def run_shards(
    job: Job, shards: Path | str, out: Path | str, *, engine: Engine = "local", workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Do all shards that are not done, and write `about.json` and, if records were set aside, `skipped.jsonl`.

    Args:
        shards: folder of shards. out: folder of the results; one call at a time may work on it.
        engine: `local`, here and one by one; `ray`, in the cluster that `RAY_ADDRESS` names or one of this machine.
        workers: at once, for `ray`.
        progress: called with shards done and in all.

    Returns:
        The content of `about.json`: the job's settings, sums, `shards`, `done` (in this call), `kept`, `finished` and
        `failed`, a reason for each shard that could not be done.

    Raises:
        InputError: if there are no shards, `out` holds results of other settings, Ray is missing, or many shards fail
            one after another.
    """
    if engine not in ("local", "ray"):
        raise InputError(f"no engine {engine}; there are local and ray")
    if workers < 1 or (engine == "local" and workers > 1):
        raise InputError(f"{workers} workers: at least one; and more than one with --engine ray only")
    files, out = [path.resolve() for path in shard_files(shards)], Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    about = {"kind": job.kind, **job.settings}
    _check_about(out, about)
    remove_drafts(out)
    forget_attempts(job.kind, out)
    _write_about(out, {**about, "finished": False})
    rows: dict[str, dict[str, Any]] = {}
    in_a_row = 0
    for row in _local(job, files, out) if engine == "local" else _ray(job, files, out, workers):
        rows[row["shard"]] = row
        in_a_row = in_a_row + 1 if row["state"] == "failed" else 0
        if in_a_row == GIVE_UP:
            raise InputError(f"{GIVE_UP} shards failed one after another, the last with: {row['reason']}")
        if progress:
            progress(len(rows), len(files))
    assert len(rows) == len(files)
    whole = [rows[path.name] for path in files if rows[path.name]["state"] != "failed"]
    failed = {name: row["reason"] for name, row in sorted(rows.items()) if row["state"] == "failed"}
    remove_drafts(out)
    forget_attempts(job.kind, out)
    skipped = [one for row in whole for one in row["skipped"]]
    lines = "".join(json.dumps(one) + "\n" for one in skipped)
    write_durably(out / SKIPPED, lines.encode()) if skipped else (out / SKIPPED).unlink(missing_ok=True)
    names = dict.fromkeys(name for row in whole for name in row)
    sums = {name: sum(row.get(name, 0) for row in whole)
            for name in names if name not in ("shard", "state", "reason", "skipped", "seconds")}  # fmt: skip
    about |= {"finished": not failed and not sums.get("missed"), "shards": len(files), **sums, "skipped": len(skipped),
              "failed": failed}  # fmt: skip
    _write_about(out, about)
    states = [row["state"] for row in whole]
    return {**about, "done": states.count("done"), "kept": states.count("kept")}


def _check_about(out: Path, about: dict[str, Any]) -> None:
    """Results of two runs, or of two sources, must not lie side by side."""
    if not any(out.glob("*.receipt.json")):
        return
    try:
        before = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        differs = [name for name, value in about.items() if before.get(name) != value]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError("what the results here were made with cannot be read; choose another folder, or remove all "
                         "receipts to have them made anew", file=out / ABOUT) from error  # fmt: skip
    if differs:
        raise InputError(f"what is here was made with another {differs[0]}; choose another folder", file=out)


def _write_about(out: Path, about: dict[str, Any]) -> None:
    write_durably(out / ABOUT, (json.dumps(about, indent=1) + "\n").encode())


def _local(job: Job, files: list[Path], out: Path) -> Iterator[dict[str, Any]]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(job.threads)
    try:
        work = job.load()
        for shard in files:
            yield do_shard(job, work, shard, out)
    finally:
        torch.set_num_threads(before)


class Worker:
    """What one worker of Ray Data holds: the model, loaded once. It takes one shard at a time."""

    def __init__(self, job: Job, out: str):
        import torch

        torch.set_num_threads(job.threads)
        self.job, self.out, self.work = job, Path(out), job.load()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        rows = [do_shard(self.job, self.work, Path(str(shard)), self.out) for shard in batch["shard"]]
        return {"row": [json.dumps(row) for row in rows]}


def _ray(job: Job, files: list[Path], out: Path, workers: int) -> Iterator[dict[str, Any]]:
    started = _start_ray(workers * job.threads)
    import ray.data

    gpus = 1 if job.device.startswith("cuda") else 0
    if started and ray.cluster_resources().get("GPU", 0) < gpus * workers:
        ray.shutdown()
        raise InputError(f"{workers} workers on {job.device} want a GPU each, and there are not as many here")
    try:
        # Ray Data takes a block as the unit of a task: one shard each, and no second one waiting behind it.
        dataset = ray.data.from_items([{"shard": str(path)} for path in files], override_num_blocks=len(files))
        dataset.context.enable_progress_bars = False
        found = dataset.map_batches(
            Worker, fn_constructor_args=(job, str(out)), batch_size=1, num_cpus=job.threads, num_gpus=gpus,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        )  # fmt: skip
        for row in found.iter_rows():
            yield json.loads(row["row"])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        said = str(cause).strip().splitlines()
        raise InputError(f"Ray stopped: {said[-1] if said else type(cause).__name__}") from error
    finally:
        if started:
            ray.shutdown()


def _start_ray(cpus: int) -> bool:
    """Join the cluster that `RAY_ADDRESS` names, or start one on this machine; returns whether it is ours to leave.

    Nothing of our own cluster can be reached from outside, nor without its token; nothing is reported to Ray's makers;
    and little memory is set aside, as only paths travel. Ray reads its switches when it is imported: where that was
    done before, they are as they were then.
    """
    own = not os.environ.get("RAY_ADDRESS")
    if own:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's switch, on any system, for loopback
        if "ray" not in sys.modules:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one is left in the home folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError('--engine ray needs Ray Data: pip install "ray[data]"') from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if ray.is_initialized():
        return False
    if own:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 2**20,
                 log_to_driver=False, logging_level=logging.WARNING)  # fmt: skip
    else:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return True
