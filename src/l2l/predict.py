"""One picture, many sentences: load a run once, set the picture once, ask as often as you like."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from l2l.data.durable import write_whole
from l2l.data.images import load
from l2l.errors import InputError
from l2l.evaluate import outline_gain
from l2l.model.words import vocabulary_of
from l2l.outlines import Picture, raised, upsample
from l2l.priors.prior import Prior, from_pixels
from l2l.proposals.affinity import propose
from l2l.proposals.proposal import Proposals
from l2l.proposals.sam import propose_with
from l2l.training.loop import load_run
from l2l.training.pool import grid_size, normalise, resize
from l2l.training.prepare import choose_precision, choose_sam

BOX_SCORE = 0.9  # a box given by hand is meant, but the sentence may still overrule it
COLOUR = (255, 64, 64)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run answers to one sentence."""

    mask: np.ndarray
    """bool (H, W), the picture's own size."""
    score: float
    """The IoU the model expects of this mask, in [0, 1]."""
    box: tuple[int, int, int, int] | None
    """Tight box of the mask in pixels, x0 y0 x1 y1 with x1 and y1 just outside; `None` where the mask is empty."""


class Predictor:
    """A run, ready to answer.

    Args:
        run: the run's folder.
        outlines: masks get their outlines from the picture (`l2l.outlines`), and scores say so, as far as the run's
            labelled pictures can be read to measure by how much, or were before.

    Raises:
        InputError: if there is no run, it is damaged, or it has no network (`prior_only`).

    Example:
        >>> predictor = Predictor("runs/a")                            # doctest: +SKIP
        >>> predictor.set_image("street.jpg")                          # doctest: +SKIP
        >>> predictor.segment("left black shoe").mask.sum()            # doctest: +SKIP
    """

    def __init__(self, run: Path | str, *, outlines: bool = False):
        config, network, _, about = load_run(run)
        if network is None:
            raise InputError("this run is the prior alone; it has no network to predict with", file=run)
        self.config, self.network = config, network
        self.vocabulary = vocabulary_of(config, about, run)
        self._small: Tensor | None = None
        self._seen: tuple[Any, ...] | None = None  # of the picture, without any words
        self._size = (0, 0)
        self._sam = choose_sam(config)
        self._for_sam: np.ndarray | None = None  # the picture, until SAM is asked about it
        self._pictures: list[Picture] | None = None  # what gives masks their outlines
        self.gains = {True: 1.0, False: 1.0}  # of answers with a box and without
        self.outlines = outlines
        if outlines:
            with contextlib.suppress(InputError):  # the pictures are elsewhere: scores stay as they are
                self.gains = {given: outline_gain(run, config, network, about, prior=given) for given in self.gains}

    def set_image(self, image: Path | str | Image.Image | np.ndarray) -> None:
        """Choose the picture: a path, a Pillow image, or uint8 (H, W, 3) RGB or (H, W) grey.

        Raises:
            InputError: if it cannot be read, or is no such array.
        """
        picture = pixels(image)
        self._size = (picture.shape[0], picture.shape[1])
        self._small = resize(picture, (self.config.data.height, self.config.data.width))
        self._for_sam, self._seen = picture, None
        if self.outlines:
            self._pictures = [Picture(picture, self._small)]

    def segment(self, sentence: str, box: Sequence[float] | None = None) -> Prediction:
        """The pixels a sentence means.

        Args:
            sentence: what is meant.
            box: x0, y0, x1, y1 in pixels of the picture, where somebody or something has pointed; it may be wrong.

        Raises:
            InputError: if no picture is set, the sentence is empty, or the box is not in the picture.
        """
        return self.segment_all([sentence], [box])[0]

    @torch.no_grad()
    def segment_all(
        self, sentences: Sequence[str], boxes: Sequence[Sequence[float] | None] | None = None, *, batch: int = 32
    ) -> list[Prediction]:
        """The pixels that each of many sentences means, as `segment` finds them; what needs no words is done once.

        Args:
            sentences: N of them. boxes: one for each, or `None` where nobody pointed; none at all if not given.
            batch: sentences at a time.

        Raises:
            InputError: as `segment`, or if there are not as many boxes as sentences.
        """
        if self._small is None:
            raise InputError("no picture yet: call set_image first")
        if not all(sentence.strip() for sentence in sentences):
            raise InputError("an empty sentence")
        if not sentences:
            return []
        boxes = [None] * len(sentences) if boxes is None else boxes
        if len(boxes) != len(sentences):
            raise InputError(f"{len(boxes)} boxes for {len(sentences)} sentences")
        image = self._small[None].float() / 255
        known = [box is not None for box in boxes]
        proposals = self._proposals(image, boxes) if any(known) else None
        of = torch.zeros(len(sentences), dtype=torch.int64)
        return self._answer(image, of, [self._size], sentences, known, proposals, batch)

    @torch.no_grad()
    def segment_many(
        self, pictures: Sequence[np.ndarray], sentences: Sequence[Sequence[str]],
        boxes: Sequence[Sequence[Sequence[float] | None]], *, batch: int = 32,
    ) -> list[list[Prediction]]:
        """As `set_image` and `segment_all` for each of P pictures, but the network sees them together.

        No picture is set afterwards.

        Args:
            pictures: P of them, as `set_image` takes them. sentences, boxes: of each picture, as `segment_all`.
            batch: sentences at a time.

        Raises:
            InputError: as `set_image` and `segment_all`.
        """
        if not all(sentence.strip() for several in sentences for sentence in several):
            raise InputError("an empty sentence")
        small, sizes, given, ready, known = [], [], [], [], [box is not None for several in boxes for box in several]
        cells = grid_size((self.config.data.height, self.config.data.width))
        for picture, own in zip(pictures, boxes, strict=True):
            self.set_image(picture)
            assert self._small is not None
            small.append(self._small.float() / 255)
            sizes.append(self._size)
            ready += self._pictures or []
            pointed = any(box is not None for box in own)
            given.append(
                self._proposals(small[-1][None], own) if pointed else Proposals.absent(len(own), *cells)
            )
        counts = [len(several) for several in sentences]
        if counts != [len(own) for own in boxes]:
            raise InputError("not as many boxes as sentences")
        of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        proposals = Proposals(
            torch.cat([one.soft for one in given]), torch.cat([one.score for one in given]),
            torch.cat([one.present for one in given]),
        ) if any(known) else None  # fmt: skip
        self._seen, self._pictures = None, ready
        try:
            flat = [sentence for several in sentences for sentence in several]
            found = iter(self._answer(torch.stack(small), of, sizes, flat, known, proposals, batch))
        finally:
            self._small = self._seen = self._for_sam = self._pictures = None
        return [[next(found) for _ in range(count)] for count in counts]

    def _answer(
        self, images: Tensor, of: Tensor, sizes: Sequence[tuple[int, int]], sentences: Sequence[str],
        known: Sequence[bool], proposals: Proposals | None, batch: int,
    ) -> list[Prediction]:
        """images (P, 3, H, W) in [0, 1]; `of` (N,), which of them each sentence is about; `known`, where a box is."""
        tokens = self.vocabulary.encode(sentences, self.config.data.words)
        device = self.config.train.device
        half = choose_precision(self.config) == torch.bfloat16
        found: list[Prediction] = []
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=half):
            picture = normalise(images.to(device))
            if self._seen is None:
                self._seen = self.network.segmenter.look(picture)
            for rows in torch.arange(len(sentences)).split(batch):
                given = None if proposals is None else proposals[rows].to(device)
                mine, seen = picture, self._seen
                if len(images) > 1:
                    places = of[rows].to(device)
                    mine, seen = picture[places], tuple(part[places] for part in self._seen)
                answer = self.network(mine, tokens[rows].to(device), given, seen=seen)
                told = self.network.sesm.unprompted(answer.q)
                for place, row in enumerate(rows.tolist()):
                    logits, reliability = answer.q[place], told[place]
                    if known[row] and answer.elevated is not None:
                        logits, reliability = answer.best[place], answer.elevated.score[place]
                    which, logits = int(of[row]), logits.cpu()
                    mask = self._pictures[which].mask(logits) if self._pictures else upsample(logits, sizes[which])
                    score = float(raised(self.network.sesm.promised(reliability), self.gains[known[row]]))
                    found.append(Prediction(mask, score, tight_box(mask)))
        return found

    def _proposals(self, image: Tensor, boxes: Sequence[Sequence[float] | None]) -> Proposals:
        """P of each box; absent where there is none."""
        for box in boxes:
            if box is not None and len(box) != 4:
                raise InputError(f"a box has 4 numbers, not {len(box)}")
        priors = [
            Prior() if box is None else Prior(boxes=(from_pixels(box, self._size),), scores=(BOX_SCORE,))
            for box in boxes
        ]
        cells = grid_size((self.config.data.height, self.config.data.width))
        if self._sam is None:
            soft = propose(priors, image.expand(len(priors), -1, -1, -1), cells)
        else:
            if self._for_sam is not None:
                self._sam.set_image(self._for_sam)
                self._for_sam = None
            soft = propose_with(self._sam, priors, cells)
        present = torch.tensor([not prior.empty for prior in priors])
        soft = torch.where(present[:, None, None], (soft * 255).round() / 255, 0.5)  # as coarse as in training
        return Proposals(soft, torch.tensor([prior.score for prior in priors]), present)


def predict(
    run: Path | str, image: Path | str | Image.Image | np.ndarray, sentence: str, *,
    box: Sequence[float] | None = None, outlines: bool = False,
) -> Prediction:  # fmt: skip
    """Segment what a sentence means in a picture; see `Predictor`, which is faster for more than one question."""
    predictor = Predictor(run, outlines=outlines)
    predictor.set_image(image)
    return predictor.segment(sentence, box)


def pixels(image: Path | str | Image.Image | np.ndarray) -> np.ndarray:
    """A picture in any form as uint8 (H, W, 3) RGB. Raises `InputError` if it is none."""
    if isinstance(image, (str, Path)):
        return load(str(image))
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype == np.uint8 and image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"a picture is uint8 (H, W, 3) or (H, W), this array is {image.dtype} {image.shape}")
    return image


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """x0, y0, x1, y1 around the foreground of a boolean (H, W) mask, x1 and y1 just outside.

    Example:
        >>> tight_box(np.eye(4, 6, 1, bool))
        (1, 0, 5, 4)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a mask as an 8-bit grey PNG: 255 what is meant, 0 the rest."""
    _write_png(Image.fromarray(mask.astype(np.uint8) * 255), path)


def save_overlay(picture: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """Write the picture, uint8 (H, W, 3), with the mask laid over it in red and its outline in white."""
    out = picture.astype(np.float32)
    out[mask] = 0.5 * out[mask] + 0.5 * np.array(COLOUR, np.float32)
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    out[mask & ~inner] = 255
    _write_png(Image.fromarray(out.round().astype(np.uint8)), path)


def _write_png(picture: Image.Image, path: Path) -> None:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())
