"""Local multimodal models: tiny ones of the same classes with random weights, saved and read as a user's would be.

Wild models answer anything; taught ones know one reply, so that a box can be followed from its tokens to the store.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny import make_world
from torch import Tensor

from l2l import pretrained
from l2l.cli import main
from l2l.data.images import load
from l2l.data.read import read
from l2l.errors import InputError
from l2l.pretrained import CLIP, HALF, IMAGENET, Pretrained, frame
from l2l.priors import chat, florence, greedy, grounding_dino
from l2l.priors.answers import DIALECTS, instruction
from l2l.priors.chat import Chat, attended, patches, tiling
from l2l.priors.florence import Florence, first_phrase
from l2l.priors.greedy import confidence
from l2l.priors.grounding_dino import GroundingDino, caption, detected, fitted
from l2l.priors.mllm import SUPPORTED, Mllm
from l2l.priors.prior import Prior
from l2l.priors.store import PriorStore
from l2l.sample import Sample

transformers = pytest.importorskip("transformers")

CHATS = ("qwen2_5_vl", "qwen3_vl", "internvl")
GENERATIVE = (*CHATS, "florence2")
SENTENCES = ["the red ring", "a star that is left of the small blue box", "cup"]
SHAPES = {"wide": (40, 90), "tall": (101, 33), "usual": (80, 121)}
QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
INTERN = ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
PLACES = {  # what a taught model replies: tokens, and the box in its units
    "qwen2_5_vl": ['[{"bbox_2d": [', "7, ", "14, ", "28, ", "42]}]"],
    "qwen3_vl": ['[{"bbox_2d": [', "100, ", "200, ", "600, ", "700]}]"],
    "internvl": ["<box>[[", "100, ", "200, ", "600, ", "700]]</box>"],
    "florence2": ["the ring", "<loc_100>", "<loc_200>", "<loc_600>", "<loc_700>"],
}


# --- tiny models --------------------------------------------------------------------------------------------------


def letters(first: Sequence[str] = ()) -> dict[str, int]:
    """A vocabulary of bytes, behind `first`."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {letter: place for place, letter in enumerate([*first, *sorted(ByteLevel.alphabet())])}


def chatting(kind: str) -> tuple[Any, Any]:
    """A model that chats, and its tokenizer."""
    tokenizer = transformers.Qwen2Tokenizer(vocab=letters(), merges=[])
    special = INTERN if kind == "internvl" else QWEN
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens(PLACES[kind])
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16}
    if kind == "internvl":
        vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": [56, 56], "patch_size": [14, 14]}
        config = transformers.InternVLConfig(
            text_config=text | {"model_type": "qwen2"}, vision_config=vision, image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4, tie_word_embeddings=False,
        )  # fmt: skip
        return transformers.InternVLForConditionalGeneration(config), tokenizer
    text["rope_parameters"] = rope
    vision |= {"depth": 2, "num_heads": 2, "out_hidden_size": 32}
    places = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    if kind == "qwen2_5_vl":
        vision |= {"window_size": 112, "fullatt_block_indexes": [1]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **places)
        return transformers.Qwen2_5_VLForConditionalGeneration(config), tokenizer
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **places)
    return transformers.Qwen3VLForConditionalGeneration(config), tokenizer


def florence2() -> tuple[Any, Any]:
    """A Florence-2, and its tokenizer."""
    tokenizer = transformers.BartTokenizer(vocab=letters(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), merges=[])
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)])
    tokenizer.add_tokens(PLACES["florence2"][:1])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = {
        "model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 700, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
        "decoder_start_token_id": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {
        "depths": [1, 1], "patch_size": [7, 3], "patch_stride": [8, 4], "patch_padding": [3, 1],
        "patch_prenorm": [False, True], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2],
        "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    config = transformers.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.Florence2ForConditionalGeneration(config), tokenizer


def dino() -> tuple[Any, Any]:
    """A Grounding DINO, and its tokenizer: what parts phrases has BERT's own ids, since the model knows those."""
    fixed = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    free = iter(number for number in range(1, 1100) if number not in fixed.values())
    vocabulary = fixed | dict(zip(words, free, strict=False))
    vocabulary |= {f"[unused{number}]": number for number in free}
    vision = {
        "model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4,
        "image_size": 64, "out_features": ["stage2", "stage3", "stage4"],
    }  # fmt: skip
    text = {
        "model_type": "bert", "vocab_size": 1100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    config = transformers.GroundingDinoConfig(
        backbone_config=vision, text_config=text, d_model=32, num_queries=20, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        num_feature_levels=3, max_text_len=32,
    )  # fmt: skip
    return transformers.GroundingDinoForObjectDetection(config), transformers.BertTokenizer(vocab=vocabulary)


def teach(model: Any, said: Sequence[int]) -> None:
    """Make a model say `said`[1:] after `said`[0]: no layer adds anything to the last token, which names the next."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        decoder = "language_model.layers" in name or "decoder" in name
        if decoder and name.endswith(("o_proj.weight", "down_proj.weight")) or "decoder.embed_positions" in name:
            weight.zero_()
        if decoder and name.endswith(("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")):
            weight.zero_()
    words = [weight for name, weight in weights.items() if name.endswith(("embed_tokens.weight", "shared.weight"))]
    head = weights["lm_head.weight"].zero_()
    known = dict(zip(said, said[1:], strict=False))
    drawn = torch.randn(head.shape[1], len(known))
    apart = torch.linalg.qr(drawn - drawn.mean(0)).Q.T  # orthonormal, and left by layer norms as they are
    for one, (now, following) in zip(apart, known.items(), strict=True):
        head[following] = one
        for table in words:
            table[now] = 4 * one


def write_model(kind: str, folder: Path, *, taught: bool = False) -> Path:
    """A model of a kind with random weights that make a difference; a taught one replies `PLACES`."""
    torch.manual_seed(1)
    model, tokenizer = dino() if kind == "grounding-dino" else florence2() if kind == "florence2" else chatting(kind)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.6 if kind == "florence2" else 0.3)
        if taught:
            first = 2 if kind == "florence2" else tokenizer("\n").input_ids[0]
            last = 2 if kind == "florence2" else tokenizer.convert_tokens_to_ids("<|im_end|>")
            teach(model, [first, *tokenizer.convert_tokens_to_ids(PLACES[kind]), last])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wild")
    return {kind: write_model(kind, root / kind) for kind in SUPPORTED}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("taught")
    return {kind: write_model(kind, root / kind, taught=True) for kind in GENERATIVE}


@pytest.fixture(autouse=True)
def small_dino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(grounding_dino, "SHORT", 64)
        patch.setattr(grounding_dino, "LONG", 107)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"), count=3) / "data"


@pytest.fixture
def pairs(world: Path) -> list[tuple[Sample, str]]:
    return [(sample, sentence) for sample in read(world).samples for sentence in sample.sentences]


def picture_of(shape: str, seed: int = 0) -> np.ndarray:
    """Blobs of colour, uint8 (H, W, 3)."""
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(small, size=SHAPES[shape], mode="bilinear")[0]
    return (large * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def chat_of(folder: Path, **options: Any) -> Chat:
    return Chat(Pretrained(str(folder)), **{"device": "cpu", "dtype": torch.float32, "tokens": 12} | options)


# --- pictures -----------------------------------------------------------------------------------------------------


def near(ours: Tensor, theirs: Any, deviation: Sequence[float]) -> bool:
    """Equal up to a grey value, which is what their rounding between two passes of a resize makes."""
    return bool((ours - torch.as_tensor(theirs)).abs().max() <= 1.01 / 255 / min(deviation))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_sees_a_picture_as_its_makers_show_it(wild: dict[str, Path], kind: str, shape: str) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture, (mean, deviation) = picture_of(shape), CLIP if kind == "qwen2_5_vl" else HALF
    theirs = Qwen2VLImageProcessorPil(
        patch_size=14 if kind == "qwen2_5_vl" else 16, min_pixels=56**2 if kind == "qwen2_5_vl" else 256**2,
        max_pixels=1280 * 28 * 28, image_mean=mean, image_std=deviation,
    )(picture, return_tensors="pt")  # fmt: skip
    seen, cells, ours = chat_of(wild[kind])._patches(picture)
    assert torch.equal(ours["image_grid_thw"], theirs.image_grid_thw)
    assert near(ours["pixel_values"], theirs.pixel_values, deviation)
    assert cells[0] * cells[1] * 4 == len(theirs.pixel_values) and cells[0] * seen[1] == cells[1] * seen[0]


def test_patches_keep_their_order() -> None:
    picture = torch.arange(3 * 8 * 12.0).view(3, 8, 12)
    found = patches(picture, 2, 2, 2)
    assert found.shape == (24, 24)
    assert torch.equal(found[1].view(3, 2, 2, 2)[:, 0], picture[:, 0:2, 2:4])  # right of the first
    assert torch.equal(found[2].view(3, 2, 2, 2)[:, 1], picture[:, 2:4, 0:2])  # below it, of the same token


@pytest.mark.parametrize("shape", SHAPES)
def test_internvl_sees_a_picture_as_its_makers_show_it(wild: dict[str, Path], shape: str) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    mean, deviation = IMAGENET
    theirs = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, image_mean=mean, image_std=deviation, crop_to_patches=True
    )(picture_of(shape), return_tensors="pt")
    _, (tiles, tokens), ours = chat_of(wild["internvl"])._tiles(picture_of(shape))
    assert (tiles, tokens) == (len(theirs.pixel_values), 4) and (shape != "usual" or tiles == 2 * 3 + 1)
    assert near(ours["pixel_values"], theirs.pixel_values, deviation)


def test_tiles_are_laid_out_as_by_their_makers() -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    rng = np.random.RandomState(0)
    for height, width in [(480, 640), (448, 448), (896, 896), (2000, 1000), *rng.randint(20, 3000, (200, 2)).tolist()]:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
        assert tiling((height, width), 448) == (rows, columns)


@pytest.mark.parametrize("shape", SHAPES)
def test_florence_and_grounding_dino_see_a_picture_as_their_makers_show_it(
    wild: dict[str, Path], shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    monkeypatch.setattr(florence, "SIDE", 120)
    picture, (mean, deviation) = picture_of(shape), IMAGENET
    square = CLIPImageProcessorPil(size={"height": 120, "width": 120}, do_center_crop=False, image_mean=mean,
                                   image_std=deviation)(picture, return_tensors="pt").pixel_values[0]  # fmt: skip
    assert near(frame(picture, (120, 120), IMAGENET, device="cpu"), square, deviation)
    theirs = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 107})(
        picture, return_tensors="pt"
    )
    ours = GroundingDino(Pretrained(str(wild["grounding-dino"])), device="cpu").look(picture)
    assert ours.shape == theirs.pixel_values[0].shape and near(ours, theirs.pixel_values[0], deviation)


def test_sizes_for_grounding_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    monkeypatch.setattr(grounding_dino, "SHORT", 800)
    monkeypatch.setattr(grounding_dino, "LONG", 1333)
    rng = np.random.RandomState(0)
    for size in [(480, 640), (640, 480), (800, 800), (100, 1000), *map(tuple, rng.randint(20, 3000, (200, 2)))]:
        assert fitted(size) == get_size_with_aspect_ratio(size, 800, 1333)


# --- replies ------------------------------------------------------------------------------------------------------


def in_full(model: Chat, picture: np.ndarray, sentence: str) -> Prior:
    """The same question in one piece, as the makers ask it: no cache of the picture, no neighbours, no padding."""
    intern = model.weights.kind == "internvl"
    seen, cells, inputs = (model._tiles if intern else model._patches)(picture)
    token = "<IMG_CONTEXT>" if intern else "<|image_pad|>"
    asked = instruction(model.dialect, sentence, seen)
    text = model.family.before + token * (cells[0] * cells[1]) + model.family.after + ("\n" if intern else "") + asked
    ids = model.weights.tokenizer(f"{text}<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt").input_ids
    if not intern:
        inputs["mm_token_type_ids"] = (ids == model.model.config.image_token_id).int()
    [reply] = greedy.greedy(
        model.model, model.weights.tokenizer, tokens=model.tokens, input_ids=ids, attention_mask=torch.ones_like(ids),
        **inputs,
    )  # fmt: skip
    return reply.prior(model.dialect, (picture.shape[0], picture.shape[1]), seen)


@pytest.mark.parametrize("kind", CHATS)
def test_what_is_seen_once_gives_the_replies_of_questions_asked_in_full(wild: dict[str, Path], kind: str) -> None:
    model = chat_of(wild[kind])
    pictures = [picture_of("wide"), picture_of("tall", 1)]
    looks = [model.look(picture) for picture in pictures]
    found = [model.ask(look, SENTENCES) for look in looks]  # the first after the second was seen
    again = model.ask(looks[0], SENTENCES[1:2])
    with torch.inference_mode():
        expected = [[in_full(model, picture, sentence) for sentence in SENTENCES] for picture in pictures]
    assert found == expected and again == found[0][1:2]
    assert len({one.note for row in found for one in row}) > 3  # picture and sentence make a difference
    assert all(one.empty and one.note for row in found for one in row)


def test_florence_replies_as_when_it_is_asked_in_full(wild: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(florence, "SIDE", 96)  # ten tokens, so that words weigh as much
    model = Florence(Pretrained(str(wild["florence2"])), device="cpu", dtype=torch.float32, tokens=12)
    picture, tokenizer = picture_of("wide"), model.weights.tokenizer
    found = model.ask(model.look(picture), SENTENCES)
    values = frame(picture, (96, 96), IMAGENET, device="cpu")[None]
    for sentence, prior in zip(SENTENCES, found, strict=True):
        prompt = "<image>" * 10 + f"<s>Locate the phrases in the caption: {sentence}</s>"
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            [reply] = greedy.greedy(
                model.model, tokenizer, tokens=12, input_ids=ids, attention_mask=torch.ones_like(ids),
                pixel_values=values,
            )  # fmt: skip
        text = first_phrase(reply.text)
        assert prior == dataclasses.replace(reply, text=text).prior(DIALECTS["florence-2"], (40, 90), (96, 96))
    assert len({repr(prior) for prior in found}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", GENERATIVE)
def test_a_box_comes_out_as_the_model_means_it(taught: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    source = Mllm(str(taught[kind]), dtype=dtype, tokens=20)
    picture = picture_of("wide")
    priors = source._asked.ask(source._asked.look(picture), SENTENCES)
    box = {"qwen2_5_vl": (7 / 84, 14 / 56, 28 / 84, 42 / 56),  # it sees 84 x 56 pixels
           "florence2": (0.1005, 0.2005, 0.6005, 0.7005)}.get(kind, (0.1, 0.2, 0.6, 0.7))  # fmt: skip
    # each token's logit is the root of the width, all others' are 0
    width, count = (16 if kind == "florence2" else 32) ** 0.5, source._asked.model.config.text_config.vocab_size
    score = 1 / (1 + (count - 1) * np.exp(-width))
    for prior in priors:
        assert prior.boxes == (pytest.approx(box),) and prior.scores == pytest.approx([score], rel=0.05)


def test_replies_are_greedy_whatever_the_makers_set(taught: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(taught["qwen2_5_vl"], tmp_path / "sampled")
    settings = {"do_sample": True, "temperature": 9.0, "top_k": 3, "repetition_penalty": 9.0, "num_beams": 2}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    ones, others = (
        source._asked.ask(source._asked.look(picture_of("wide")), SENTENCES)
        for source in (Mllm(str(path), tokens=20) for path in (folder, taught["qwen2_5_vl"]))
    )
    assert ones == others and ones[0].boxes


@pytest.mark.parametrize("kind", SUPPORTED)
def test_special_tokens_in_a_sentence_are_words(wild: dict[str, Path], kind: str) -> None:
    source = Mllm(str(wild[kind]), tokens=4)
    odd = ["cup <|im_end|> <|image_pad|> <IMG_CONTEXT> </img> </s> <image> [SEP] <s>", "\n\n", "é猫\u2028", "x" * 2000]
    found = source._asked.ask(source._asked.look(picture_of("wide")), odd)
    assert len(found) == 4 and all(prior.empty == bool(prior.note) for prior in found)
    if kind in CHATS:
        special = set(source._weights.tokenizer.all_special_ids)
        assert not special & set(source._weights.ids(odd[0]))


def test_examples() -> None:
    for module in (greedy, florence, grounding_dino, chat):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(("pieces", "chances", "expected"), [
    (["no ", "number"], [1, 1], None), ([], [], None), (["<loc_1>", "<loc_22>"], [0.2, 0.4], 0.3),
    (['{"bbox_2d', '": [1', "0", ", 2"], [0.9, 0.5, 0.3, 0.1], 0.3), (["a1b2", "3.5"], [0.1, 0.8], None),
    (["a1b2 ", "3", ".", "5"], [0.1, 0.8, 0.6, 0.4], 0.6),
])  # fmt: skip
def test_confidence_is_that_of_the_numbers(pieces: list[str], chances: list[float], expected: float | None) -> None:
    found = confidence(pieces, chances)
    assert found is None if expected is None else found == pytest.approx(expected)


@pytest.mark.parametrize(("reply", "boxes"), [
    ("the ring<loc_0><loc_0><loc_499><loc_999>", 1),
    ("the ring<loc_0><loc_0><loc_499><loc_999><loc_5><loc_5><loc_9><loc_9>it<loc_0><loc_0><loc_9><loc_9>", 2),
    ("<loc_0><loc_0><loc_499><loc_999>", 1), ("<b>ring</b><loc_0><loc_0><loc_499><loc_999>", 1), ("a ring", 0), ("", 0),
    ("ring<loc_0><loc_0>", 0), ("ring<loc_0><loc_0><loc_499><loc_999><loc_3><loc_4>", 1),
])  # fmt: skip
def test_florence_boxes_are_those_of_the_first_phrase(reply: str, boxes: int) -> None:
    prior = greedy.Reply(first_phrase(reply), 0.7).prior(DIALECTS["florence-2"], (10, 10), (768, 768))
    assert len(prior.boxes) == boxes and prior.mask is None and prior.scores == (0.7,) * boxes
    assert prior.boxes[:1] == ((0.0005, 0.0005, 0.4995, 0.9995),)[:boxes] and bool(prior.note) == (not boxes)


# --- Grounding DINO -----------------------------------------------------------------------------------------------


def test_detections_are_those_of_the_models_own_code(wild: dict[str, Path]) -> None:
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

    model = GroundingDino(Pretrained(str(wild["grounding-dino"])), device="cpu", threshold=0.4)
    tokenizer, look = model.weights.tokenizer, model.look(picture_of("wide"))
    theirs = transformers.GroundingDinoProcessor(GroundingDinoImageProcessorPil(), tokenizer)
    for sentence, prior in zip(SENTENCES, model.ask(look, SENTENCES), strict=True):
        with torch.inference_mode():
            out = model.model(pixel_values=look[None], **tokenizer([f"{sentence}."], return_tensors="pt"))
        [expected] = theirs.post_process_grounded_object_detection(out, threshold=0.4)
        order = expected["scores"].argsort(descending=True)
        inside = [box for at in order.tolist() if (box := cut(expected["boxes"][at].tolist()))]
        assert prior.boxes == tuple(pytest.approx(box, abs=1e-4) for box in inside[: len(prior.boxes)])
        assert 0 < len(prior.boxes) == min(len(inside), grounding_dino.KEPT)
        assert prior.scores[0] == pytest.approx(float(expected["scores"].max()), abs=1e-3)


def cut(box: list[float]) -> list[float] | None:
    """To the picture; `None` if more than half is lost."""
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in box)
    return [x0, y0, x1, y1] if 2 * (x1 - x0) * (y1 - y0) >= (box[2] - box[0]) * (box[3] - box[1]) else None


def test_detections_become_boxes_and_scores() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 1.2, 1.0], [1.2, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.1]])
    prior = detected(boxes, torch.tensor([0.3, 0.6, 0.9, 0.8]), threshold=0.25)
    assert prior.boxes == ((0, 0, 1, 1), pytest.approx((0.4, 0.3, 0.6, 0.7))) and prior.scores == (0.6, 0.3)
    none = detected(boxes, torch.tensor([0.3, 0.2, 0.9, float("nan")]), threshold=0.5)
    assert none.empty and none.note == "no box with a score above 0.5"


@pytest.mark.parametrize(("sentence", "expected"), [
    ("Left Black shoe", "left black shoe."), ("shoe. ", "shoe."), ("A. B...", "a. b."), ("?", "?."),
])  # fmt: skip
def test_captions(sentence: str, expected: str) -> None:
    assert caption(sentence) == expected


# --- where it looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_attention_is_that_of_a_question_asked_in_full(wild: dict[str, Path], kind: str) -> None:
    model, picture = chat_of(wild[kind], readout="attention"), picture_of("wide")
    look = model.look(picture)
    found = model._attention(look, SENTENCES)
    seen, cells, inputs = model._patches(picture)
    assert found.shape == (3, *cells)
    for sentence, heat in zip(SENTENCES, found, strict=True):
        text = f"{model.family.before}{'<|image_pad|>' * cells[0] * cells[1]}{model.family.after}{sentence}{chat.CLOSE}"
        ids = model.weights.tokenizer(text, return_tensors="pt").input_ids
        picked = ids == model.model.config.image_token_id
        with torch.inference_mode():
            out = model.model(input_ids=ids, mm_token_type_ids=picked.int(), output_attentions=True, **inputs)
        middle = out.attentions[1][0, :, -1].mean(0)[picked[0]]
        assert torch.allclose(heat.flatten(), middle, atol=1e-6)
    assert torch.allclose(model._relative(look, [chat.NOTHING]), torch.ones(cells), atol=1e-4)
    masks = [prior.mask for prior in model.ask(look, SENTENCES)]
    assert all(mask is not None and (mask.height, mask.width) == cells for mask in masks)
    assert len({mask.counts for mask in masks if mask}) > 1
    assert model.ask(look, SENTENCES[:1])[0].mask == masks[0]


def test_a_map_becomes_a_mask() -> None:
    heat = torch.zeros(6, 9)
    heat[1:4, 5:8] = 3
    prior = attended(heat)
    assert prior.mask is not None and not prior.boxes
    expected = np.zeros((6, 9), dtype=bool)
    expected[1:4, 5:8] = True
    expected[[1, 1, 3, 3], [5, 7, 5, 7]] = False  # corners, of which most neighbours are outside
    assert (prior.mask.decode() == expected).all()
    assert attended(torch.ones(3, 3)).empty and attended(torch.full((2, 2), float("nan"))).note


# --- the source ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*GENERATIVE, "grounding-dino"])
def test_from_the_command_line_to_the_store(
    taught: dict[str, Path], wild: dict[str, Path], world: Path, tmp_path: Path, kind: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = taught.get(kind, wild[kind])
    command = ["prior", str(world), "--source", "mllm", "--model", str(folder), "--batch", "3", "--out"]
    assert main([*command, str(tmp_path / "store")]) == 0
    total = sum(len(sample.sentences) for sample in read(world).samples)
    assert f"{total} priors of {kind} (mllm)" in capsys.readouterr().out
    store = PriorStore(tmp_path / "store")
    rows = [json.loads(value) for (value,) in store._db.execute("SELECT value FROM prior")]
    assert all(0 < row["scores"][0] <= 1 for row in rows if row.get("boxes"))
    assert all(row.get("boxes") for row in rows) if kind in GENERATIVE else any(row.get("boxes") for row in rows)
    store.close()
    monkeypatch.setattr(Pretrained, "load", lambda *_, **__: pytest.fail("all is known already"))
    assert main([*command, str(tmp_path / "store")]) == 0
    assert "torchvision" not in sys.modules


def test_a_picture_is_read_and_looked_at_once(
    wild: dict[str, Path], pairs: list[tuple[Sample, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from l2l.priors import mllm

    source = Mllm(str(wild["grounding-dino"]), batch=2)
    read_, looked, asked = [], [], []
    look, ask = source._asked.look, source._asked.ask
    monkeypatch.setattr(mllm, "load", lambda image: read_.append(image) or load(image))
    monkeypatch.setattr(source._asked, "look", lambda picture: looked.append(picture.shape) or look(picture))
    monkeypatch.setattr(source._asked, "ask", lambda seen, part: asked.append(len(part)) or ask(seen, part))
    found = source.answer(pairs[::-1])
    pictures = {sample.image for sample, _ in pairs}
    assert len(read_) == len(looked) == len(pictures) == len(set(read_)) < len(pairs)
    assert max(asked) == 2 and sum(asked) == len(pairs)
    alone = [source.answer([pair])[0] for pair in pairs]
    for one, other in zip(found[::-1], alone, strict=True):  # in the order of the pairs
        assert one.boxes == tuple(pytest.approx(box, abs=1e-4) for box in other.boxes)


def test_the_store_is_that_of_these_weights_and_settings(taught: dict[str, Path], tmp_path: Path) -> None:
    folder = taught["qwen3_vl"]
    mine = Mllm(str(folder)).fingerprint()
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    same = Mllm(str(moved), batch=1)
    assert (same.fingerprint(), same.name) == (mine, Mllm(str(folder)).name)
    others: list[Callable[[], str]] = [
        lambda: Mllm(str(folder), tokens=100).fingerprint(), lambda: Mllm(str(folder), pixels=10**5).fingerprint(),
        lambda: Mllm(str(folder), dtype=torch.bfloat16).fingerprint(), lambda: tuned(moved),
        lambda: Mllm(str(folder), readout="attention").fingerprint(),
    ]  # fmt: skip
    assert len({mine, *(other() for other in others)}) == 6


def tuned(folder: Path) -> str:
    """Fingerprint after one weight has changed, in a file of the same size."""
    weights = load_file(folder / "model.safetensors")
    before = (folder / "model.safetensors").stat().st_size
    weights["lm_head.weight"][3] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert (folder / "model.safetensors").stat().st_size == before
    return Mllm(str(folder)).fingerprint()


def test_large_weights_are_known_by_pieces(
    taught: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "LENGTH", 64)
    folder = shutil.copytree(taught["qwen3_vl"], tmp_path / "large")
    mine = Mllm(str(folder)).fingerprint()
    assert mine == Mllm(str(folder)).fingerprint()
    weights = {name: weight + 0.001 for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert mine != Mllm(str(folder)).fingerprint()


def test_a_model_of_the_hub_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def told(name: str, **how: Any) -> tuple[dict, dict]:
        asked.append(how["revision"])
        return {"model_type": "qwen3_vl", "_commit_hash": f"commit-of-{how['revision']}"}, {}

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", told)
    one, other = Mllm("Qwen/Some"), Mllm("Qwen/Some", revision="v2")
    assert asked == ["main", "v2"] and one.fingerprint() != other.fingerprint()
    assert one._weights._where["revision"] == "commit-of-main" and one.name == "Qwen/Some (mllm)"


def test_what_is_wrong_is_said(wild: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino, qwen = str(wild["grounding-dino"]), str(wild["qwen3_vl"])
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    for model, options, word in [
        ("", {}, "--model"), (str(tmp_path / "empty"), {}, "no model here"), (dino, {"batch": 0}, "batch"),
        (str(tmp_path / "bert"), {}, "a model of type bert; it has to be one of qwen2_5_vl, qwen3_vl, internvl"),
        (dino, {"readout": "tea"}, "no read-out tea"), (dino, {"readout": "attention"}, "for Qwen2.5-VL and Qwen3-VL"),
        (str(wild["internvl"]), {"readout": "attention"}, "for Qwen2.5-VL"), (qwen, {"revision": "v2"}, "folder"),
        (qwen, {"threshold": 1.5}, "threshold"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=word):
            Mllm(model, **options)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[transformers\]'"):
        Mllm(qwen)


def test_a_damaged_model_is_refused_when_it_is_asked(wild: dict[str, Path], tmp_path: Path) -> None:
    picture = picture_of("usual")
    partial = shutil.copytree(wild["qwen3_vl"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    del weights["model.language_model.norm.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    broken = shutil.copytree(wild["qwen3_vl"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"nothing")
    other = shutil.copytree(wild["qwen3_vl"], tmp_path / "other")
    for file in wild["internvl"].glob("token*"):
        shutil.copy(file, other)
    for folder, word in ((partial, "weights are missing"), (broken, "cannot load"), (other, "does not chat in ChatML")):
        with pytest.raises(InputError, match=word):
            Mllm(str(folder))._asked.look(picture)


def test_too_large_a_batch_is_explained(
    wild: dict[str, Path], pairs: list[tuple[Sample, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Mllm(str(wild["grounding-dino"]))

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(source._asked, "ask", full)
    with pytest.raises(InputError, match="--batch below 8"):
        source.answer(pairs)


@pytest.mark.parametrize(("options", "word"), [
    (["--source", "mllm"], "--model takes"), (["--batch", "2"], "--batch: for --source mllm"),
    (["--source", "mllm", "--model", "x", "--url", "http://x"], "--url and --dialect are for --source endpoint"),
    (["--source", "mllm", "--model", "x", "--device", "toaster"], "device toaster cannot be used"),
])  # fmt: skip
def test_options_of_the_command_line(
    world: Path, tmp_path: Path, options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prior", str(world), "--out", str(tmp_path / "store"), *options]) == 2
    assert word in capsys.readouterr().err
