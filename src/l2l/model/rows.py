"""Layers that a row of a batch must meet alike whoever computes it, when the rows are divided among processes.

Divided they are by `training.processes`; on one process, with whole batches, these layers are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class ByRow:
    """What draws something at random for each row. Divided, it draws for all rows of the batch and takes its own."""

    rows: slice | None = None
    """Which rows of the batch are here; `None` for all."""
    total: int = 0
    """How many the batch has, where some are elsewhere."""

    def drawn(self, draw: Callable[[int], Tensor], here: int) -> Tensor:
        """`draw` of so many rows, those that are here."""
        return draw(here) if self.rows is None else draw(self.total)[self.rows]


class RowDropout(ByRow, nn.Dropout):
    """Dropout that a row meets alike whoever computes it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None or not self.training:
            return super().forward(x)
        return x * self.drawn(lambda count: F.dropout(x.new_ones(count, *x.shape[1:]), self.p), len(x))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def everywhere(own: Tensor) -> Tensor:
    """The sum over all processes; its gradient is the sum of all their gradients."""
    return _Sum.apply(own)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the rows of all processes, on any device (torch's own is for CUDA alone)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        dist.all_reduce(count)
        mean: Tensor = everywhere(wide.sum((0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance: Tensor = everywhere(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1).clamp_min(1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_statistics(network: nn.Module) -> None:
    """Let every batch norm of a network see the rows of all processes, with the weights and statistics it has."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = SharedBatchNorm(child.num_features, child.eps, child.momentum or 0.1)
                shared.weight, shared.bias = child.weight, child.bias
                shared.running_mean, shared.running_var = child.running_mean, child.running_var
                shared.num_batches_tracked = child.num_batches_tracked
                shared.training = child.training
                setattr(module, name, shared)
