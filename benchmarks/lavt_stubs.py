"""Stand-ins for what LAVT imports and this project does without: torchvision, timm, mmcv, mmseg, h5py, and others.

Written from those libraries' public documentation. What LAVT calls while it trains or evaluates does the work that the
library does (`DropPath` drops, `resize` is Pillow's own); what it only names (downloads, checkpoints of mmcv) raises if
it is called after all. torchvision: https://docs.pytorch.org/vision/stable/transforms.html; timm:
https://huggingface.co/docs/timm; mmcv: https://mmcv.readthedocs.io.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a row's branch is dropped whole, or scaled up in return."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = 1 - self.drop_prob
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(kept).div_(kept)


def to_2tuple(value: Any) -> tuple[Any, Any]:
    """One value twice; a pair as it is."""
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def resize(picture: Image.Image, size: Sequence[int], interpolation: int = Image.Resampling.BILINEAR) -> Image.Image:
    """A Pillow picture at `size`, (height, width)."""
    height, width = size
    return picture.resize((width, height), Image.Resampling(interpolation))


def to_tensor(picture: Image.Image) -> Tensor:
    """A Pillow picture of 8 bits -> float (C, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture, copy=True))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return pixels.permute(2, 0, 1).contiguous().float().div(255)


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, H, W) less the mean, by the deviation, of each channel; the input stays as it is."""
    shift, scale = (torch.as_tensor(one, dtype=image.dtype)[:, None, None] for one in (mean, std))
    return image.clone().sub_(shift).div_(scale)


def absent(name: str) -> Callable[..., Any]:
    """What nobody should call here."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{name} is a stand-in that does nothing: see benchmarks/lavt_stubs.py")

    return refuse


STUBS: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"resize": resize, "to_tensor": to_tensor, "normalize": normalize},
    "timm": {}, "timm.models": {},
    "timm.models.layers": {"DropPath": DropPath, "to_2tuple": to_2tuple, "trunc_normal_": nn.init.trunc_normal_},
    "mmcv": {},
    "mmcv.fileio": {"FileClient": absent("mmcv.fileio.FileClient"), "load": absent("mmcv.fileio.load")},
    "mmcv.parallel": {"is_module_wrapper": absent("mmcv.parallel.is_module_wrapper")},
    "mmcv.utils": {"mkdir_or_exist": absent("mmcv.utils.mkdir_or_exist")},
    "mmcv.runner": {"get_dist_info": lambda: (0, 1)},
    "mmseg": {}, "mmseg.utils": {"get_root_logger": lambda: logging.getLogger("mmseg")},
    "h5py": {}, "skimage": {}, "skimage.io": {}, "requests": {},
}  # fmt: skip
"""Module -> what is in it."""


def install() -> None:
    """Make every stand-in importable, but for libraries that are really there.

    transformers comes first, so that it knows that there is no torchvision: it must not take the stand-in for one.
    """
    import transformers  # noqa: F401

    missing = {name for name in {one.split(".")[0] for one in STUBS} if importlib.util.find_spec(name) is None}
    for name, content in STUBS.items():
        if name.split(".")[0] not in missing:
            continue
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__dict__.update(content, __path__=[])
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
