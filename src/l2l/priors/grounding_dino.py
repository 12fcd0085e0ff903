"""Grounding DINO: a detector that takes a sentence for its class, and gives boxes with scores of its own.

Liu et al., "Grounding DINO", ECCV 2024; as transformers has it. Words and picture are mixed from the first layer on, so
only the picture's pixels are shared between sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2l.errors import InputError
from l2l.pretrained import IMAGENET, Pretrained, frame
from l2l.priors.prior import Box, Prior, from_pixels

SHORT, LONG = 800, 1333  # pixels of the shorter side of what it sees, and of the longer side at most
KEPT = 10  # boxes of a prior, at most


class GroundingDino:
    """One Grounding DINO.

    Args:
        weights: which one.
        device: torch device. dtype: of weights and arithmetic; bfloat16 would round coordinates to 1/256.
        threshold: boxes whose score is not above it are left out.
    """

    def __init__(
        self, weights: Pretrained, *, device: str, dtype: torch.dtype = torch.float32, threshold: float = 0.25
    ):
        self.weights, self.device, self.dtype, self.threshold = weights, device, dtype, threshold

    @property
    def about(self) -> str:
        """What the answers depend on besides the weights."""
        return f"{caption('...')} {SHORT} {LONG} {KEPT} {self.threshold} {self.dtype}"

    @cached_property
    def model(self) -> Any:
        """The model. Raises `InputError` if it cannot be loaded."""
        return self.weights.load("GroundingDinoForObjectDetection", device=self.device, dtype=self.dtype)

    @torch.inference_mode()
    def look(self, picture: np.ndarray) -> Tensor:
        """A picture, uint8 (H, W, 3) RGB, as it sees it: (3, h, w)."""
        size = fitted((picture.shape[0], picture.shape[1]))
        return frame(picture, size, IMAGENET, device=self.device, mode="bilinear").to(self.dtype)

    @torch.inference_mode()
    def ask(self, look: Tensor, sentences: Sequence[str]) -> list[Prior]:
        """One prior per sentence."""
        words = self.weights.tokenizer(
            [caption(sentence) for sentence in sentences], padding=True, truncation=True, return_tensors="pt",
            max_length=self.model.config.max_text_len, split_special_tokens=True,
        ).to(self.device)  # fmt: skip
        out = self.model(
            pixel_values=look.expand(len(sentences), -1, -1, -1), input_ids=words.input_ids,
            attention_mask=words.attention_mask, token_type_ids=words.token_type_ids,
        )  # fmt: skip
        scores = out.logits.float().sigmoid().amax(-1).cpu()  # (B, Q), of the best word; padding has score 0
        boxes = out.pred_boxes.float().cpu()  # (B, Q, 4): middle, width and height
        return [detected(*one, threshold=self.threshold) for one in zip(boxes, scores, strict=True)]


def caption(sentence: str) -> str:
    """As the model was trained to read it: lower case, a full stop at the end.

    Example:
        >>> caption("Left black shoe")
        'left black shoe.'
    """
    return sentence.lower().strip().rstrip(".").rstrip() + "."


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels at which a picture of `size` is seen: the shorter side `SHORT`, unless the longer one
    would get above `LONG`; the shape is kept."""
    short, long = min(size), max(size)
    exact = min(float(SHORT), LONG * short / long)
    pair = round(exact), int(exact * long / short)
    return pair if size[0] <= size[1] else (pair[1], pair[0])


def detected(boxes: Tensor, scores: Tensor, *, threshold: float) -> Prior:
    """Detections as a prior, best first.

    Args:
        boxes: (Q, 4), middle x and y, width and height, as shares of the picture. scores: (Q,) in [0, 1]. threshold:
            what a score has to be above.
    """
    found: list[tuple[Box, float]] = []
    for place in scores.argsort(descending=True, stable=True).tolist():
        score, (x, y, width, height) = float(scores[place]), boxes[place].tolist()
        if not score > threshold or len(found) == KEPT:
            break
        try:
            box = from_pixels((x - width / 2, y - height / 2, x + width / 2, y + height / 2), (1, 1))
        except InputError:  # more than half outside, or without area
            continue
        found.append((box, min(score, 1.0)))
    if not found:
        return Prior(note=f"no box with a score above {threshold:g}")
    return Prior(boxes=tuple(box for box, _ in found), scores=tuple(round(score, 4) for _, score in found))
