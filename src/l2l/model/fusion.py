"""Words into pixels: what each pixel should know of the sentence, at every stage of the encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.model.attention import TransformerLayer, attend


def coordinates(height: int, width: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, 6, height, width): x and y of each cell's centre in [-1, 1], their absolute values and squares."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return torch.cat([grid, grid.abs(), grid**2])[None].to(dtype)


class PixelWordAttention(nn.Module):
    """Each pixel asks the words, and what they answer scales and shifts it.

    LAVT's pixel-word attention (arXiv 2112.02244, section 3.2) multiplies only; with a shift as well (FiLM, arXiv
    1709.07871, one for each pixel) a network that starts from nothing learns to read attributes much sooner.

    Args:
        width: channels of the pixels.
        words: channels of a word.
        reach: side of the convolution that the answer modulates.
        heads: attention heads.
    """

    def __init__(self, *, width: int, words: int, reach: int = 3, heads: int = 4):
        super().__init__()
        self.heads = heads
        inner = max(min(width, 96) // heads * heads, heads)
        self.norm = nn.BatchNorm2d(width)
        self.place = nn.Conv2d(6, width, 1)
        self.query = nn.Conv2d(width, inner, 1)
        self.keyvalue = nn.Linear(words, 2 * inner)
        self.scale, self.shift = nn.Conv2d(inner, width, 1), nn.Conv2d(inner, width, 1)
        self.pixel = nn.Conv2d(width, width, reach, padding=reach // 2)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, words: Tensor, real: Tensor) -> Tensor:
        """x (B, C, H, W), words (B, L, D), real (B, L) bool -> what to add to x, same shape."""
        height, width = x.shape[2:]
        x = self.norm(x) + self.place(coordinates(height, width, device=x.device, dtype=x.dtype))
        query = self.query(x).flatten(2).transpose(1, 2)  # (B, HW, I)
        key, value = self.keyvalue(words).chunk(2, dim=-1)  # (B, L, I)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        told = attend(query, key, value, real).transpose(1, 2).flatten(2)  # (B, HW, I)
        answer = told.transpose(1, 2).unflatten(2, (height, width))  # (B, I, H, W)
        return self.out(F.relu(self.pixel(x) * (1 + self.scale(answer)) + self.shift(answer)))


class SceneWordContext(nn.Module):
    """One transformer layer over all pixels and all words of a coarse stage together.

    "The star left of the red ring" needs two objects at once: pixels have to see other pixels, and words to see pixels.

    Args:
        width: channels of the pixels.
        words: channels of a word.
        inner: channels inside the layer.
    """

    def __init__(self, *, width: int, words: int, inner: int = 128, depth: int = 1):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.place = nn.Conv2d(6, inner, 1)
        self.pixels_in = nn.Conv2d(width, inner, 1)
        self.words_in = nn.Linear(words, inner)
        self.layers = nn.ModuleList(TransformerLayer(inner) for _ in range(depth))
        self.pixels_out = nn.Conv2d(inner, width, 1)
        self.words_out = nn.Linear(inner, words)

    def forward(self, x: Tensor, words: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), words (B, L, D), real (B, L) -> x and words, each with what the other told it added."""
        height, width = x.shape[2:]
        pixels = self.pixels_in(self.norm(x))
        pixels = pixels + self.place(coordinates(height, width, device=pixels.device, dtype=pixels.dtype))
        tokens = torch.cat([pixels.flatten(2).transpose(1, 2), self.words_in(words)], dim=1)  # (B, HW + L, I)
        seen = F.pad(real, (height * width, 0), value=True)
        for layer in self.layers:
            tokens = layer(tokens, seen)
        pixels, told = tokens[:, : height * width], tokens[:, height * width :]
        return x + self.pixels_out(pixels.transpose(1, 2).unflatten(2, (height, width))), words + self.words_out(told)
