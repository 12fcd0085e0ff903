"""One picture, many sentences: load a run once, set the picture once, ask as often as you like."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from l2l.data.images import load
from l2l.data.refer import write_whole
from l2l.errors import InputError
from l2l.evaluate import upsample
from l2l.model.words import vocabulary_of
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

    Raises:
        InputError: if there is no run, it is damaged, or it has no network (`prior_only`).

    Example:
        >>> predictor = Predictor("runs/a")                            # doctest: +SKIP
        >>> predictor.set_image("street.jpg")                          # doctest: +SKIP
        >>> predictor.segment("left black shoe").mask.sum()            # doctest: +SKIP
    """

    def __init__(self, run: Path | str):
        config, network, _, about = load_run(run)
        if network is None:
            raise InputError("this run is the prior alone; it has no network to predict with", file=run)
        self.config, self.network = config, network
        self.vocabulary = vocabulary_of(config, about, run)
        self._small: Tensor | None = None
        self._size = (0, 0)
        self._sam = choose_sam(config)
        self._for_sam: np.ndarray | None = None  # the picture, until SAM is asked about it

    def set_image(self, image: Path | str | Image.Image | np.ndarray) -> None:
        """Choose the picture: a path, a Pillow image, or uint8 (H, W, 3) RGB or (H, W) grey.

        Raises:
            InputError: if it cannot be read, or is no such array.
        """
        picture = pixels(image)
        self._size = (picture.shape[0], picture.shape[1])
        self._small = resize(picture, (self.config.data.height, self.config.data.width))
        self._for_sam = picture

    @torch.no_grad()
    def segment(self, sentence: str, box: Sequence[float] | None = None) -> Prediction:
        """The pixels a sentence means.

        Args:
            sentence: what is meant.
            box: x0, y0, x1, y1 in pixels of the picture, where somebody or something has pointed; it may be wrong.

        Raises:
            InputError: if no picture is set, the sentence is empty, or the box is not in the picture.
        """
        if self._small is None:
            raise InputError("no picture yet: call set_image first")
        if not sentence.strip():
            raise InputError("an empty sentence")
        image = self._small[None].float() / 255
        proposals = self._proposals(image, box)
        tokens = self.vocabulary.encode([sentence], self.config.data.words)
        device = self.config.train.device
        given = Proposals(proposals.soft.to(device), proposals.score.to(device), proposals.present.to(device))
        half = choose_precision(self.config) == torch.bfloat16
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=half):
            answer = self.network(normalise(image.to(device)), tokens.to(device), given)
        assert answer.elevated is not None and answer.guided is not None
        logits, reliability = answer.q, answer.elevated.kappa
        if box is not None:
            logits, reliability = answer.best, answer.elevated.score
        mask = upsample(logits[0].cpu(), self._size)
        return Prediction(mask, float(reliability[0].float().sigmoid()), tight_box(mask))

    def _proposals(self, image: Tensor, box: Sequence[float] | None) -> Proposals:
        cells = grid_size((self.config.data.height, self.config.data.width))
        if box is None:
            return Proposals.absent(1, *cells)
        if len(box) != 4:
            raise InputError(f"a box has 4 numbers, not {len(box)}")
        prior = Prior(boxes=(from_pixels(box, self._size),), scores=(BOX_SCORE,))
        if self._sam is None:
            soft = propose([prior], image, cells)
        else:
            if self._for_sam is not None:
                self._sam.set_image(self._for_sam)
                self._for_sam = None
            soft = propose_with(self._sam, [prior], cells)
        soft = (soft * 255).round() / 255  # as coarse as the tables of training
        return Proposals(soft, torch.tensor([BOX_SCORE]), torch.tensor([True]))


def predict(
    run: Path | str, image: Path | str | Image.Image | np.ndarray, sentence: str, *, box: Sequence[float] | None = None
) -> Prediction:
    """Segment what a sentence means in a picture; see `Predictor`, which is faster for more than one question."""
    predictor = Predictor(run)
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
