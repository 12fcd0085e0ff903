"""The EMA teacher: the weights that label, predict and are kept."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from l2l.training.checkpoint import local

Module = TypeVar("Module", bound=nn.Module)


def make_teacher(student: Module) -> Module:
    """A copy that takes no gradients and is always in evaluation mode."""
    teacher = copy.deepcopy(student).eval()
    return teacher.requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, step: int, decay: float) -> None:
    """teacher <- d x teacher + (1 - d) x student with d = min(decay, (1 + step) / (10 + step)): quick at first."""
    now = min(decay, (1 + step) / (10 + step))
    mine: list[Tensor] = [local(one) for one in teacher.parameters()]
    torch._foreach_lerp_(mine, [local(one) for one in student.parameters()], 1 - now)
    for kept, new in zip(teacher.buffers(), student.buffers(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - now)
        else:
            kept.copy_(new)
