"""The grounder: the embedded frozen model for `scenes`. Its mistakes are its own.

A small segmenter trained once with full masks on another world (`away`: other colours, other textures, more clutter, no
relational sentences) and shipped as safetensors. It answers with boxes and scores, as a multimodal model does. It does
not know "left of the red ring", and not what is red here.

Reproduce the weights: `python -m l2l.priors.grounder OUT.safetensors`
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.config import Config
from l2l.data import images as image_files
from l2l.errors import InputError
from l2l.model.network import Network
from l2l.model.text import Vocabulary
from l2l.priors.prior import Box, Prior
from l2l.sample import Sample

WEIGHTS = Path(__file__).with_name("grounder.safetensors")
SIZE = (96, 96)
CUT = 0.35  # heat above which a cell belongs to a region


class Grounder:
    """Boxes for image-sentence pairs from the frozen network.

    Args:
        weights: the safetensors file; the one shipped with the package if not given.
        device: where it runs.
    """

    name = "grounder"

    def __init__(self, weights: Path | None = None, *, device: str = "cpu"):
        from l2l.training.checkpoint import load_module, load_tensors
        from l2l.training.prepare import build_network

        file = weights or WEIGHTS
        tensors, about = load_tensors(file)
        shape = {part: about["config"][part] for part in ("data", "model")}  # how to train is no matter of the weights
        self.config = Config.from_json(shape).replace("train", device=device)
        self.vocabulary = Vocabulary(tuple(about["vocabulary"]))
        self.network: Network = build_network(self.config, self.vocabulary)
        load_module(self.network.segmenter, "", {name: one.float() for name, one in tensors.items()}, file=file)
        self.network.eval().requires_grad_(False)
        self._digest = image_files.digest(str(file))

    def fingerprint(self) -> str:
        """Digest of the weights."""
        return f"grounder-{self._digest}"

    @torch.no_grad()
    def answer(self, pairs: Sequence[tuple[Sample, str]]) -> list[Prior]:
        """One prior per pair: the best two regions of the heat map as boxes, or none where nothing stands out."""
        from l2l.training.pool import normalise, resize

        pictures = list(dict.fromkeys(sample.image for sample, _ in pairs))
        small = {name: resize(image_files.load(name), SIZE) for name in pictures}
        image = torch.stack([small[sample.image] for sample, _ in pairs]).float() / 255
        tokens = self.vocabulary.encode([sentence for _, sentence in pairs], self.config.data.words)
        logits = self.network.segmenter(normalise(image), tokens)
        fine = (SIZE[0] // 2, SIZE[1] // 2)
        heat = F.interpolate(logits[:, None].float(), size=fine, mode="bilinear", align_corners=False)[:, 0].sigmoid()
        regions = connected(heat > CUT)
        return [boxes_of(one.numpy(), where.numpy()) for one, where in zip(heat, regions, strict=True)]


def connected(mask: Tensor) -> Tensor:
    """Eight-connected regions of boolean maps (B, H, W): int64, the same positive number all over a region, else 0.

    Each cell starts with a number of its own; the largest spreads until nothing changes.
    """
    own = torch.arange(1, mask[0].numel() + 1, dtype=torch.float32).view(mask.shape[1:])
    labels = own * mask
    while True:
        spread = F.max_pool2d(labels[:, None], 3, 1, 1)[:, 0] * mask
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


def boxes_of(heat: np.ndarray, regions: np.ndarray, *, least: int = 4, most: int = 2) -> Prior:
    """A heat map (H, W) in [0, 1] and its regions -> a prior: the boxes of the heaviest regions.

    The score is the mean heat of the region times its share of all regions' mass. Regions below `least` cells go.
    """
    found: list[tuple[float, float, Box]] = []
    height, width = heat.shape
    for number in np.unique(regions[regions > 0]):
        where = regions == number
        if where.sum() < least:
            continue
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        box = (
            float(columns[0] / width), float(rows[0] / height),
            float((columns[-1] + 1) / width), float((rows[-1] + 1) / height),
        )  # fmt: skip
        found.append((float(heat[where].sum()), float(heat[where].mean()), box))
    if not found:
        return Prior(note="nothing stands out")
    found.sort(reverse=True)
    total = sum(mass for mass, _, _ in found)
    best = found[:most]
    return Prior(
        boxes=tuple(box for _, _, box in best),
        scores=tuple(round(mean * mass / total, 4) for mass, mean, _ in best),
    )


def recipe() -> Config:
    """How the shipped weights were trained: full masks of the other world."""
    config = Config()
    config = config.replace("data", scenes_world="away", scenes_count=3000, scenes_seed=1, rate=1.0)
    config = config.replace("model", channels=(40, 80, 128, 160))
    return config.replace("train", method="supervised", steps=2000, seed=1, save_every=200, probe_every=100_000)


def reproduce(out: Path, work: Path) -> None:
    """Train the grounder (some minutes on two cores) and write its weights, half precision, to `out`."""
    from l2l.training import loop
    from l2l.training.checkpoint import load_tensors, save_tensors

    config = recipe()
    loop.train(config, work, resume=True, progress=_say)
    tensors, _ = load_tensors(work / loop.CHECKPOINT)
    prefix = "teacher.segmenter."
    kept = {name.removeprefix(prefix): _half(one) for name, one in tensors.items() if name.startswith(prefix)}
    vocabulary = json.loads((work / loop.ABOUT).read_text(encoding="utf-8"))["vocabulary"]
    save_tensors(out, kept, {"config": config.to_json(), "vocabulary": vocabulary})


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _say(step: int, steps: int, logs: dict[str, float]) -> None:
    if step % 50 == 0:
        print(f"step {step}/{steps} loss {logs['loss']:.3f} {logs['seconds']:.3f} s/step", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m l2l.priors.grounder OUT.safetensors")
    try:
        target = Path(sys.argv[1])
        reproduce(target, target.with_suffix(".work"))
    except InputError as error:
        raise SystemExit(str(error)) from error
