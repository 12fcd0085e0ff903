"""The language-aware hierarchical segmenter: image and sentence in, one logit per stride-4 cell out.

The picture and the words are encoded once (`encode`), giving four maps; decoding them is light and can be done twice,
without guidance (`decode(maps)`) and with it (`decode(maps, guidance)`), which is what training and inference do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.model.fusion import PixelWordAttention, SceneWordContext
from l2l.model.rows import ByRow
from l2l.model.text import trimmed


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the segmenter knows of a batch of image-sentence pairs before it decides."""

    maps: tuple[Tensor, ...]
    """Four maps (B, C_k, H/s, W/s), strides 4, 8, 16, 32, words fused in."""
    sentence: Tensor
    """(B, D): the mean of the words after all fusion."""

    def __getitem__(self, rows: slice) -> Encoded:
        return Encoded(tuple(one[rows] for one in self.maps), self.sentence[rows])

    def eased(self, share: float) -> Encoded:
        """The same, of whose maps only that share of the gradient goes back into the encoder."""
        if share == 1:
            return self
        return Encoded(tuple(torch.lerp(one.detach(), one, share) for one in self.maps), self.sentence)

    def detach(self) -> Encoded:
        return Encoded(tuple(one.detach() for one in self.maps), self.sentence.detach())


class Smooth(nn.Module):
    """One convolution of the decoder; its two passes, unguided and guided, keep statistics of their own."""

    def __init__(self, width: int):
        super().__init__()
        self.convolve = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.plain, self.guided = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor, *, guided: bool) -> Tensor:
        return F.relu((self.guided if guided else self.plain)(self.convolve(x)))


class Segmenter(ByRow, nn.Module):
    """Encoder, text encoder, fusion at every stage and a top-down decoder.

    Args:
        vision: a hierarchical encoder (see `model.vision`).
        text: tokens (B, L) -> words (B, L, D) and the mask of real ones.
        words: D.
        width: channels of the decoder.
        context: layers of `SceneWordContext` at strides 8, 16 and 32.
    """

    def __init__(
        self, *, vision: nn.Module, text: nn.Module, words: int, width: int = 64, context: Sequence[int] = (1, 2, 1)
    ):
        super().__init__()
        self.vision, self.text, self.width = vision, text, width
        channels = vision.channels
        self.attention = nn.ModuleList(
            PixelWordAttention(width=c, words=words, reach=3 if stage else 1) for stage, c in enumerate(channels)
        )
        self.context = nn.ModuleList(
            SceneWordContext(width=c, words=words, depth=depth)
            for c, depth in zip(channels[1:], context, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(c), nn.Conv2d(c, width, 1)) for c in channels)
        self.smooth = nn.ModuleList(Smooth(width) for _ in channels)
        self.classify = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.classify.bias, -2.0)  # most pixels are background

    def look(self, image: Tensor) -> tuple[Any, ...]:
        """What needs no words, and serves all sentences about a picture: stem and first stage. image (B, 3, H, W)."""
        return _parts(self.vision.stages[0](*_parts(self.vision.stem(image))))

    def encode(self, image: Tensor, tokens: Tensor, *, seen: tuple[Any, ...] | None = None) -> Encoded:
        """image (B, 3, H, W) normalised to about zero mean and unit variance, tokens (B, L) int64.

        `seen`: what `look` made of the picture, so that it need not be looked at again; of one picture for B sentences.
        """
        if self.rows is None:  # else it has been done, by the longest sentence of the whole batch
            tokens = trimmed(tokens)
        words, real = self.text(tokens)
        x, *handed = self.look(image) if seen is None else (_repeated(one, len(tokens)) for one in seen)
        maps = []
        for stage, attention in enumerate(self.attention):
            if stage:
                x, *handed = _parts(self.vision.stages[stage](x, *handed))
            x = x + attention(x, words, real)
            if stage:
                x, words = self.context[stage - 1](x, words, real)
            maps.append(x)
        weight = real.to(words.dtype)[:, :, None]
        return Encoded(
            tuple(lateral(one) for lateral, one in zip(self.lateral, maps, strict=True)),
            (words * weight).sum(1) / weight.sum(1).clamp_min(1),
        )

    def decode(self, encoded: Encoded, guidance: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Four maps, each with its guidance added, top down.

        Returns:
            logits (B, h, w) float32 at stride 4, and the features (B, C, h, w) the last 1x1 convolution read them from.
        """
        above: Tensor | None = None
        for stage in reversed(range(len(encoded.maps))):
            x = encoded.maps[stage]
            if guidance is not None:
                x = x + guidance[stage]
            if above is not None:
                x = x + F.interpolate(above, size=x.shape[2:], mode="nearest")
            above = self.smooth[stage](x, guided=guidance is not None)
        assert above is not None
        return self.classify(above)[:, 0].float(), above

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, h, w) without a prior."""
        return self.decode(self.encode(image, tokens))[0]


def _repeated(part: Any, count: int) -> Any:
    """What `look` made of one picture (or of `count`), as of `count` pictures; no copy is made."""
    return part.expand(count, -1, -1, -1)


def _parts(given: Any) -> tuple[Any, ...]:
    """What a stem or a stage returns, always as a tuple."""
    return given if isinstance(given, tuple) else (given,)
