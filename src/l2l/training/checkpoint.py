"""Checkpoints: one safetensors file that is whole or absent, with everything a resume needs and nothing pickled.

Tensors are saved whole, also where each process holds but a part of them (`training.fsdp`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2l.data.durable import naming, sync_folder
from l2l.errors import InputError


def divided(tensor: Tensor) -> bool:
    """Whether only a part of a tensor is here, the rest in other processes (it is then a torch `DTensor`, which takes
    half a second to import)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must ask."""
    return tensor.full_tensor() if divided(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, as a view."""
    return tensor.to_local() if divided(tensor) else tensor  # type: ignore[attr-defined]


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, where the other one is and divided as it is."""
    if not divided(other):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header, atomically: a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: as when there is no room; then the old file is as it was.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(kept, part, metadata={"l2l": json.dumps(about)})
        with naming(path), part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise InputError(f"cannot write the checkpoint: {error}", file=path) from error
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises `InputError` if the file is missing, truncated or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["l2l"])
            if not isinstance(about, dict):
                raise ValueError("its header is no object")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError("no checkpoint here", file=path) from error
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"a corrupt or truncated checkpoint ({error}); once it is removed, l2l train --resume makes "
                         "it anew from the first step", file=path) from error  # fmt: skip


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
    """Put back what `pack_optimiser` gave. Raises `InputError` if it is of another model."""
    for parameter, name in names.items():
        state = {key: tensors[f"{prefix}{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
                 if f"{prefix}{name}.{key}" in tensors}  # fmt: skip
        if any(value.numel() != (1 if key == "step" else parameter.numel()) for key, value in state.items()):
            raise InputError(f"the checkpoint's optimiser is of another model: {name} has another size")
        if state:
            optimiser.state[parameter] = {
                key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(like(value, parameter))
                for key, value in state.items()
            }


def load_module(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor], *, file: Path) -> None:
    """Load the tensors under `prefix`. Raises `InputError` if they are not this module's."""
    mine = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
    own = module.state_dict()
    mine = {name: like(value, own[name]) if name in own else value for name, value in mine.items()}
    try:
        module.load_state_dict(mine)
    except RuntimeError as error:
        raise InputError(f"weights of another model, or of another version of l2l: "
                         f"{str(error).splitlines()[-1].strip()}; train it anew", file=file) from error  # fmt: skip
