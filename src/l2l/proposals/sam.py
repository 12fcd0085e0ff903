"""P by SAM or SAM 2: the mean of the masks that jittered prompts get, so that what is soft is real uncertainty.

Kirillov et al., "Segment Anything", ICCV 2023; Ravi et al., "SAM 2", ICLR 2025; as `transformers` has them. Their image
processors are not used (that of SAM 2 wants torchvision); a picture is resized and normalised here, on every machine
the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.pretrained import IMAGENET, Pretrained, frame
from l2l.priors.prior import Box, Prior
from l2l.proposals.affinity import USUAL, at_least, given_mask, ranked
from l2l.proposals.regions import JITTER, PROMPTS, jittered

LEAST_SIDE = 1 / 256  # of a prompted box: a pixel of SAM's masks

Prompt = tuple[Box | None, tuple[tuple[float, float], ...]]
"""A box, or none, and points of the object, as shares of the picture."""


@dataclass(frozen=True)
class Family:
    """What the models of one kind have in common."""

    model: str
    """Its class in transformers."""
    square: bool
    """A picture is stretched to a square; else it keeps its shape, and what is missing at the right or below is 0."""
    least_iou: float
    """Predicted IoU from which the family's own generator of masks keeps a mask."""


FAMILIES = {
    "sam": Family("SamModel", square=False, least_iou=0.88),
    "sam2": Family("Sam2Model", square=True, least_iou=0.8),
    "sam2_video": Family("Sam2Model", square=True, least_iou=0.8),  # how SAM 2 is published; its memory is left out
}
"""By the `model_type` of a model's configuration."""


class Sam:
    """SAM or SAM 2: `set_image` once, then `masks` as often as you like; a picture is embedded once.

    Nothing is loaded before the first picture.

    Args:
        name: a model on the Hugging Face hub, or a folder written by `save_pretrained`.
        device: torch device. dtype: arithmetic of the picture's embedding, bfloat16 or float32; prompts and masks are
            always float32, since bfloat16 would round coordinates to 2 pixels.
        batch: how many prompts `masks` should be asked at a time.

    Raises:
        InputError: if transformers is not installed, there is no such model, or it is of another family.
    """

    def __init__(self, name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 64):
        self._weights = Pretrained(name, asked_by="data.sam")
        self.family = FAMILIES[self._weights.kind_among(FAMILIES)]
        self.name, self.device, self.dtype, self.batch = name, device, dtype, batch
        self.side = int(self._weights.config.prompt_encoder_config.image_size)
        """Pixels of the square that the model sees."""
        self.covered = (1.0, 1.0)
        """Shares of that square, in height and width, which the picture takes."""
        self._embedding: Any = None

    @property
    def identity(self) -> str:
        """Name and commit on the hub; of a folder its name and the digest of its files."""
        return self._weights.identity

    @property
    def fingerprint(self) -> str:
        """Of the weights and the arithmetic."""
        return f"{self._weights.fingerprint} {self.dtype}"

    @cached_property
    def model(self) -> Any:
        """The model. Raises `InputError` if it cannot be loaded or lacks weights."""
        return self._weights.load(self.family.model, device=self.device, dtype=torch.float32)

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels that a picture of `size` has inside the square."""
        if self.family.square:
            return self.side, self.side
        height, width = (max(1, int(part * self.side / max(size) + 0.5)) for part in size)
        return height, width

    def frame(self, picture: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) RGB -> float (1, 3, side, side), what the model sees."""
        height, width = self.fitted((picture.shape[0], picture.shape[1]))
        pixels = frame(picture, (height, width), IMAGENET, device=self.device, mode="bilinear")
        return F.pad(pixels, (0, self.side - width, 0, self.side - height))[None]

    @torch.no_grad()
    def set_image(self, picture: np.ndarray) -> None:
        """Choose the picture, uint8 (H, W, 3) RGB, and embed it."""
        height, width = self.fitted((picture.shape[0], picture.shape[1]))
        self.covered = height / self.side, width / self.side
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            embedding = self.model.get_image_embeddings(self.frame(picture))
        several = isinstance(embedding, (list, tuple))  # SAM 2 has two finer maps beside it
        self._embedding = [part.float() for part in embedding] if several else embedding.float()

    def to_frame(self, places: Tensor) -> Tensor:
        """Shares of the picture (..., 2k), x and y by turns -> pixels of the square."""
        across, down = self.covered[1] * self.side, self.covered[0] * self.side
        return places * places.new_tensor([across, down]).repeat(places.shape[-1] // 2)

    @torch.no_grad()
    def masks(self, boxes: Tensor | None = None, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the model answers to N prompts, each a box, points, or both.

        Args:
            boxes: (N, 4) shares of the picture, x0 y0 x1 y1. points: (N, k, 2) x and y, all of them on the object.

        Returns:
            Logits (N, M, s, s) of M masks for each prompt, in the frame of the square (see `in_picture`), and the IoU
            (N, M) that the model expects of them.
        """
        assert self._embedding is not None, "set_image comes first"
        asked: dict[str, Tensor] = {}
        if boxes is not None:
            asked["input_boxes"] = self.to_frame(boxes.to(self.device))[None]
        if points is not None:
            asked["input_points"] = self.to_frame(points.to(self.device))[None]
            asked["input_labels"] = torch.ones(asked["input_points"].shape[:3], dtype=torch.int64, device=self.device)
        answer = self.model(image_embeddings=self._embedding, multimask_output=True, **asked)
        return answer.pred_masks[0].float(), answer.iou_scores[0].float()


def in_picture(maps: Tensor, covered: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Maps in the frame of SAM's square as maps of the picture: over each cell, the mean of what bilinear interpolation
    makes of them.

    Args:
        maps: (..., s, s). covered: shares of the square, in height and width, which the picture takes. size: (h, w).

    Returns:
        (..., h, w).
    """
    down, across = (_means(*each).to(maps) for each in zip(size, maps.shape[-2:], covered, strict=True))
    return down @ maps @ across.T


def _means(cells: int, pixels: int, covered: float) -> Tensor:
    """Weights (cells, pixels), rows adding up to 1: the mean over each cell of the line through the pixels, the cells
    taking the first `covered` of their length. A pixel with its centre beyond is left out: it shows no picture."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * (covered * pixels / cells)
    centres = torch.arange(pixels, dtype=torch.float64) + 0.5
    apart = (edges[:, None] - centres).clamp(-1, 1)
    area = torch.where(apart < 0, (apart + 1).square() / 2, 1 - (1 - apart).square() / 2)  # of a hat, up to an edge
    weights = area.diff(dim=0) * (centres < max(covered * pixels, 1))
    return (weights / weights.sum(1, keepdim=True)).float()


def prompts_of(prior: Prior) -> list[Prompt]:
    """What SAM is asked: each box with the points it holds (of nested boxes, the smallest has them); where there is no
    box, each point by itself."""
    held: list[list[tuple[float, float]]] = [[] for _ in prior.boxes]
    for x, y in prior.points:
        around = [at for at, (x0, y0, x1, y1) in enumerate(prior.boxes) if x0 <= x <= x1 and y0 <= y <= y1]
        if around:
            held[min(around, key=lambda at: _area(prior.boxes[at]))].append((x, y))
    if prior.boxes:
        return [(box, tuple(points)) for box, points in zip(prior.boxes, held, strict=True)]
    return [(None, (point,)) for point in prior.points]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def ask(sam: Sam, prompts: Sequence[Prompt], size: tuple[int, int]) -> Tensor:
    """The mean answer to `PROMPTS` jittered copies of each prompt about the picture that was set; of the masks of an
    answer the one of which the model expects most.

    Args:
        prompts: N of them, all with a box or all without, and with as many points. size: (h, w).

    Returns:
        (N, h, w) on the CPU, in [0, 1].
    """
    given = [at_least(box, LEAST_SIDE, LEAST_SIDE) for box, _ in prompts if box is not None]
    boxes = jittered(torch.tensor(given)).clamp(0, 1) if given else None  # (N, J, 4)
    points = None
    if count := len(prompts[0][1]):
        spots = torch.tensor([clicks for _, clicks in prompts])[:, None]  # (N, 1, k, 2)
        noise = JITTER * torch.randn(PROMPTS, count, 2, generator=torch.Generator().manual_seed(1))
        sides = torch.tensor(USUAL) if not given else _sides(torch.tensor(given))[:, None, None]
        points = (spots + sides * noise).clamp(0, 1)  # (N, J, k, 2)
    found = []
    for rows in torch.arange(len(prompts)).split(max(1, sam.batch // PROMPTS)):
        some = [None if each is None else each[rows].flatten(0, 1) for each in (boxes, points)]
        logits, iou = sam.masks(*some)
        best = logits[torch.arange(len(logits), device=logits.device), iou.argmax(1)].sigmoid()
        mean = best.unflatten(0, (len(rows), PROMPTS)).mean(1)
        found.append(in_picture(mean, sam.covered, size).cpu().clamp(0, 1))
    return torch.cat(found)


def _sides(boxes: Tensor) -> Tensor:
    """(N, 4) -> (N, 2), width and height."""
    return boxes[:, 2:] - boxes[:, :2]


def propose_with(sam: Sam, priors: Sequence[Prior], size: tuple[int, int]) -> Tensor:
    """P for each prior, all of the picture that was set last; with the conventions of `affinity.propose`.

    A mask is taken as it is; of boxes (or points) the best becomes a soft map, and further ones stay below 0.5.

    Args:
        priors: N of them. size: (h, w) of the maps, stride 4.

    Returns:
        (N, h, w) float32 in [0, 1]; 0.5 everywhere for an empty prior.
    """
    out = torch.full((len(priors), *size), 0.5)
    wanted: dict[Prompt, list[tuple[int, float]]] = {}  # rows and weights: sentences often share a prompt
    for row, prior in enumerate(priors):
        if prior.mask is not None:
            out[row] = given_mask(prior.mask, size)
        elif prompts := prompts_of(prior):
            out[row] = 0
            for place, weight in ranked(prior.scores or [1.0] * len(prompts)):
                wanted.setdefault(prompts[place], []).append((row, weight))
    kinds: dict[tuple[bool, int], list[Prompt]] = {}
    for prompt in wanted:
        kinds.setdefault((prompt[0] is None, len(prompt[1])), []).append(prompt)
    for alike in kinds.values():
        for prompt, answer in zip(alike, 0.03 + 0.94 * ask(sam, alike, size), strict=True):
            for row, weight in wanted[prompt]:
                out[row] = torch.maximum(out[row], weight * answer)
    return out
