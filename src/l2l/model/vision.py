"""The compact hierarchical encoder: four stages at strides 4, 8, 16 and 32, plain convolutions that a CPU runs fast.

An encoder is anything with `channels` (four widths), `stem(image)` and `stages` (four modules, the first at stride 4
and each next at half the resolution): the segmenter walks the stages and fuses the words in between, so that what the
sentence says shapes the next stage (LAVT, arXiv 2112.02244, section 3). Stem and stages may return a tuple, a map and
what only the next stage is to know; it gets both. Pretrained encoders (`model.backbones`) slot in the same way.

Batch norm, because a network that starts from nothing learns so much sooner with it (docs/LOG.md has the figures); the
teacher always runs on its own slow statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

MEAN, DEVIATION = 0.45, 0.25  # of all pictures and colours, about: what an encoder gets is (picture - MEAN) / DEVIATION


class Block(nn.Module):
    """x + conv(relu(norm(conv(x)))), the second convolution starting small."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.second.weight, std=0.5 * self.second.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.norm(self.first(x))))


class CompactEncoder(nn.Module):
    """A stem of two strided convolutions and four stages of residual blocks.

    Args:
        channels: width of each stage.
        depths: residual blocks of each stage.
    """

    def __init__(self, *, channels: Sequence[int] = (48, 96, 160, 224), depths: Sequence[int] = (2, 2, 2, 2)):
        super().__init__()
        self.channels = tuple(channels)
        first = channels[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, stride=2, padding=1), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, first, 3, stride=2, padding=1),
        )  # fmt: skip
        stages = []
        before = first
        for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            down = [nn.Conv2d(before, width, 3, stride=2, padding=1)] if stage else []
            stages.append(nn.Sequential(*down, nn.BatchNorm2d(width), *(Block(width) for _ in range(depth))))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) -> the four stage outputs, without any words."""
        outputs = []
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs
