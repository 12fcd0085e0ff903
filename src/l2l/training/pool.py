"""All image-sentence pairs of a run as a few tables of tensors: a batch is a gather, nothing is per-sample Python."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.data import images as image_files
from l2l.data.augment import Geometry, mirror_sentence
from l2l.data.cache import cached_parts
from l2l.data.streams import seed_of
from l2l.errors import InputError
from l2l.model.text import Vocabulary
from l2l.model.vision import DEVIATION, MEAN
from l2l.proposals.proposal import Proposals
from l2l.sample import Sample

TOGETHER = 64
"""Pictures that are decoded and in memory at once while a table of them is made."""


def normalise(image: Tensor) -> Tensor:
    """[0, 1] -> about zero mean and unit variance, in the memory layout that convolutions like."""
    return ((image - MEAN) / DEVIATION).contiguous(memory_format=torch.channels_last)


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size of the stride-4 map of an image of `size`: two convolutions of stride 2, each rounding up."""
    return (size[0] + 3) // 4, (size[1] + 3) // 4


def resize(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (3, *size), bilinear with antialiasing (equal to PIL's within one level)."""
    tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    small = F.interpolate(tensor, size=size, mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)[0]


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on its way into the network; B pairs."""

    rows: Tensor
    """(B,) rows of the pool."""
    image: Tensor
    """(B, 3, H, W) float in [0, 1]."""
    tokens: Tensor
    """(B, L) int64, mirrored along with the picture."""
    proposals: Proposals
    mask: Tensor | None = None
    """(B, h, w) float in [0, 1]: the share of each stride-4 cell that is foreground; `None` for unlabelled pairs."""

    def __getitem__(self, places: Tensor) -> Batch:
        """Some of the pairs."""
        mask = None if self.mask is None else self.mask[places]
        return Batch(
            self.rows[places], self.image[places], self.tokens[places], self.proposals[places], mask
        )


def joined(*batches: Batch) -> Batch:
    """Batches as one, without masks."""
    given = [one.proposals for one in batches]
    proposals = Proposals(
        torch.cat([one.soft for one in given]), torch.cat([one.score for one in given]),
        torch.cat([one.present for one in given]),
    )  # fmt: skip
    rows, images, tokens = zip(*((one.rows, one.image, one.tokens) for one in batches), strict=True)
    return Batch(torch.cat(rows), torch.cat(images), torch.cat(tokens), proposals)


@dataclass(frozen=True)
class Pool:
    """Tables over images, refs and pairs. `masks` are there only for those refs whose labels may be seen."""

    samples: tuple[Sample, ...]
    size: tuple[int, int]
    """(height, width) the network sees."""
    images: Tensor
    """uint8 (images, 3, H, W)."""
    image_of: Tensor
    """(pairs,) row of `images`."""
    ref_of: Tensor
    """(pairs,) row of `samples`."""
    tokens: Tensor
    """(pairs, L) int64."""
    mirrored: Tensor
    """(pairs, L) int64: the mirrored sentence."""
    mirrorable: Tensor
    """(pairs,) bool."""
    rival: Tensor
    """(pairs,) a pair of the same image that means something else, or -1: where swapped priors come from."""
    masks: Tensor
    """uint8 (refs, h, w), 255 x foreground share; zeros for unlabelled refs."""
    labelled: Tensor
    """(refs,) bool."""
    soft: Tensor
    """uint8 (pairs, h, w), 255 x P."""
    score: Tensor
    """(pairs,) float."""
    present: Tensor
    """(pairs,) bool."""
    pairs_of: tuple[tuple[int, ...], ...] = ()
    """For each ref, its rows."""
    device: str = "cpu"
    """Where batches go; the tables stay in main memory."""
    vocabulary: Vocabulary = Vocabulary(())
    """What the tokens mean."""

    def __len__(self) -> int:
        return len(self.image_of)

    @property
    def ids(self) -> list[str]:
        """Sentence id of each pair."""
        return [key for sample in self.samples for key in sample.sentence_ids]

    @property
    def sentences(self) -> list[str]:
        """Sentence of each pair."""
        return [sentence for sample in self.samples for sentence in sample.sentences]

    @property
    def pictures(self) -> list[str]:
        """Where the picture in each row of `images` comes from, see `data.images.load`."""
        return list(dict.fromkeys(sample.image for sample in self.samples))

    def with_proposals(self, soft: Tensor, score: Tensor, present: Tensor) -> Pool:
        """The same pool with priors."""
        return dataclasses.replace(self, soft=soft, score=score, present=present)

    def whole(self, rows: Tensor) -> Tensor:
        """Rows (N,) of all sentences of the records of some rows (B,), which come first."""
        records = dict.fromkeys(self.ref_of[rows].tolist())
        every = torch.tensor([row for ref in records for row in self.pairs_of[ref]])
        return torch.cat([rows, every[~torch.isin(every, rows)]])

    def batch(self, rows: Tensor, *, view: Geometry | None = None, swap: Tensor | None = None) -> Batch:
        """Gather rows (B,); warp pictures, masks and proposals together if a view is given.

        `swap` (B,) bool: give these pairs the prior of another referent in the same image, where there is one.
        """
        to = self.device
        image = self.images[self.image_of[rows]].to(to).float() / 255
        rival = self.rival[rows]
        source = rows if swap is None else torch.where(swap & (rival >= 0), rival, rows)
        soft = self.soft[source].to(to).float() / 255
        present = self.present[source].to(to)
        mask = self.masks[self.ref_of[rows]].to(to).float() / 255
        tokens = self.tokens[rows].to(to)
        if view is not None:
            image = view.apply(image - MEAN) + MEAN  # beyond the picture's frame: mid grey
            warped = view.apply(torch.stack([soft, mask], dim=1))
            soft = torch.where(present[:, None, None], warped[:, 0], 0.5)
            mask = warped[:, 1]
            tokens = torch.where(view.mirrored[:, None], self.mirrored[rows].to(to), tokens)
        proposals = Proposals(soft, self.score[source].to(to), present)
        return Batch(rows, image, tokens, proposals, mask if bool(self.labelled[self.ref_of[rows]].all()) else None)


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> Tensor:
    """bool (H, W) -> uint8 (*size): 255 x the share of each cell that is foreground."""
    small = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=size, mode="area")[0, 0]
    return (small * 255).round().to(torch.uint8)


def load_images(
    samples: Sequence[Sample], size: tuple[int, int]
) -> tuple[Tensor, dict[str, int]]:
    """Decode each picture once at `size`: uint8 (N, 3, H, W), and the row of each image. Kept in the cache."""
    names = list(dict.fromkeys(sample.image for sample in samples))
    key = seed_of(*(image_files.digest(name) for name in names))

    def one(name: str) -> Tensor:
        return resize(image_files.load(name), size)

    def build() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as workers:
            for start in range(0, len(names), TOGETHER):
                yield np.stack([tensor.numpy() for tensor in workers.map(one, names[start : start + TOGETHER])])

    name = f"images-{size[0]}x{size[1]}-{len(names)}-{key:016x}"
    table = cached_parts(name, (len(names), 3, *size), np.uint8, build)
    return table, {name: row for row, name in enumerate(names)}


def build_pool(
    samples: Sequence[Sample], vocabulary: Vocabulary, *, size: tuple[int, int], words: int, labelled: bool = True,
    device: str = "cpu",
) -> Pool:
    """Make the tables; priors are absent until `with_proposals`.

    Args:
        words: longest sentence in words. labelled: keep masks of labelled samples (False throws every truth away).
    """
    if not samples:
        raise InputError("no image-sentence pairs to work on")
    images, row_of = load_images(samples, size)
    cells = grid_size(size)
    pairs_of: list[tuple[int, ...]] = []
    image_of: list[int] = []
    ref_of: list[int] = []
    sentences: list[str] = []
    masks = torch.zeros(len(samples) if labelled else 1, *cells, dtype=torch.uint8)
    known = torch.zeros(len(samples), dtype=torch.bool)
    of_image: dict[int, list[int]] = {}
    for ref, sample in enumerate(samples):
        first = len(image_of)
        row = row_of[sample.image]
        for _, sentence in sample.pairs():
            of_image.setdefault(row, []).append(len(image_of))
            image_of.append(row)
            ref_of.append(ref)
            sentences.append(sentence)
        pairs_of.append(tuple(range(first, len(image_of))))
        if labelled and sample.targets is not None:
            masks[ref] = shrink_mask(sample.mask(), cells)
            known[ref] = True
    mirrored = [mirror_sentence(sentence) for sentence in sentences]
    rival = torch.full((len(image_of),), -1, dtype=torch.int64)
    for rows in of_image.values():
        for place, row in enumerate(rows):
            others = [other for other in rows[place:] + rows[:place] if ref_of[other] != ref_of[row]]
            if others:
                rival[row] = others[len(others) // 2]
    count = len(image_of)
    return Pool(
        samples=tuple(samples), size=size, images=images, image_of=torch.tensor(image_of), ref_of=torch.tensor(ref_of),
        tokens=vocabulary.encode(sentences, words),
        mirrored=vocabulary.encode([new or old for new, old in zip(mirrored, sentences, strict=True)], words),
        mirrorable=torch.tensor([new is not None for new in mirrored]), rival=rival,
        masks=masks.expand(len(samples), *cells), labelled=known,
        soft=torch.full((1, 1, 1), 128, dtype=torch.uint8).expand(count, *cells), score=torch.zeros(count),
        present=torch.zeros(count, dtype=torch.bool), pairs_of=tuple(pairs_of), device=device,
        vocabulary=vocabulary,
    )  # fmt: skip
