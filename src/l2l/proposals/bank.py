"""Priors of many pairs as tables: read from a store or a file, made into soft maps once, kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from l2l.data.cache import cached, cached_parts
from l2l.data.images import digest, load
from l2l.errors import BadRecords, InputError
from l2l.priors.precomputed import Precomputed
from l2l.priors.prior import Prior
from l2l.priors.store import ImageDigests, PriorStore, keys_of
from l2l.proposals.affinity import propose
from l2l.proposals.regions import region_bank
from l2l.proposals.sam import Sam, propose_with
from l2l.sample import Sample

VERSION = 2  # of the maps in the cache: raise it when `propose` changes
SAM_VERSION = 1  # the same for `propose_with`


@dataclass(frozen=True)
class PriorBank:
    """The priors of some pairs, in the order of their rows."""

    priors: tuple[Prior, ...]
    name: str
    """Whose priors these are, as reports say it."""
    simulated: bool
    """Drawn from the truth, wholly or in part."""
    left: int = 0
    """Pairs that the store's source has not been asked about, or gave no answer to: its filling was cut off."""


def read_priors(where: str | Path, samples: Sequence[Sample], *, bad: BadRecords | None = None) -> PriorBank:
    """The prior of each pair of `samples`, from a store's folder or a JSONL file; empty ones where there is none.

    Raises:
        InputError: if there is nothing at `where`, it is damaged, or it knows none of the pairs.
    """
    path = Path(where)
    pairs, left = [(sample, sentence) for sample in samples for sentence in sample.sentences], 0
    if path.is_file():
        source = Precomputed(path, bad=bad)
        priors = source.answer(pairs)
        name, simulated = source.name, source.simulated
    elif path.is_dir():
        store = PriorStore(path)
        name = store.about().get("name", path.name)
        keys = keys_of(pairs, ImageDigests())
        found = store.get(list(dict.fromkeys(keys)))
        priors = [found.get(key) or Prior(note="not in the store") for key in keys]
        simulated, left = "simulated" in name, store.left()
        store.close()
    else:
        raise InputError("no prior store and no prior file here", file=path)
    if priors and all(prior.empty for prior in priors):
        raise InputError("holds no prior for any of these pairs", file=path)
    return PriorBank(tuple(priors), name, simulated, left)


def soft_maps(
    priors: Sequence[Prior], images: Tensor, image_of: Tensor, size: tuple[int, int], *, batch: int = 128,
    progress: Callable[[int, int], None] | None = None, sam: Sam | None = None, pictures: Sequence[str] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """P of each prior: uint8 (N, h, w) = 255 x P, scores (N,) float, presence (N,) bool.

    Args:
        images: uint8 (I, 3, H, W). image_of: (N,) rows of `images`. size: (h, w).
        sam: makes P of the original pictures, where it is given. pictures: their addresses, one for each of `images`.
    """
    if sam is None:
        soft = _by_colours(priors, images, image_of, size, batch, progress)
    else:
        soft = _by_sam(sam, priors, pictures, image_of, size, progress)
    score = torch.tensor([prior.score for prior in priors], dtype=torch.float32)
    return soft, score, torch.tensor([not prior.empty for prior in priors])


def _by_colours(
    priors: Sequence[Prior], images: Tensor, image_of: Tensor, size: tuple[int, int], batch: int,
    progress: Callable[[int, int], None] | None,
) -> Tensor:  # fmt: skip
    """uint8 (N, h, w), see `soft_maps`."""
    about = hashlib.blake2b(digest_size=12)
    for prior in priors:
        about.update(json.dumps(prior.to_json()).encode())
    about.update(image_of.numpy().tobytes() + repr((VERSION, size, tuple(images.shape))).encode())
    about.update(images[:: max(1, len(images) // 16)].numpy().tobytes())

    def build() -> Iterator[np.ndarray]:
        regions = region_bank(images)
        for start in range(0, len(priors), batch):
            rows = slice(start, start + batch)
            part = propose(priors[rows], images[image_of[rows]].float() / 255, size, regions[image_of[rows]])
            yield (part * 255).round().to(torch.uint8).numpy()
            if progress:
                progress(min(start + batch, len(priors)), len(priors))

    return cached_parts(f"proposals-{about.hexdigest()}", (len(priors), *size), np.uint8, build)


def _by_sam(
    sam: Sam, priors: Sequence[Prior], pictures: Sequence[str], image_of: Tensor, size: tuple[int, int],
    progress: Callable[[int, int], None] | None,
) -> Tensor:  # fmt: skip
    """uint8 (N, h, w), see `soft_maps`. What belongs to one picture is kept in the cache by itself as well, so that
    work cut off goes on where it was."""
    rows_of: list[list[int]] = [[] for _ in pictures]
    for row, image in enumerate(image_of.tolist()):
        rows_of[image].append(row)
    about = repr((SAM_VERSION, sam.fingerprint, size))
    keys = []
    for picture, rows in zip(pictures, rows_of, strict=True):
        told = [about, digest(picture), *(json.dumps(priors[row].to_json()) for row in rows)]
        keys.append(hashlib.blake2b("\n".join(told).encode(), digest_size=12).hexdigest())

    def make(picture: str, rows: list[int]) -> np.ndarray:
        given = [priors[row] for row in rows]
        if any(prior.mask is None and not prior.empty for prior in given):
            sam.set_image(load(picture))
        return (propose_with(sam, given, size) * 255).round().to(torch.uint8).numpy()

    def build() -> np.ndarray:
        out, done = np.empty((len(priors), *size), np.uint8), 0
        for picture, rows, key in zip(pictures, rows_of, keys, strict=True):
            out[rows] = cached(f"sam/{key[:2]}/proposals-{key}", partial(make, picture, rows)).numpy()
            done += len(rows)
            if progress:
                progress(done, len(priors))
        return out

    whole = hashlib.blake2b("\n".join(keys).encode() + image_of.numpy().tobytes(), digest_size=12)
    return cached(f"proposals-{whole.hexdigest()}", build)
