"""Proposals and the bank of regions by SAM and SAM 2: tiny models with random weights, and a stand-in that knows."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import make_world, train_arguments
from torch import Tensor

from l2l.cli import main
from l2l.config import Config
from l2l.data.scenes import world_samples
from l2l.errors import InputError
from l2l.methods import semires
from l2l.predict import Predictor
from l2l.pretrained import IMAGENET, digest_of
from l2l.priors.prior import Box, Prior
from l2l.proposals.bank import soft_maps
from l2l.proposals.everything import (
    LAYERS,
    ROOM,
    common,
    dealt,
    distinct,
    everything,
    layer_of,
    mask_bank,
    regions_of,
    stability,
)
from l2l.proposals.regions import drawn
from l2l.proposals.sam import FAMILIES, Sam, in_picture, prompts_of, propose_with
from l2l.report import report
from l2l.rle import Rle
from l2l.sample import Sample
from l2l.training.loop import ABOUT, METRICS, train
from l2l.training.processes import Processes

SIDE, CELLS = 64, (12, 16)
MEAN, DEVIATION = IMAGENET
SHAPES = {"wide": (40, 90), "tall": (101, 33), "square": (70, 70)}
BOX: Box = (0.25, 0.3, 0.75, 0.8)


def write_model(kind: str, folder: Path) -> Path:
    """A model of a family, with random weights and logits of about 1: prompts and pictures make a difference."""
    import transformers

    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
               "iou_head_hidden_dim": 16}  # fmt: skip
    prompts = {"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 4}
    vision: dict[str, Any]
    if kind == "sam":
        vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": SIDE, "patch_size": 8, "window_size": 4, "global_attn_indexes": [0],
                  "num_pos_feats": 8, "mlp_dim": 16}  # fmt: skip
        config = transformers.SamConfig(
            vision_config=vision, mask_decoder_config=decoder,
            prompt_encoder_config={**prompts, "patch_size": 8, "image_embedding_size": 8},
        )  # fmt: skip
        model = transformers.SamModel(config)
    else:
        backbone = {"hidden_size": 8, "image_size": [SIDE, SIDE], "blocks_per_stage": [1, 1, 2, 1],
                    "embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 2, 2, 2],
                    "window_size_per_stage": [4, 4, 4, 4], "global_attention_blocks": [3],
                    "window_positional_embedding_background_size": [4, 4]}  # fmt: skip
        vision = {"backbone_config": backbone, "backbone_channel_list": [32, 24, 16, 8], "fpn_hidden_size": 16,
                  "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}  # fmt: skip
        config = transformers.Sam2Config(
            vision_config=vision, mask_decoder_config=decoder, prompt_encoder_config={**prompts, "patch_size": 16}
        )
        model = transformers.Sam2Model(config)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3 if kind == "sam" else 0.2, generator=rng)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, root / kind) for kind in ("sam", "sam2")}


@pytest.fixture(params=["sam", "sam2"])
def sam(request: pytest.FixtureRequest, models: dict[str, Path]) -> Sam:
    return Sam(str(models[request.param]))


def picture_of(shape: str, seed: int = 0) -> np.ndarray:
    """Blobs of colour, uint8 (H, W, 3)."""
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(small, size=SHAPES[shape], mode="bilinear")[0]
    return (large * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# --- the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["boxes", "points", "both"])
def test_masks_are_those_of_the_models_own_forward(sam: Sam, shape: str, kind: str) -> None:
    picture = picture_of(shape)
    height, width = SHAPES[shape]
    square = (SIDE, SIDE) if sam.family.square else (
        int(height * SIDE / max(height, width) + 0.5), int(width * SIDE / max(height, width) + 0.5))  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    places = torch.rand(5, 2, 2, generator=rng).sort(dim=1).values  # shares of the picture
    pixels = places * torch.tensor([width, height])  # of the picture; and of the square:
    scaled = pixels * torch.tensor([square[1] / width, square[0] / height])
    asked: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    if kind != "points":
        given["boxes"], asked["input_boxes"] = places.flatten(1), scaled.flatten(1)[None]
    if kind != "boxes":
        given["points"], asked["input_points"] = places[:, :1], scaled[None, :, :1]
    sam.set_image(picture)
    logits, iou = sam.masks(**given)
    with torch.no_grad():
        whole = sam.model(pixel_values=sam.frame(picture), multimask_output=True, **asked)
    assert logits.shape == whole.pred_masks.shape[1:] and iou.shape == (5, 3)
    assert torch.allclose(logits, whole.pred_masks[0], atol=1e-5, rtol=1e-5)
    assert torch.allclose(iou, whole.iou_scores[0], atol=1e-5, rtol=1e-5)
    assert logits.std(0).mean() > 1e-2  # prompts make a difference


@pytest.mark.parametrize("shape", SHAPES)
def test_a_picture_is_prepared_as_by_the_models_makers(sam: Sam, shape: str) -> None:
    from PIL import Image
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    picture = picture_of(shape)
    ours = sam.frame(picture)[0]
    if sam.family.square:
        small = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
        theirs = torch.from_numpy((small - MEAN) / DEVIATION).permute(2, 0, 1).float()
    else:
        processor = SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
        theirs = torch.from_numpy(np.asarray(processor(picture)["pixel_values"][0]))
    assert ours.shape == (3, SIDE, SIDE) and (ours - theirs).abs().max() <= 1.01 / 255 / min(DEVIATION)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_finds_its_way_into_the_square_and_back(sam: Sam, shape: str) -> None:
    height, width = SHAPES[shape]
    picture = np.zeros((height, width, 3), np.uint8)
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(BOX, (width, height) * 2, strict=True))
    picture[y0:y1, x0:x1] = 255
    box = torch.tensor([x0 / width, y0 / height, x1 / width, y1 / height])
    sam.set_image(picture)
    bright = sam.frame(picture)[0, 0] > 0.2
    rows, columns = bright.any(1).nonzero()[:, 0], bright.any(0).nonzero()[:, 0]
    seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    assert (sam.to_frame(box) - seen).abs().max() <= 1
    back = in_picture(bright.float(), sam.covered, (height, width)) > 0.5
    rows, columns = back.any(1).nonzero()[:, 0], back.any(0).nonzero()[:, 0]
    found = torch.tensor([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])
    assert (found - box).abs().max() <= 1.5 / min(sam.fitted(SHAPES[shape]))


@pytest.mark.parametrize(("cells", "pixels"), [(4, 8), (24, 8), (5, 7), (6, 6)])
def test_cells_are_means_of_the_bilinear_interpolation(cells: int, pixels: int) -> None:
    maps = torch.rand(2, pixels, pixels, generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(maps[None], size=(840, 840), mode="bilinear", align_corners=False)  # a multiple of all sizes
    expected = F.interpolate(fine, size=(cells, cells), mode="area")[0]
    inner = slice(1, -1)  # at the border pixels are not repeated but left out
    found = in_picture(maps, (1.0, 1.0), (cells, cells))
    assert torch.allclose(found[:, inner, inner], expected[:, inner, inner], atol=2e-3)
    part = torch.zeros(1, 8, 8)
    part[:, :3, :5] = 1
    assert torch.allclose(in_picture(part, (3 / 8, 5 / 8), (cells, cells)), torch.ones(1, cells, cells))  # no padding


def test_one_picture_one_embedding(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    sam.model.vision_encoder.register_forward_hook(lambda *_: seen.append(1))
    sam.set_image(picture_of("wide"))
    prior = Prior(boxes=(BOX, (0.0, 0.0, 0.4, 0.4)), scores=(0.9, 0.5), points=((0.5, 0.5),))
    propose_with(sam, [prior, Prior(points=((0.2, 0.7),)), prior], CELLS)
    everything(sam, CELLS, points=5)
    assert len(seen) == 1
    sam.set_image(picture_of("tall"))
    sam.masks(boxes=torch.tensor([BOX]))
    assert len(seen) == 2


def test_half_precision_is_for_the_embedding_alone(sam: Sam) -> None:
    half = Sam(sam.name, dtype=torch.bfloat16)
    assert half.fingerprint != sam.fingerprint == Sam(sam.name).fingerprint
    found = []
    for each in (sam, half):
        each.set_image(picture_of("wide"))
        logits, _ = each.masks(points=torch.tensor([[[0.4, 0.6]]]))
        found.append(logits)
        assert logits.dtype == torch.float32
    assert 0 < (found[0] - found[1]).abs().max() < 0.1 * found[0].std() + 0.05


def test_what_sam2_is_published_as_is_read(models: dict[str, Path], tmp_path: Path) -> None:
    for path in models["sam2"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    found = []
    for folder in (models["sam2"], tmp_path):
        sam = Sam(str(folder))
        sam.set_image(picture_of("square"))
        found.append(sam.masks(boxes=torch.tensor([BOX]))[0])
    assert torch.equal(*found)


def test_mistakes_are_told(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="a model of type bert; it has to be one of sam, sam2"):
        Sam(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no model here"):
        Sam(str(tmp_path))
    (tmp_path / "config.json").write_bytes((models["sam"] / "config.json").read_bytes())
    with pytest.raises(InputError, match="cannot load the model"):
        Sam(str(tmp_path)).set_image(picture_of("square"))
    tensors = load_file(models["sam"] / "model.safetensors")
    tensors.pop("mask_decoder.iou_token.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="weights are missing: mask_decoder.iou_token.weight"):
        Sam(str(tmp_path)).set_image(picture_of("square"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[transformers\]'"):
        Sam(str(models["sam"]))


# --- proposals ----------------------------------------------------------------------------------------------------


def test_proposals_keep_the_conventions(sam: Sam) -> None:
    sam.set_image(picture_of("wide"))
    mask = np.zeros((40, 90), bool)
    mask[:20] = True
    far: Box = (0.0, 0.0, 0.2, 0.2)
    priors = [
        Prior(), Prior(boxes=(BOX,), scores=(0.2,)), Prior(mask=Rle.encode(mask)), Prior(points=((0.5, 0.5),)),
        Prior(boxes=(far, BOX), scores=(0.3, 0.6)), Prior(boxes=(BOX,), scores=(0.9,), points=((0.5, 0.6),)),
        Prior(boxes=((0.5, 0.5, 0.5 + 1e-7, 1.0),), scores=(1.0,)),
    ]  # fmt: skip
    found = propose_with(sam, priors, CELLS)
    assert found.shape == (7, *CELLS) and found.dtype == torch.float32
    assert (found[0] == 0.5).all() and found.isfinite().all()
    assert found[1:].min() >= 0.03 * 0.9 and found[1:].max() <= 0.97 + 1e-6
    assert (found[2, :6] > 0.9).all() and (found[2, 6:] < 0.1).all()
    assert not torch.allclose(found[1], found[5], atol=1e-4)  # a point inside the box is told as well
    less = 2 * 0.45 * 0.3 / 0.9 * propose_with(sam, [Prior(boxes=(far,), scores=(1.0,))], CELLS)[0]
    assert torch.allclose(found[4], torch.maximum(found[1], less), atol=1e-5) and less.max() < 0.5
    again = propose_with(Sam(sam.name), [], CELLS)
    assert again.shape == (0, *CELLS)


def test_jitter_is_the_same_every_time_and_in_any_company(sam: Sam) -> None:
    sam.set_image(picture_of("tall"))
    asked: list[Tensor] = []
    answer = sam.masks

    def spied(boxes: Tensor | None = None, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        asked.extend(each for each in (boxes, points) if each is not None)
        return answer(boxes, points)

    sam.masks = spied  # type: ignore[method-assign]
    priors = [Prior(boxes=(BOX,), scores=(0.5,), points=((0.4, 0.4),)), Prior(points=((0.9, 0.1), (0.2, 0.2)))]
    first = propose_with(sam, priors, CELLS)
    once = list(asked)
    asked.clear()
    assert torch.equal(propose_with(sam, priors, CELLS), first)
    assert all(torch.equal(*pair) for pair in zip(once, asked, strict=True))
    for row, prior in enumerate(priors):
        assert torch.allclose(propose_with(sam, [prior], CELLS)[0], first[row], atol=1e-5)
    boxes = once[0]
    assert boxes.shape == (8, 4) and 0.01 < float((boxes - torch.tensor(BOX)).std()) < 0.06
    assert all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in once)


def test_a_point_goes_with_the_smallest_box_around_it() -> None:
    small: Box = (0.4, 0.4, 0.6, 0.6)
    prior = Prior(boxes=(BOX, small), scores=(0.9, 0.8), points=((0.5, 0.5), (0.3, 0.7), (0.9, 0.1)))
    assert prompts_of(prior) == [(BOX, ((0.3, 0.7),)), (small, ((0.5, 0.5),))]
    assert prompts_of(Prior(points=((0.5, 0.5), (0.3, 0.7)))) == [(None, ((0.5, 0.5),)), (None, ((0.3, 0.7),))]


def test_soft_maps_of_a_picture_are_made_once(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2L_CACHE", str(tmp_path))
    names = [f"scenes:home:5:{index}" for index in range(3)]
    priors = [Prior(boxes=(BOX,), scores=(0.7,)), Prior(), Prior(points=((0.3, 0.3),)), Prior(note="nothing")]
    image_of, told, seen = torch.tensor([1, 0, 1, 2]), [], []
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    embed = Sam.set_image

    def counted(self: Sam, picture: np.ndarray) -> None:
        if len(seen) == limit:
            raise KeyboardInterrupt
        seen.append(1)
        embed(self, picture)

    def made(kind: str = "sam2") -> tuple[Tensor, Tensor, Tensor]:
        return soft_maps(priors, images, image_of, CELLS, sam=Sam(str(models[kind])), pictures=names,
                         progress=lambda done, total: told.append((done, total)))  # fmt: skip

    monkeypatch.setattr(Sam, "set_image", counted)
    limit = 1
    priors[1] = Prior(boxes=(BOX,), scores=(0.2,))  # pictures 0 and 1 are asked about, 2 is not
    with pytest.raises(KeyboardInterrupt):
        made()
    limit = 9
    soft, score, present = made()
    assert len(seen) == 2 and told == [(1, 4), (1, 4), (3, 4), (4, 4)]  # picture 0 was there already
    assert soft.dtype == torch.uint8 and soft.shape == (4, *CELLS) and (soft[3] == 128).all()
    assert score.tolist() == pytest.approx([0.7, 0.2, 0.5, 0]) and present.tolist() == [True, True, True, False]
    assert torch.equal(made()[0], soft) and len(seen) == 2
    assert not torch.equal(made("sam")[0], soft) and len(seen) == 4  # another model, another key


# --- a stand-in that knows ----------------------------------------------------------------------------------------


class Knows:
    """Answers each prompt with the true mask of the object that it fits best, between a wrong one and nothing."""

    family, covered, batch, fingerprint = FAMILIES["sam"], (0.75, 1.0), 64, "knows"

    def __init__(self, objects: Tensor):
        self.objects = objects  # bool (K, H, W)
        height, width = objects.shape[1:]
        self.boxes = torch.stack([
            torch.tensor([x[0] / width, y[0] / height, (x[-1] + 1) / width, (y[-1] + 1) / height])
            for x, y in ((one.any(0).nonzero()[:, 0], one.any(1).nonzero()[:, 0]) for one in objects)
        ])  # fmt: skip
        inside = F.interpolate(objects[:, None].float(), size=(192, 256), mode="bilinear")[:, 0] - 0.5
        self.logits = F.pad((100 * inside).clamp(-6, 6), (0, 0, 0, 64), value=6.0)  # padding must not matter

    def set_image(self, picture: np.ndarray) -> None:
        pass

    def masks(self, boxes: Tensor | None = None, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if boxes is not None:
            own = self.boxes[:, None]
            corners = torch.minimum(own[..., 2:], boxes[..., 2:]) - torch.maximum(own[..., :2], boxes[..., :2])
            inter = corners.clamp_min(0).prod(-1)
            area = [(one[..., 2:] - one[..., :2]).prod(-1) for one in (own, boxes)]
            which = (inter / (area[0] + area[1] - inter)).argmax(0)
            hit = torch.ones(len(boxes), dtype=torch.bool)
        else:
            assert points is not None
            x, y = (points[:, 0] * torch.tensor(self.objects.shape[:0:-1])).long().unbind(1)
            on = self.objects[:, y, x]
            which, hit = on.int().argmax(0), on.any(0)
        right = torch.where(hit[:, None, None], self.logits[which], -6.0)
        logits = torch.stack([torch.full_like(right, 6.0), right, torch.full_like(right, -6.0)], dim=1)
        return logits, torch.tensor([0.5, 0.95, 0.3]).expand(len(right), 3)


def scenes_by_picture(count: int) -> list[list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in world_samples(count, 11):
        found.setdefault(sample.image, []).append(sample)
    return list(found.values())


def test_with_true_masks_the_proposal_is_the_object() -> None:
    ious = []
    for samples in scenes_by_picture(6):
        knows = Knows(torch.stack([torch.from_numpy(sample.mask()) for sample in samples]))
        priors = [Prior(boxes=(tuple(box.tolist()),), scores=(0.8,)) for box in knows.boxes]
        soft = propose_with(knows, priors, (24, 24))  # type: ignore[arg-type]
        share = F.interpolate(knows.objects[:, None].float(), size=(24, 24), mode="area")[:, 0]
        mine, true = soft > 0.5, share > 0.5
        ious += ((mine & true).sum((1, 2)) / (mine | true).sum((1, 2)).clamp_min(1)).tolist()
    assert len(ious) > 10 and min(ious) > 0.75 and sum(ious) / len(ious) > 0.9


def test_the_bank_holds_every_object_once() -> None:
    for samples in scenes_by_picture(4):
        knows = Knows(torch.stack([torch.from_numpy(sample.mask()) for sample in samples]))
        maps = regions_of(knows, samples[0].image, (48, 48), 24)  # type: ignore[arg-type]
        assert maps.dtype == np.int16 and maps.shape == (LAYERS, 48, 48)
        share = F.interpolate(knows.objects[:, None].float(), size=(48, 48), mode="area")[:, 0]
        true = [one > 0.5 for one in share if (one > 0.5).sum() >= 16]
        assert sum(int(layer.max()) for layer in maps) <= len(samples)
        for one in true:
            found = [torch.from_numpy(layer == value) for layer in maps for value in range(1, layer.max() + 1)]
            assert max(float((each & one).sum() / (each | one).sum()) for each in found) > 0.8


# --- the bank -----------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), count=st.integers(0, 14), layers=st.integers(1, 4))
@settings(max_examples=40)
def test_masks_are_dealt_into_layers_where_the_surer_wins(seed: int, count: int, layers: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    corners, sides = torch.rand(count, 2, generator=rng) * 10, 1 + torch.rand(count, 2, generator=rng) * 9
    spots = torch.arange(12) + 0.5
    y, x = (((spots > start[:, None]) & (spots < (start + side)[:, None])) for start, side in
            ((corners[:, at], sides[:, at]) for at in (0, 1)))  # fmt: skip
    masks = y[:, :, None] & x[:, None]
    masks = masks[masks.sum((1, 2)) > 0]
    sure = torch.rand(len(masks), generator=rng)
    maps, layer = dealt(masks, sure, layers), layer_of(masks, layers)
    assert maps.dtype == torch.int16 and maps.shape == (layers, 12, 12)
    for at in range(layers):
        own = (layer == at).nonzero()[:, 0]
        best = torch.where(masks[own], sure[own, None, None], -1.0)  # the surest mask of each pixel
        assert torch.equal(maps[at] > 0, masks[own].any(0)) and int(maps[at].max()) <= len(own)
        shown = [maps[at][(one == best.amax(0)) & (one >= 0)].unique().tolist() for one in best]
        assert all(len(each) <= 1 for each in shown)  # where a mask is the surest, its pixels are one region
        numbers = [each[0] for each in shown if each]
        assert len(set(numbers)) == len(numbers) and set(numbers) == set(maps[at].unique().tolist()) - {0}
    shared, sizes = common(masks).double(), masks.sum((1, 2)).double()
    order = sizes.argsort(stable=True).tolist()
    for number, place in enumerate(order):  # nothing lies in a coarser layer than it must
        smaller = order[:number]
        full = {int(layer[one]) for one in smaller if shared[place, one] / sizes[one] > ROOM}
        free = [at for at in range(layers) if at not in full]
        assert not free or layer[place] == free[0]


def test_parts_wholes_and_groups_come_to_lie_in_three_layers() -> None:
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[0, 1:5, 1:5] = masks[1, :8, :8] = masks[2, :15, :15] = True
    masks[3, 9:13, 1:5] = True  # another part, beside the first
    masks[4, 4:6, 1:5] = True  # overlaps the first by half of its own
    assert layer_of(masks[:4]).tolist() == [0, 1, 2, 0]
    assert layer_of(masks).tolist() == [1, 2, 2, 0, 0]  # no room is left for the group: with the whole, then
    shared = common(masks)
    assert shared[0, 4] == 4 and shared.diagonal().tolist() == [16, 64, 225, 16, 8]
    maps = dealt(masks, torch.tensor([0.9, 0.9, 0.8, 0.9, 0.9]))
    assert (maps[2] > 0).sum() == 225 and (maps[2] == maps[2, 0, 0]).sum() == 64  # the surer whole is left intact


def test_duplicates_go_and_the_surest_stay() -> None:
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[0, :5], masks[1, :6], masks[2, 7:], masks[3, :6, :9] = True, True, True, True
    assert distinct(masks, torch.tensor([0.8, 0.95, 0.9, 0.7])).tolist() == [1, 2]
    assert distinct(masks[:0], torch.zeros(0)).tolist() == []


def test_stability_is_that_of_the_picture_not_of_the_padding() -> None:
    logits = torch.full((2, 8, 8), 5.0)
    logits[1, 2:4] = 0.0
    logits[:, 4:] = 0.0  # padding
    assert stability(logits, (0.5, 1.0)).tolist() == [1.0, 0.5]
    assert stability(torch.full((1, 8, 8), -9.0), (1.0, 1.0)).tolist() == [0.0]


def test_the_bank_has_the_format_of_regions_and_is_made_once(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2L_CACHE", str(tmp_path))
    names = [f"scenes:home:6:{index}" for index in range(2)]
    told: list[tuple[int, int]] = []
    maps = mask_bank(sam, names, (33, 30), points=3, progress=lambda *done: told.append(done))
    assert maps.dtype == torch.int16 and maps.shape == (2, LAYERS, 17, 15) and told == [(1, 2), (2, 2)]
    for row, name in enumerate(names):
        assert torch.equal(maps[row], torch.from_numpy(regions_of(sam, name, (17, 15), 3)))
    with monkeypatch.context() as patch:
        patch.setattr(Sam, "set_image", lambda *_: pytest.fail("made again"))
        assert torch.equal(mask_bank(Sam(sam.name), names, (33, 30), points=3), maps)
        assert torch.equal(mask_bank(Sam(sam.name), names[::-1], (33, 30), points=3), maps.flip(0))


def test_no_region_is_harmless() -> None:
    logits = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(2, LAYERS, 12, 16, dtype=torch.int64)
    assert torch.equal(drawn(logits, nothing, keep=0.5, draw=2.0), logits)
    some = nothing.clone()
    some[0, 1, :6, :8] = 1  # of the first picture only
    assert torch.equal(drawn(logits, some, keep=0.5, draw=2.0)[1], logits[1])
    draw = torch.tensor(0.1, requires_grad=True)
    drawn(logits, some, keep=0.5, draw=draw).sum().backward()
    assert draw.grad is not None and draw.grad.isfinite()
    mended = semires.mend(logits.sigmoid(), nothing, least_iou=0.5, cover=0.7)
    assert not mended.iom.any() and not mended.cpi.any()
    assert torch.equal(mended.label, (logits > 0).float())


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("sam"), count=20)


@pytest.mark.parametrize(("method", "kind"), [("semires", "sam"), ("l2l", "sam2")])
def test_three_steps_with_sam(
    world: Path, models: dict[str, Path], tmp_path: Path, method: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, kind, type(FAMILIES[kind])(FAMILIES[kind].model, FAMILIES[kind].square, -1e9))
    monkeypatch.setattr("l2l.proposals.everything.STABLE", -1.0)  # random models are sure of nothing
    banks: list[Tensor] = []
    monkeypatch.setattr("l2l.training.parts.mask_bank", lambda *a, **b: banks.append(mask_bank(*a, **b)) or banks[-1])
    for module in ("training.parts", "proposals.bank"):
        monkeypatch.setattr(f"l2l.{module}.region_bank", lambda *_: pytest.fail("that is not SAM's"))
    run = tmp_path / "run"
    assert main(train_arguments(world, run, "--method", method, steps=3, train_burn_in=0.0, data_sam=models[kind],
                                data_sam_points=2, rple_guard="false")) == 0  # fmt: skip
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    logs = next(line for line in reversed(lines) if "loss" in line)
    assert all(math.isfinite(value) for value in logs.values()) and "loss_u" in logs
    assert len(banks) == 1 and banks[0].shape[1:] == (LAYERS, 32, 32) and (banks[0].flatten(1).amax(1) > 0).any()
    sam = json.loads((run / ABOUT).read_text())["sam"]
    assert sam == f"{kind}@{digest_of(models[kind])}"
    page = report(run, gallery=0).read_text(encoding="utf-8")
    assert f"Pretrained: SAM {sam[: len(kind) + 13]}." in page
    assert main(["evaluate", str(run)]) == 0
    rows = json.loads(next((run / "evaluations").glob("*-prior-alone.json")).read_text())["pairs"]
    assert len(rows) > 0
    embedded, embed = [], Sam.set_image
    monkeypatch.setattr(Sam, "set_image", lambda sam, picture: embedded.append(picture.shape) or embed(sam, picture))
    predictor = Predictor(run)
    for picture in (picture_of("wide"), picture_of("tall")):
        predictor.set_image(picture)
        answers = [predictor.segment("the red star", box) for box in (None, (4, 4, 30, 30), (2, 2, 20, 30))]
        assert all(one.mask.shape == picture.shape[:2] for one in answers)
    assert embedded == [(40, 90, 3), (101, 33, 3)]  # for boxes alone, and once for two
    assert "torchvision" not in sys.modules


def test_what_takes_long_before_the_first_step_is_shown(
    world: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("L2L_CACHE", str(tmp_path / "cache"))
    arguments = train_arguments(world, tmp_path / "run", "--method", "semires", steps=1, data_sam=models["sam"],
                                data_sam_points=2)  # fmt: skip
    assert main(arguments) == 0
    shown = [line for line in capsys.readouterr().err.splitlines() if re.match(r"\w[\w ]* \d+/\d+ 100%", line)]
    config = Config.load(tmp_path / "run" / "config.json")
    told: list[tuple[str, int, int]] = []
    for rank in (1, 0):  # of several processes, only the main one shows anything
        monkeypatch.setenv("L2L_CACHE", str(tmp_path / f"cache-{rank}"))
        monkeypatch.setattr(Processes, "here", lambda _, rank=rank: Processes(rank))
        train(config, tmp_path / f"run-{rank}", stop_after=0, preparing=lambda *done: told.append(done))
        assert bool(told) == (rank == 0)
    [pairs] = {total for what, _, total in told if what == "proposals"}
    [pictures] = {total for what, _, total in told if what == "regions"}
    assert [told[0][0], told[-1]] == ["proposals", ("regions", pictures, pictures)]
    assert [done for what, done, _ in told if what == "regions"] == list(range(1, pictures + 1))
    assert shown[:2] == [f"proposals {pairs}/{pairs} 100%", f"regions {pictures}/{pictures} 100%"]
    assert len(shown) == 3 and shown[2].startswith("train semires 1/1 100%")


def test_a_wrong_name_is_told_before_anything_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    out = tmp_path / "run"
    assert main(train_arguments(world, out, "--method", "semires", steps=3, data_sam=tmp_path)) == 2
    assert "model of type bert" in capsys.readouterr().err and not out.exists()


def test_runs_without_sam_keep_their_names() -> None:
    config = Config()
    old = config.to_json()
    for name in ("sam", "sam_points"):
        old["data"].pop(name)
    assert Config.from_json(old).hash() == config.hash() != config.replace("data", sam="facebook/sam-vit-base").hash()
    with pytest.raises(InputError, match="sam_points"):
        config.replace("data", sam_points=0)
