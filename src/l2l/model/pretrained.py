"""The segmenter's pretrained parts: where they are read from, and what a run keeps of them.

Their weights are read once, when a run starts, and are in its checkpoints from then on. The run's folder also keeps the
models' configurations and the tokenizer's files, so that it can be resumed and predicts on a machine that has neither
the original folder nor a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from l2l.config import ModelConfig
from l2l.errors import InputError
from l2l.model.text import Vocabulary
from l2l.pretrained import Pretrained

BACKBONE, TEXT = "backbone", "text"  # settings of the model, and folders of a run
LITE = "efficientnet-lite0"  # the backbone that is neither on the hub nor in a folder (`model.lite`)
LITE_DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the file of its weights


def source(name: str, part: str, run: Path | None) -> str:
    """What to read a pretrained part from: the run's folder where there is one, else what the setting names.

    Args:
        name: the setting `model.backbone` or `model.text`. part: `BACKBONE` or `TEXT`.
    """
    return name if run is None else str(run / part)


def pretrained_part(part: str, where: str) -> Pretrained:
    """What a name on the hub or a folder has of it. Raises `InputError` if transformers is not installed."""
    return Pretrained(where, asked_by=f"model.{part}")


def identities(model: ModelConfig) -> dict[str, str]:
    """Name and commit (or digest) of what the settings name, by part; empty where they name nothing."""
    found = {BACKBONE: "", TEXT: ""}
    if model.backbone == LITE:
        found[BACKBONE] = f"{LITE}@{LITE_DIGEST[:16]}"
    elif model.backbone:
        found[BACKBONE] = pretrained_part(BACKBONE, model.backbone).identity
    if model.text:
        found[TEXT] = pretrained_part(TEXT, model.text).identity
    return found


def keep(model: ModelConfig, vocabulary: Vocabulary, run: Path) -> None:
    """Write configurations and tokenizer files into a run's folder, `RUN/backbone` and `RUN/text`.

    Raises:
        InputError: if transformers is not installed or a configuration cannot be read.
    """
    if model.backbone not in ("", LITE):  # the latter is built as the code says
        pretrained_part(BACKBONE, model.backbone).config.save_pretrained(run / BACKBONE)
    if model.text:
        text_config(pretrained_part(TEXT, model.text)).save_pretrained(run / TEXT)
        vocabulary.tokenizer.save_pretrained(run / TEXT)  # type: ignore[attr-defined]


def text_config(found: Pretrained) -> Any:
    """The configuration of a text encoder: of a CLIP, its text model's. Raises `InputError` if it cannot be read."""
    return found.config.text_config if found.config.model_type == "clip" else found.config


def build_encoder(
    found: Pretrained, config: Any, *, weights: bool, attn_implementation: str | None, spare: Sequence[str] = ()
) -> Any:
    """A model in float32, without its head.

    Args:
        config: its configuration. weights: read them; otherwise they are random, to be loaded from a checkpoint.
        attn_implementation: as transformers knows it; `eager` for what `sdpa` cannot do (ONNX export of a Swin).
        spare: beginnings of the names of parameters that nobody uses; these may be missing.

    Raises:
        InputError: if the model cannot be read, or weights are missing (they would be random, and nobody would know).
    """
    how = {"dtype": torch.float32, "attn_implementation": attn_implementation}
    if not weights:
        from transformers import AutoModel

        return AutoModel.from_config(config, **how)
    model, missing = found.read("AutoModel", config=config, **how)
    lost = [name for name in missing if not name.startswith(tuple(spare))]
    if lost:
        raise InputError(f"{len(lost)} weights of the model are not there, as {lost[0]}", file=found.place)
    return model
