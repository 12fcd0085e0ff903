"""Views that keep a sentence true.

Weak: mirror the picture *and* the sentence, shrink it a little and shift it inside its frame (nothing leaves the frame,
so "leftmost" stays leftmost). Strong: photometric only and never the hue (colour words stay true), the same pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"\b([Ll]eft|LEFT|[Rr]ight|RIGHT)(?=(?i:most|hand|ward|wards|side|er)?\b|-)")
_ANY_SIDE = re.compile(r"left|right", re.IGNORECASE)
_NOT_A_SIDE = re.compile(
    r"\bright\s+(next|behind|beside|in\s+front|above|below|under|there|here|at|after|before|by|near|now|angle)\b"
    r"|\b(all|alright|that's)\s+right\b|\bleft\s+(over|behind|alone|out)\b|\bleftover|\bbright\w*\b|\bupright\b",
    re.IGNORECASE,
)
_HANDED = re.compile(
    r"\b([lr]|o'?clock|clockwise|counterclockwise|anticlockwise|east\w*|west\w*|says?|reads?|reading|text|letters?|"
    r"words?|numbers?|numbered|lefty|righty|lft|rt|rigth|rihgt|leftt|lefthand\w*|righthand\w*)\b|#|\d",
    re.IGNORECASE,
)


def mirror_sentence(sentence: str) -> str | None:
    """The sentence that is true of the mirrored picture, or `None` where we cannot be sure.

    Left and right change places. Sentences with writing, digits, clock hands, compass points, abbreviated sides or a
    "right" that is not a side (or would be none: "left next to the bus") are not mirrored at all.

    Example:
        >>> mirror_sentence("the leftmost cup, right of the plate")
        'the rightmost cup, left of the plate'
        >>> mirror_sentence("man right behind the bus") is None
        True
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group(1)
        other = _SIDES[word.lower()]
        return other.upper() if word.isupper() and len(word) > 1 else other.capitalize() if word[0].isupper() else other

    mirrored = _SIDE.sub(swap, sentence)
    return mirrored if _is_safe(sentence) and _is_safe(mirrored) else None


def _is_safe(sentence: str) -> bool:
    """Whether each side is a word that can be swapped ("topleft" is not) and nothing reads differently in a mirror."""
    harmless = re.sub(r"\b(up|b)right(est|er|ly)?\b", "", sentence, flags=re.IGNORECASE)
    strange = (_HANDED.search(harmless), _NOT_A_SIDE.search(harmless), _ANY_SIDE.search(_SIDE.sub("", harmless)))
    return not any(strange)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One weak view per sample: mirrored or not, then shrunk by `scale` and moved by `shift` of the frame."""

    mirrored: Tensor
    """(B,) bool."""
    scale: Tensor
    """(B,) in (0, 1]."""
    shift: Tensor
    """(B, 2) x and y of the shrunk picture's centre, in [-1, 1]; small enough that nothing leaves the frame."""

    def grid(self, height: int, width: int) -> Tensor:
        """Sampling grid (B, height, width, 2) for `grid_sample`."""
        sign = 1.0 - 2.0 * self.mirrored.float()
        theta = torch.zeros(len(sign), 2, 3, device=sign.device)
        theta[:, 0, 0], theta[:, 1, 1] = sign / self.scale, 1 / self.scale
        theta[:, 0, 2], theta[:, 1, 2] = -sign * self.shift[:, 0] / self.scale, -self.shift[:, 1] / self.scale
        return F.affine_grid(theta, [len(sign), 1, height, width], align_corners=False)

    def apply(self, maps: Tensor) -> Tensor:
        """Warp maps (B, C, H, W); what comes from outside the picture is 0."""
        grid = self.grid(maps.shape[2], maps.shape[3]).to(maps.dtype)
        return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draw_geometry(mirrorable: Tensor, rng: torch.Generator, *, least: float = 0.8) -> Geometry:
    """Random weak views: half of the mirrorable ones mirrored, scales uniform in [least, 1]."""
    count = len(mirrorable)
    mirrored = (torch.rand(count, generator=rng) < 0.5) & mirrorable.cpu()
    scale = least + (1 - least) * torch.rand(count, generator=rng)
    shift = (2 * torch.rand(count, 2, generator=rng) - 1) * (1 - scale)[:, None]
    to = mirrorable.device
    return Geometry(mirrored.to(to), scale.to(to), shift.to(to))


def strong_view(image: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast, gamma-like and saturation changes, blur and noise; images (B, 3, H, W) in [0, 1].

    Saturation only changes mildly and the hue not at all, so "the red one" stays red.
    """
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, 1, 1, 1, generator=rng)).to(image)

    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * uniform(0.6, 1.3)
    middle = image.mean((1, 2, 3), keepdim=True)
    image = (middle + (image - middle) * uniform(0.6, 1.4)) * uniform(0.7, 1.3) + uniform(-0.1, 0.1)
    blurred = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = torch.where(uniform(0, 1) < 0.4, blurred, image)
    noise = torch.randn(image.shape, generator=rng).to(image)
    return (image + noise * uniform(0, 0.06)).clamp(0, 1)
