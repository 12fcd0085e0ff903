"""Trajectories through the command line, kept in `references/` and compared in `test_same_answer.py`.

    python tests/make_references.py               # all of them anew
    python tests/make_references.py l2l label     # some of them

A reference says what the programme did, not what is right. So a change of one is argued in docs/LOG.md: what was
changed, that the trajectory was meant to change, and what the benchmark says of it. This prints what changed, and by
how much.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import settings

from l2l.cli import main
from l2l.data.read import read
from l2l.priors.store import ImageDigests, PriorStore, keys_of
from l2l.rle import Rle

REFERENCES = Path(__file__).parent / "references"
METHODS = ("l2l", "fixmatch", "semires")
NAMES = ("prior", *METHODS, "label")
PICTURES, STEPS = 24, 30


def command(*arguments: str) -> str:
    """What an `l2l` command prints; it has to go well."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(list(arguments)) == 0, arguments
    return said.getvalue()


def trace(root: Path, names: Sequence[str]) -> dict[str, Any]:
    """A drawn world in `root`, the embedded model's priors, runs of 30 steps with 8 pairs in each, and labels.

    Burn-in ends at step 6; SESM and the policy learn until step 20 and rest from there on.
    """
    data, priors = root / "data", root / "priors"
    command("data", "scenes", str(data), "--count", str(PICTURES), "--seed", "11")
    command("prior", str(data), "--source", "grounder", "--out", str(priors))
    found: dict[str, Any] = {"prior": _priors(data, priors)} if "prior" in names else {}
    for method in METHODS:
        if method in names or (method == "l2l" and "label" in names):
            run = root / method
            more = settings(train_burn_in=0.2, sesm_release=0.67, sesm_held_out=0.4, train_probe_every=15)
            command("train", "--data", str(data), "--prior", str(priors), "--out", str(run), "--method", method,
                    "--rate", "0.8", "--steps", str(STEPS), *more)  # fmt: skip
            if method in names:
                found[method] = _run(run)
    if "label" in names:
        command("label", str(root / "l2l"), "--out", str(root / "labels"))
        lines = [json.loads(line) for line in (root / "labels" / "labels.jsonl").read_text().splitlines()]
        found["label"] = _labels(lines)
    return found


def _priors(data: Path, store: Path) -> dict[str, Any]:
    pairs = [(sample, sentence) for sample in read(data).samples for sentence in sample.sentences]
    keys = keys_of(pairs, ImageDigests())
    known = PriorStore(store).get(keys)
    first = [known[key] for key in keys[:6]]
    return {
        "pairs": len(keys), "empty": sum(known[key].empty for key in keys),
        "first": [{"boxes": [[*map(float, box)] for box in one.boxes], "scores": [*map(float, one.scores)]}
                  for one in first],
    }  # fmt: skip


def _run(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = json.loads(command("evaluate", str(run), "--json", "--split", "val"))[0]["scores"]
    return {
        "steps": [line for line in lines if "loss" in line],
        "probes": [line["probe"] for line in lines if "probe" in line], "mIoU": scores["mIoU"], "n": scores["n"],
    }  # fmt: skip


def _labels(lines: list[dict[str, Any]]) -> dict[str, Any]:
    masks = [Rle.from_coco(one["segmentation"]).decode() for one in lines[:8]]
    first = [{"id": one["id"], "score": one["score"], "share": float(mask.mean())}
             for one, mask in zip(lines, masks, strict=False)]  # fmt: skip
    return {"pairs": len(lines), "mean score": sum(one["score"] for one in lines) / len(lines), "labels": first}


def _changes(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [line for name in names for line in _changes(old.get(name), new.get(name), f"{where}/{name}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for at, pair in enumerate(zip(old, new, strict=True)) for line in _changes(*pair, f"{where}/{at}")]
    return [] if old == new or (old != old and new != new) else [f"  {where}: {old} -> {new}"]


def make(names: Sequence[str]) -> None:
    """Write references and say what is new in them."""
    import torch

    torch.set_num_threads(1)  # as in the tests
    with tempfile.TemporaryDirectory() as root:
        found = trace(Path(root), names)
    REFERENCES.mkdir(exist_ok=True)
    for name, value in found.items():
        file = REFERENCES / f"{name}.json"
        old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        lines = _changes(old, json.loads(json.dumps(value))) if old is not None else ["  new"]
        print(f"{file.name}: {len(lines)} values changed" if lines else f"{file.name}: the same", *lines, sep="\n")


if __name__ == "__main__":
    asked = sys.argv[1:] or list(NAMES)
    if strange := set(asked) - set(NAMES):
        sys.exit(f"no reference {', '.join(sorted(strange))}; there are {', '.join(NAMES)}")
    make(asked)
