"""Pretrained models of Hugging Face transformers: where they are read from, and what a run keeps of them.

Their weights are read once, when a run starts, and are in its checkpoints from then on. The run's folder also keeps the
models' configurations and the tokenizer's files, so that it can be resumed and predicts on a machine that has neither
the original folder nor a network. No image processor is used: pictures are resized and normalised by this package, so
the numbers do not depend on whether torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from l2l.config import ModelConfig
from l2l.errors import InputError
from l2l.model.text import Vocabulary

BACKBONE, TEXT = "backbone", "text"  # settings of the model, and folders of a run


def source(name: str, part: str, run: Path | None) -> str:
    """What to read a pretrained part from: the run's folder where there is one, else what the setting names.

    Args:
        name: the setting `model.backbone` or `model.text`. part: `BACKBONE` or `TEXT`.
    """
    return name if run is None else str(run / part)


def keep(model: ModelConfig, vocabulary: Vocabulary, run: Path) -> None:
    """Write configurations and tokenizer files into a run's folder, `RUN/backbone` and `RUN/text`.

    Raises:
        InputError: if transformers is not installed or a configuration cannot be read.
    """
    for name, part in ((model.backbone, BACKBONE), (model.text, TEXT)):
        if name:
            read_config(part, name).save_pretrained(run / part)
    if model.text:
        vocabulary.tokenizer.save_pretrained(run / TEXT)  # type: ignore[attr-defined]


def library(part: str) -> Any:
    """The module `transformers`. Raises `InputError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model.{part} needs the extra transformers: pip install -e '.[transformers]' -c constraints.txt"
        ) from error
    return transformers


def read_config(part: str, where: str) -> Any:
    """The configuration of a model; of a CLIP, that of its text model. Raises `InputError` if it cannot be read."""
    transformers = library(part)
    with _explained(part, where):
        config = transformers.AutoConfig.from_pretrained(where, **_strictly(where))
    return config.text_config if part == TEXT and config.model_type == "clip" else config


def read_tokenizer(where: str) -> Any:
    """The tokenizer of a text model. Raises `InputError` if it cannot be read."""
    transformers = library(TEXT)
    with _explained(TEXT, where):
        return transformers.AutoTokenizer.from_pretrained(where, **_strictly(where))


def read_model(
    part: str, where: str, config: Any, *, weights: bool, attn_implementation: str | None, spare: Sequence[str] = ()
) -> Any:
    """A model in float32, without its head.

    Args:
        config: what `read_config` gave. weights: read them; otherwise they are random, to be loaded from a checkpoint.
        attn_implementation: as transformers knows it; `eager` for what `sdpa` cannot do (ONNX export of a Swin).
        spare: beginnings of the names of parameters that nobody uses; these may be missing.

    Raises:
        InputError: if the model cannot be read, or weights are missing (they would be random, and nobody would know).
    """
    automatic = library(part).AutoModel
    how = {"dtype": torch.float32, "attn_implementation": attn_implementation}
    with _explained(part, where):
        if not weights:
            return automatic.from_config(config, **how)
        model, found = automatic.from_pretrained(
            where, config=config, output_loading_info=True, **how, **_strictly(where)
        )
    lost = sorted(name for name in found["missing_keys"] if not name.startswith(tuple(spare)))
    if lost:
        raise InputError(f"model.{part}={where}: {len(lost)} weights of the model are not there, as {lost[0]}")
    return model


def _strictly(where: str) -> dict[str, Any]:
    """No code of strangers, and no network for what lies in a folder."""
    return {"trust_remote_code": False, "local_files_only": Path(where).is_dir()}


@contextmanager
def _explained(part: str, where: str) -> Iterator[None]:
    """Errors in one line, and no report on the weights of heads that are left behind."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # the hub's client and damaged files answer with many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model.{part}={where}: cannot read it: {reason}") from error
    finally:
        logging.set_verbosity(before)
