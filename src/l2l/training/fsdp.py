"""Fully sharded data parallel: where a backbone's weights, gradients and optimiser state do not fit once per process.

Sharded is the segmenter, by stage and by layer of its text encoder; SESM and the policy are a few thousand numbers that
every process keeps. Parameters are then `DTensor`s; what is saved are whole tensors (`training.checkpoint`), so that a
run may go on with another number of processes, or with one and no sharding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from l2l.model.network import Network
from l2l.training.processes import Processes


def shard(network: Network, processes: Processes) -> None:
    """Divide a network's segmenter among the processes, in place. Its passes must go through `network(...)`."""
    mesh = init_device_mesh(torch.device(processes.device).type, (processes.count,))
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # what can be cut in pieces
    replicated = set(network.sesm.parameters())
    for layer in layers(network):
        fully_shard(layer, mesh=mesh)
    # The teacher has no backward pass after which its root's weights would be divided again.
    fully_shard(network, mesh=mesh, ignored_params=replicated, reshard_after_forward=True)


def layers(network: Network) -> list[nn.Module]:
    """What is gathered together when its turn comes: the vision stages, and the layers of the text encoder."""
    found: list[nn.Module] = list(network.segmenter.vision.stages)  # type: ignore[arg-type]
    for module in network.segmenter.text.modules():
        if isinstance(module, nn.ModuleList):
            found.extend(module)
            break  # the outermost list: one entry for each layer
    return found
