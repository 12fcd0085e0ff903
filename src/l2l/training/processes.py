"""Several processes train as one: the network's passes are divided among them, everything else each of them does alike.

Every process draws the same global batch (all that is random is a function of seed and step), runs the network over its
share of the rows, and gathers what all shares say. So a method sees the whole batch, whoever computed it, and knows
nothing of processes: its loss, its policy's bands, its choice among samples are those of one process with that batch.

Gradients: each process has the whole loss, but a graph only behind its own rows. `Processes.gather` gives these rows
`count` times their gradient, and `Processes.average` then takes the mean over processes. For what lies behind a gather
that mean is the sum over all rows; for what every process computes alike (SESM on held-out labels, the policy) it
changes nothing. That is the convention of DDP and FSDP too, so a parameter's owner does not matter.

The same idea saves memory on one process: `accumulate` pieces of a batch, each computed again when its gradient is due
(as in Gao et al., "Scaling deep contrastive learning batch size under memory limited setup", RepL4NLP 2021), so that a
loss that looks at the whole batch stays what it is.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l2l.errors import InputError
from l2l.model.network import Answer, Network
from l2l.model.rows import ByRow
from l2l.model.segmenter import Encoded
from l2l.model.text import trimmed
from l2l.proposals.proposal import Proposals

Whole = TypeVar("Whole")


@dataclass(frozen=True)
class Processes:
    """This process and how many there are."""

    rank: int = 0
    count: int = 1
    device: str = ""
    """Torch device of this process; empty: the configuration's."""

    @classmethod
    def here(cls, device: str) -> Processes:
        """As torchrun or `accelerate launch` started them; one, where nobody did.

        Args:
            device: `cpu` (gloo), or a kind of accelerator, of which each process gets one of its own.

        Raises:
            InputError: if there are several and accelerate is not installed, or an accelerator is named by number.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if ":" in device:
            raise InputError(f"several processes cannot share {device}: write {device.partition(':')[0]}")
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise InputError("several processes need accelerate: pip install l2l[accelerate]") from error
        first = not dist.is_initialized()
        # one day: the others wait while the first asks SAM about a whole pool
        state = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))
        if first:
            atexit.register(state.destroy_process_group)
        return cls(state.process_index, state.num_processes, str(state.device))

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, total: int, rank: int | None = None) -> slice:
        """Which of `total` rows are a process's (this one's, if no rank is given); they differ by one at most."""
        rank = self.rank if rank is None else rank
        return slice(total * rank // self.count, total * (rank + 1) // self.count)

    def gather(self, own: Tensor, total: int) -> Tensor:
        """All `total` rows from everybody's `share` of them, each on its place.

        The gradient that comes back reaches the own rows, `count` times as large; see the top of this file.
        """
        return own if self.count == 1 else _Gather.apply(own, total, self)

    @torch.no_grad()
    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of parameters that every process holds by their mean over processes."""
        if self.count == 1:
            return
        found = [one.grad for one in parameters if one.grad is not None]
        for kind in {one.dtype for one in found}:
            own = [one for one in found if one.dtype == kind]
            flat = torch.cat([one.reshape(-1) for one in own])
            dist.all_reduce(flat)
            for one, mean in zip(own, (flat / self.count).split([one.numel() for one in own]), strict=True):
                one.copy_(mean.view_as(one))

    @contextmanager
    def first(self) -> Iterator[None]:
        """The main process goes first, the others when it is done: what it leaves in the cache they find there."""
        if self.count > 1 and not self.main:
            dist.barrier()
        yield
        if self.count > 1 and self.main:
            dist.barrier()

    def anyone(self, value: bool) -> bool:
        """Whether some process says so."""
        if self.count == 1:
            return value
        told = torch.tensor(float(value), device=self.device)
        dist.all_reduce(told)
        return bool(told > 0)

    def agree(self, value: bool) -> bool:
        """What the main process says."""
        if self.count == 1:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, total: int, processes: Processes) -> Tensor:
        ctx.share, ctx.count = processes.share(total), processes.count
        sizes = [len(range(total)[processes.share(total, rank)]) for rank in range(processes.count)]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.share] * ctx.count, None, None


def divided(
    network: Network, image: Tensor, tokens: Tensor, proposals: Proposals | None, *, processes: Processes,
    pieces: int = 1,
) -> Answer:
    """One pass over a batch by all processes, each over its share, in `pieces` one after the other.

    Nobody asks for the maps of other processes, so where the pass was divided `encoded.maps` is empty.

    Args:
        image: (B, 3, H, W), normalised. tokens: (B, L). proposals: of B pairs, or `None`. They are the same everywhere.
        pieces: where gradients are kept, only those of one piece are in memory at a time, at the price of computing
            each piece twice. Batch norm then sees one piece at a time.
    """
    if len(image) < processes.count or (processes.count == 1 and pieces == 1):  # too few: everybody does all of them
        return network(image, tokens, proposals)
    tokens = trimmed(tokens)
    total, own = len(image), range(len(image))[processes.share(len(image))]
    saves = pieces > 1 and torch.is_grad_enabled()
    count = min(pieces, len(own)) if saves else 1
    dice, answers = _random_state(image), []
    for piece in range(count):
        rows = slice(own.start + len(own) * piece // count, own.start + len(own) * (piece + 1) // count)
        given = (image[rows], tokens[rows], None if proposals is None else proposals[rows])
        _random_state(image, dice)  # every piece draws for all rows and takes its own
        with _rows_of(network, rows, total):
            if saves:
                contexts = partial(_contexts, network, rows, total)
                answers.append(checkpoint(network, *given, use_reentrant=False, context_fn=contexts))
            else:
                answers.append(network(*given))
    answer = _joined(answers)
    return _each(answer, lambda value: processes.gather(value, total))


def _joined(answers: Sequence[Answer]) -> Answer:
    """Answers to pieces as one, without the encoder's maps."""
    bare = [dataclasses.replace(one, encoded=Encoded((), one.encoded.sentence)) for one in answers]
    if len(bare) == 1:
        return bare[0]
    pieces = [_tensors(one) for one in bare]
    joined = iter([torch.cat(same) for same in zip(*pieces, strict=True)])
    return _each(bare[0], lambda _: next(joined))


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _each(value, lambda one: found.append(one) or one)  # type: ignore[func-returns-value]
    return found


def _each(value: Whole, change: Callable[[Tensor], Tensor]) -> Whole:
    """A dataclass with all its tensors changed, those of dataclasses in it too; anything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: _each(getattr(value, one.name), change) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


def _random_state(image: Tensor, state: Tensor | None = None) -> Tensor:
    """The state of the generator that dropout on this device uses; set, if one is given."""
    if image.is_cuda:
        if state is not None:
            torch.cuda.set_rng_state(state, image.device)
        return torch.cuda.get_rng_state(image.device)
    if state is not None:
        torch.set_rng_state(state)
    return torch.get_rng_state()


@contextmanager
def _rows_of(network: nn.Module, rows: slice, total: int) -> Iterator[None]:
    """Within it what draws by row knows which rows of how many it sees."""
    drawing = [one for one in network.modules() if isinstance(one, ByRow)]
    for one in drawing:
        one.rows, one.total = rows, total
    try:
        yield
    finally:
        for one in drawing:
            one.rows = None


def _contexts(network: nn.Module, rows: slice, total: int) -> tuple[Any, Any]:
    """Of a piece's first pass, which goes on in `_rows_of`, and of its repetition."""
    return nullcontext(), _again(network, rows, total)


@contextmanager
def _again(network: nn.Module, rows: slice, total: int) -> Iterator[None]:
    """Within it a pass is a repetition: running statistics have seen these rows already."""
    norms = [one for one in network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    before = [one.momentum for one in norms]
    for one in norms:
        one.momentum = 0.0
    try:
        with _rows_of(network, rows, total):
            yield
    finally:
        for one, momentum in zip(norms, before, strict=True):
            one.momentum = momentum
