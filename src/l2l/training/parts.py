"""What every method works with: the tables, the networks, and the rows it may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from l2l.config import Config
from l2l.data.augment import Geometry, draw_geometry
from l2l.data.streams import Stream, generator
from l2l.model.network import Answer, Network
from l2l.proposals.everything import mask_bank
from l2l.proposals.proposal import Proposals
from l2l.proposals.regions import region_bank
from l2l.training.pool import Batch, Pool, normalise
from l2l.training.prepare import Preparing, choose_sam
from l2l.training.processes import Processes, divided


@dataclass(frozen=True)
class Parts:
    """The same for every method of a benchmark."""

    config: Config
    pool: Pool
    """All training pairs; masks only of the labelled refs."""
    network: Network
    """The student."""
    teacher: Network
    """Its slow mean."""
    precision: torch.dtype
    """bfloat16 or float32, what autocast uses."""
    processes: Processes = field(default_factory=Processes)
    """Who else trains."""
    preparing: Preparing | None = None
    """Called with ("regions", pictures done, pictures) while SAM makes them."""
    dealt: dict[str, Tensor] = field(default_factory=dict)
    """The rows of the step under way, by stream: what an error message names."""
    events: list[str] = field(default_factory=list)
    """What the step under way has to tell in words; the loop writes it to the log."""
    _streams: dict[str, Stream] = field(default_factory=dict)

    @property
    def labelled_refs(self) -> Tensor:
        """(N,) refs whose masks may be used."""
        return self.pool.labelled.nonzero()[:, 0]

    @cached_property
    def regions(self) -> Tensor:
        """The bank of regions of the pool's pictures, int16 (images, scales, H/2, W/2), 0 for no region: SAM's masks
        where `data.sam` names one, else over-segmentation."""
        sam = choose_sam(self.config)
        with self.processes.first():
            if sam is None:
                return region_bank(self.pool.images)
            progress = partial(self.preparing, "regions") if self.preparing else None
            points = self.config.data.sam_points
            return mask_bank(sam, self.pool.pictures, self.pool.size, points=points, progress=progress)

    def refs_at(self, name: str, step: int, batch: int, refs: Tensor) -> Tensor:
        """Rows of one step: refs from an infinite stream, one random sentence each (the field's protocol)."""
        chosen = self.rows_at(name, step, batch, refs)
        table, counts = self._sentences()
        pick = torch.rand(batch, generator=generator(self.config.train.seed, name, "sentence", step))
        return table[chosen, (pick * counts[chosen]).long()]

    def rows_at(self, name: str, step: int, batch: int, rows: Tensor) -> Tensor:
        """`batch` members of `rows` from an infinite stream of that name."""
        stream = self._streams.get(name)
        if stream is None or not torch.equal(stream.rows, rows):  # another fold: another stream
            stream = self._streams[name] = Stream(rows, batch, self.config.train.seed, name)
        return stream.at(step)

    def weak(self, rows: Tensor, name: str, step: int, *, swap: float = 0.0, drop: float = 0.0) -> Batch:
        """A weak view of some rows, with some priors swapped or dropped."""
        self.dealt[name] = rows
        view, rng = self.view(rows, name, step)
        swapped = torch.rand(len(rows), generator=rng) < swap
        kept = (torch.rand(len(rows), generator=rng) >= drop).to(self.pool.device)
        batch = self.pool.batch(rows, view=view, swap=swapped if swap else None)
        if not drop:
            return batch
        old = batch.proposals
        present = old.present & kept
        soft = torch.where(present[:, None, None], old.soft, 0.5)
        new = Proposals(soft, old.score * present, present)
        return Batch(batch.rows, batch.image, batch.tokens, new, batch.mask)

    def view(self, rows: Tensor, name: str, step: int) -> tuple[Geometry, torch.Generator]:
        """The geometry of `weak`'s view of these rows, and the generator as the draw left it."""
        rng = generator(self.config.train.seed, name, "view", step)
        return draw_geometry(self.pool.mirrorable[rows], rng, least=self.config.train.zoom), rng

    def other_sentence(self, rows: Tensor, pick: Tensor) -> Tensor:
        """(B,) rows of other sentences of the same records, itself where there is no other.

        Args:
            rows: (B,). pick: (B,) in [0, 1), which of the others; 0 is the next one.
        """
        table, counts = self._sentences()
        ref = self.pool.ref_of[rows]
        first, count = table[ref, 0], counts[ref]  # a record's rows follow one another
        return first + (rows - first + (1 + (pick * (count - 1)).long())) % count

    def another(self, rows: Tensor, name: str, step: int) -> tuple[Tensor, Batch]:
        """Another sentence of the record of each pair, drawn at random, as `weak` shows these pairs; where that is in a
        mirror, only sentences that may be mirrored.

        Returns:
            Places (N,) in `rows` of the pairs that have another sentence, and those N sentences.
        """
        pool, (view, _) = self.pool, self.view(rows, name, step)
        pick = torch.rand(len(rows), generator=self.rng(f"{name}: another sentence", step))
        other = self.other_sentence(rows, pick)
        places = ((other != rows) & ~(view.mirrored & ~pool.mirrorable[other])).nonzero()[:, 0]
        return places, pool.batch(other, view=view)[places]

    def rng(self, name: str, step: int) -> torch.Generator:
        """A generator for this purpose at this step."""
        return generator(self.config.train.seed, name, step)

    def answer(self, network: Network, image: Tensor, tokens: Tensor, proposals: Proposals | None = None) -> Answer:
        """One pass of student or teacher over a batch, divided among the processes there are.

        Args:
            image: (B, 3, H, W) in [0, 1]. tokens: (B, L). proposals: of B pairs; without, only `q` is answered.
        """
        pieces = self.config.train.accumulate
        with self.autocast():
            return divided(network, normalise(image), tokens, proposals, processes=self.processes, pieces=pieces)

    def autocast(self) -> torch.autocast:
        """The precision of the network's passes."""
        kind = self.config.train.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def _sentences(self) -> tuple[Tensor, Tensor]:
        if "sentences" not in self.__dict__:
            counts = torch.tensor([len(rows) for rows in self.pool.pairs_of])
            table = torch.zeros(len(counts), int(counts.max()), dtype=torch.int64)
            for ref, rows in enumerate(self.pool.pairs_of):
                table[ref, : len(rows)] = torch.tensor(rows)
            self.__dict__["sentences"] = (table, counts)
        return self.__dict__["sentences"]


class Method(Protocol):
    """One method, one file: what happens in a step."""

    @property
    def extra(self) -> nn.Module:
        """Its own modules (a policy, say): trained, saved and resumed with the network; may be empty."""
        ...

    def __init__(self, parts: Parts) -> None: ...

    def learning_rates(self) -> Mapping[str, float]:
        """Peak learning rate of `segmenter`, `sesm` and `extra`."""
        ...

    def step(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss to go down, and what to log."""
        ...
