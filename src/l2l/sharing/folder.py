"""The model folder: what prediction needs of a run, and a card. Nothing of the training data, no place of a machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from l2l.config import Config
from l2l.data.durable import write_whole
from l2l.errors import InputError
from l2l.evaluate import GAIN, weights_of
from l2l.model.pretrained import BACKBONE, TEXT
from l2l.predict import Predictor
from l2l.sharing.card import make_card
from l2l.training.checkpoint import load_tensors, save_tensors
from l2l.training.loop import ABOUT, CHECKPOINT, CONFIG, load_run

CARD = "README.md"


def save_pretrained(run: Path | str, out: Path | str, *, licence: str = "", name: str = "") -> Path:
    """Make a model folder of a run.

    It holds the teacher's weights (with SESM and the policy), the configuration without the places of data, what the
    run was trained on in numbers, a tokenizer's and a backbone's description where there are such, and a model card
    with the scores that `l2l evaluate` has left in the run. `Predictor` and every command that reads a run read it too,
    but for `train --resume`.

    Args:
        licence: of the weights, as the hub names licences (`apache-2.0`, `cc-by-nc-4.0`); empty: the card says that
            nobody has chosen one.
        name: what the card calls the model; the folder's name if not given.

    Raises:
        InputError: if there is no run, it has no network, or the folder holds something else.
    """
    run, out = Path(run), Path(out)
    config, network, _, about = load_run(run)
    if network is None:
        raise InputError("this run is the prior alone; there is no network to share", file=run)
    if out.exists() and any(out.iterdir()) and not (out / CONFIG).exists():
        raise InputError("this folder holds something else", file=out)
    out.mkdir(parents=True, exist_ok=True)
    tensors, saved = load_tensors(run / CHECKPOINT)
    kept = {name: value for name, value in tensors.items() if name.startswith(("teacher.", "extra."))}
    save_tensors(out / CHECKPOINT, kept, saved)
    if (run / GAIN).is_file():  # of other weights, by their digest: those left behind are the student's
        gains = json.loads((run / GAIN).read_text(encoding="utf-8"))
        if gains["weights"] == weights_of(run):
            write_whole(out / GAIN, json.dumps(gains | {"weights": weights_of(out)}).encode())
    for part in (BACKBONE, TEXT):
        if (run / part).is_dir():
            shutil.copytree(run / part, out / part, dirs_exist_ok=True)
    private = {"data": about["data"], "images": "", "prior": "", "split_file": "", "unlabelled": ""}
    shared = config.replace("data", **private)
    shared = shared.replace("model", **{
        name: Path(value).name if Path(value).is_dir() else value
        for name in ("backbone", "text") for value in [getattr(config.model, name)]
    })  # fmt: skip
    facts = about | {"shared": True, "trained_hash": config.hash()}
    write_whole(out / ABOUT, (json.dumps(facts, indent=1) + "\n").encode())
    write_whole(out / CONFIG, shared.to_text().encode())
    card = make_card(name or out.name, config, about, evaluations(run), licence=licence)
    write_whole(out / CARD, card.encode())
    return out


def evaluations(run: Path) -> list[dict[str, Any]]:
    """What `l2l evaluate` has left in a run, without what it says of single pairs; unreadable files are left out."""
    found = []
    for path in sorted((run / "evaluations").glob("*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            named = {name: told[name] for name in ("data", "split", "method", "prior", "scores")}
            found.append({**named, "outlines": bool(told.get("outlines"))})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def load(model: Path | str, *, revision: str | None = None) -> Predictor:
    """A `Predictor` from a run, a model folder, or the hub.

    Args:
        model: a folder, or `owner/name` on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: if there is no such folder or model, or it is damaged.

    Example:
        >>> shoes = l2l.load("someone/street-clothes")                 # doctest: +SKIP
        >>> shoes.set_image("street.jpg")                              # doctest: +SKIP
        >>> shoes.segment("left black shoe").score                     # doctest: +SKIP
    """
    if Path(model).is_dir():
        return Predictor(model)
    if str(model).count("/") != 1 or str(model).startswith((".", "/", "~")):
        raise InputError("no run or model folder here, and no name on the hub (owner/name)", file=model)
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            str(model), revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
        )
    except (OSError, ValueError) as error:  # its own errors are kinds of these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot get {model} from the hub: {reason}") from error
    return Predictor(folder)


def push_to_hub(folder: Path | str, name: str, *, private: bool = True, message: str = "A model of l2l") -> str:
    """Put a model folder on the Hugging Face hub; who you are, `hf auth login` or `HF_TOKEN` says.

    Args:
        folder: what `save_pretrained` made. name: `owner/name`. private: for you alone, until you say otherwise there.

    Returns:
        Its address.

    Raises:
        InputError: if this is no model folder, or the hub says no.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file() or not Config.load(folder / CONFIG):
        raise InputError("no model folder: make one of a run with save_pretrained", file=folder)
    hub = _hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=name, commit_message=message))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot push to {name}: {str(error).strip().splitlines()[0]}") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("the hub needs huggingface-hub: pip install -e '.[hub]' -c constraints.txt") from error
    return huggingface_hub
