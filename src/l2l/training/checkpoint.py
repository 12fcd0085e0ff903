"""Checkpoints: one safetensors file that is whole or absent, with everything a resume needs and nothing pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2l.errors import InputError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header, atomically: a reader sees the old file or the new one, never half of one."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(kept, part, metadata={"l2l": json.dumps(about)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except SafetensorError as error:  # no space, most likely
        raise InputError(f"cannot write the checkpoint: {error}", file=path) from error
    finally:
        part.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `InputError` if the file is missing, truncated or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["l2l"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError("no checkpoint here", file=path) from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"a corrupt or truncated checkpoint: {error}", file=path) from error


def pack_optimiser(optimiser: torch.optim.Optimizer, names: Mapping[Tensor, str], prefix: str) -> dict[str, Tensor]:
    """AdamW's state as named tensors."""
    return {
        f"{prefix}{names[parameter]}.{key}": torch.as_tensor(value)
        for parameter, state in optimiser.state.items()
        for key, value in state.items()
    }


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, names: Mapping[Tensor, str], prefix: str, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `pack_optimiser` gave."""
    for parameter, name in names.items():
        state = {key: tensors[f"{prefix}{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                 if f"{prefix}{name}.{key}" in tensors}  # fmt: skip
        if state:
            optimiser.state[parameter] = {
                key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value)
                for key, value in state.items()
            }


def load_module(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor], *, file: Path) -> None:
    """Load the tensors under `prefix`. Raises `InputError` if they are not this module's."""
    mine = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(mine)
    except RuntimeError as error:
        raise InputError(f"weights of another model: {str(error).splitlines()[-1].strip()}", file=file) from error
