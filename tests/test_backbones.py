"""Pretrained encoders and text encoders: tiny random models, saved to a folder and read the way a user's are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import SMALL
from torch import Tensor, nn

from l2l.cli import main
from l2l.config import Config
from l2l.errors import InputError
from l2l.label import label
from l2l.methods.resmatch import article_ids, strong_sentence
from l2l.model.backbones import PlainStage, PretrainedEncoder, Renormalise, SwinStage, read_backbone
from l2l.model.segmenter import Segmenter, _parts
from l2l.model.text import PAD, CompactText, Vocabulary
from l2l.model.words import PretrainedText, SubwordVocabulary, read_text
from l2l.predict import Predictor
from l2l.pretrained import digest_of
from l2l.training.loop import Run, load_run, pretrained_parameters, train, train_step
from l2l.training.pool import grid_size, normalise
from l2l.training.prepare import build_network, prepare

transformers = pytest.importorskip("transformers")

WORDS = ["the", "a", "an", "of", "red", "blue", "star", "square", "ring", "left", "right", "in", "##s"]
SENTENCES = ("the red stars", "a ring", "blorp of the left square")
VISION = ("swin", "convnext", "convnextv2", "dinov2", "dinov2_with_registers", "dinov3_vit")
TEXTS = ("bert", "mpnet", "clip")


def vision_config(family: str) -> Any:
    """The smallest of its kind; windows of 3 and patches of 14, so that nothing divides evenly."""
    plain: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 5, "image_size": 42}
    staged: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
    sizes: dict[str, dict[str, Any]] = {
        "swin": {"embed_dim": 8, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3, "image_size": 64},
        "convnext": staged | {"layer_scale_init_value": 1.0}, "convnextv2": staged,
        "dinov2": plain | {"patch_size": 14, "mlp_ratio": 2}, "dinov2_with_registers": plain | {"patch_size": 14},
        "dinov3_vit": plain | {"patch_size": 16, "intermediate_size": 32, "num_register_tokens": 2},
    }  # fmt: skip
    return transformers.AutoConfig.for_model(family, **sizes[family])


def stirred(model: nn.Module) -> nn.Module:
    """Weights of some size, so that every part has a say: fresh models have zeros and near-zeros in many places."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.2 * torch.randn(one.shape, generator=rng))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`folder/FAMILY` for every family, as `save_pretrained` leaves them."""
    root = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    for family in VISION:
        stirred(transformers.AutoModel.from_config(vision_config(family))).save_pretrained(root / family)
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 60,
        "max_position_embeddings": 32,
    }  # fmt: skip
    for family, names in {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "mpnet": ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    }.items():  # fmt: skip
        kind = {"bert": transformers.BertTokenizer, "mpnet": transformers.MPNetTokenizer}[family]
        tokenizer = kind(vocab={word: number for number, word in enumerate([*names, *WORDS])})
        tokenizer.save_pretrained(root / family)
        config = transformers.AutoConfig.for_model(family, **sizes, pad_token_id=tokenizer.pad_token_id)
        stirred(transformers.AutoModel.from_config(config)).save_pretrained(root / family)
    letters = [chr(number) for number in range(ord("a"), ord("z") + 1)]
    vocab = [*letters, *(f"{one}</w>" for one in letters), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    ids = {word: number for number, word in enumerate(vocab)}
    transformers.CLIPTokenizer(vocab=ids, merges=[("t", "h"), ("th", "e</w>")]).save_pretrained(root / "clip")
    vision = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    both = transformers.CLIPConfig(  # the whole of it, as it is published
        text_config=sizes | {"bos_token_id": 54, "eos_token_id": 55}, vision_config=vision | {"image_size": 64}
    )
    stirred(transformers.CLIPModel(both)).save_pretrained(root / "clip")
    return root


def encoder(folder: Path, family: str, **more: Any) -> PretrainedEncoder:
    torch.manual_seed(2)  # a plain ViT's pyramid is new
    return read_backbone(str(folder / family), **more).eval()


def picture(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def imagenet(image: Tensor) -> Tensor:
    """As the models' own processors do it."""
    mean, deviation = (torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (image - mean) / deviation


def walk(made: PretrainedEncoder, image: Tensor) -> tuple[list[Tensor], list[Any]]:
    """Maps of all stages without words, and what was handed on beside each."""
    x, *beside = _parts(made.stem(normalise(image)))
    maps, handed = [], []
    for stage in made.stages:
        x, *beside = _parts(stage(x, *beside))
        maps.append(x)
        handed.append(beside)
    return maps, handed


def segmenter(vision: nn.Module, text: nn.Module | None = None) -> Segmenter:
    text = text or CompactText(vocabulary_size=30, width=16, length=9, depth=1)
    return Segmenter(vision=vision, text=text, words=16, width=12, context=(0, 1, 1))


def test_pictures_are_renormalised_exactly() -> None:
    image = picture()
    torch.testing.assert_close(Renormalise()(normalise(image)), imagenet(image), atol=2e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (50, 71), (33, 40)])
def test_the_walk_of_a_swin_is_that_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    theirs = transformers.SwinBackbone.from_pretrained(folder / "swin", out_features=["stage4"]).eval()
    image = picture(*size)
    made = encoder(folder, "swin")
    expected = theirs(imagenet(image), output_hidden_states=True).hidden_states  # the stem's output first
    torch.testing.assert_close(made.stem(normalise(image)), expected[0], atol=1e-5, rtol=1e-4)
    for mine, other in zip(walk(made, image)[0], expected[1:], strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["convnext", "convnextv2"])
def test_the_walk_of_a_convnext_is_that_of_transformers(folder: Path, family: str) -> None:
    theirs = transformers.AutoModel.from_pretrained(folder / family).eval()
    expected = theirs(imagenet(picture()), output_hidden_states=True).hidden_states[-4:]
    for mine, other in zip(walk(encoder(folder, family), picture())[0], expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_the_walk_of_a_plain_vit_is_that_of_transformers(folder: Path, family: str) -> None:
    theirs = transformers.AutoModel.from_pretrained(folder / family).eval()
    image, patch = imagenet(picture()), theirs.config.patch_size
    if patch != 16:  # one token for 16 pixels
        image = F.interpolate(image, size=(4 * patch, 6 * patch), mode="bilinear", antialias=True)
    made = encoder(folder, family)
    _, handed = walk(made, picture())
    stage = made.stages[3]
    assert isinstance(stage, PlainStage)
    expected = theirs(image)[0]
    torch.testing.assert_close(stage.norm(handed[3][0].tokens), expected, atol=1e-4, rtol=1e-4)
    assert [len(one.blocks) for one in made.stages] == [2, 1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("family", VISION)
def test_any_size_of_picture(folder: Path, family: str) -> None:
    made = segmenter(encoder(folder, family)).eval()
    tokens = torch.tensor([[3, 4, 5], [6, PAD, PAD]])
    for height, width in ((32, 32), (33, 47), (50, 98), (96, 64)):
        encoded = made.encode(normalise(picture(height, width)), tokens)
        cells = grid_size((height, width))
        sizes = [tuple(-(-side // 2**level) for side in cells) for level in range(4)]
        assert [tuple(one.shape[2:]) for one in encoded.maps] == sizes
        logits = made.decode(encoded)[0]
        assert logits.shape == (2, *cells) and logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("family", VISION)
def test_however_it_was_saved(folder: Path, tmp_path: Path, family: str) -> None:
    """As a backbone, or with a classifier's head, as most are published; half precision becomes float32."""
    kinds = [transformers.AutoBackbone, transformers.AutoModelForImageClassification][: 1 + (family != "dinov3_vit")]
    for kind in kinds:
        theirs = kind.from_config(vision_config(family)).half()
        theirs.save_pretrained(tmp_path)
        made = read_backbone(str(tmp_path))
        assert {one.dtype for one in made.parameters()} == {torch.float32}
        patches = next(one for one in theirs.modules() if isinstance(one, nn.Conv2d))
        mine = next(one for one in made.stem.modules() if isinstance(one, nn.Conv2d))
        assert torch.equal(mine.weight, patches.weight.float())


@torch.no_grad()
def test_a_small_picture_leaves_a_swin_as_it_was(folder: Path) -> None:
    made = encoder(folder, "swin")
    before = walk(made, picture())[0][3]
    walk(made, picture(32, 32))
    assert torch.equal(walk(made, picture())[0][3], before)


@pytest.mark.parametrize("family", ["swin", "convnext", "dinov2", "dinov3_vit"])
def test_gradients_reach_words_and_backbone(folder: Path, family: str) -> None:
    vocabulary = SubwordVocabulary.read(str(folder / "bert"))
    made = segmenter(encoder(folder, family), read_text(str(folder / "bert"), vocabulary, width=16, length=9)).train()
    tokens = vocabulary.encode(SENTENCES[:2], 9)
    with torch.no_grad():
        for level in (one for one in made.modules() if isinstance(one, nn.Conv2d) and not one.weight.any()):
            level.weight.normal_(std=0.1)  # what starts at zero lets nothing back
    made(normalise(picture()), tokens).square().mean().backward()
    without = [name for name, one in made.named_parameters() if one.grad is None and "guided" not in name]
    # the words of the last stage are not asked again, but for their mean, which this loss does not see
    assert all(name.startswith("context.2.words_out") for name in without), without
    still = [name for name, one in made.vision.named_parameters() if one.grad is not None and not one.grad.any()]
    assert not [name for name in still if not name.endswith(("k_proj.bias", "key.bias"))], still  # softmax drops these
    assert sum(float(one.grad.norm()) for one in made.text.pretrained() if one.grad is not None) > 0  # type: ignore[operator]


@torch.no_grad()
@pytest.mark.parametrize("family", ["swin", "convnext", "dinov2", "dinov3_vit"])
def test_what_is_fused_flows_into_the_next_stage(folder: Path, family: str) -> None:
    made = encoder(folder, family)
    for level in (one for one in made.modules() if isinstance(one, nn.Conv2d) and not one.weight.any()):
        level.weight.normal_(std=0.1)
    x, *handed = _parts(made.stages[0](*_parts(made.stem(normalise(picture())))))
    one, other = (_parts(made.stages[1](given, *handed))[0] for given in (x, x + torch.randn_like(x)))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("family", ["swin", "convnext", "dinov3_vit"])
def test_checkpointing_changes_no_gradient(folder: Path, family: str) -> None:
    found = []
    for checkpointing in (False, True):
        made = encoder(folder, family, checkpointing=checkpointing).train()
        torch.manual_seed(5)  # the blocks are dropped at random
        sum(one.square().mean() for one in walk(made, picture())[0]).backward()  # type: ignore[union-attr]
        found.append([one.grad for one in made.pretrained()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["swin", "dinov2", "dinov3_vit"])
def test_eager_attention_and_half_precision_agree(folder: Path, family: str) -> None:
    maps = walk(encoder(folder, family), picture())[0]
    eager = walk(encoder(folder, family, attn_implementation="eager"), picture())[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = walk(encoder(folder, family), picture())[0]
    for one, other, half in zip(maps, eager, rough, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert float((half.float() - one).abs().mean()) < 0.1 * float(one.std())


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_real_tokens_and_no_others_are_words(folder: Path, family: str) -> None:
    where = str(folder / family)
    vocabulary = SubwordVocabulary.read(where)
    text = read_text(where, vocabulary, width=12, length=24).eval()
    tokens = vocabulary.encode(SENTENCES, 24)
    words, real = text(tokens)
    own = vocabulary.tokenizer(list(SENTENCES), padding="max_length", max_length=24, return_tensors="pt")
    assert torch.equal(real, own["attention_mask"].bool()) and words.shape == (3, 24, 12)
    assert torch.equal(torch.where(real, tokens - 1, own["input_ids"]), own["input_ids"])
    assert not tokens[~real].any() and int(tokens.max()) < len(vocabulary)
    theirs = text.model(input_ids=own["input_ids"], attention_mask=own["attention_mask"]).last_hidden_state
    torch.testing.assert_close(words[real], text.norm(text.project(theirs))[real], atol=1e-5, rtol=1e-4)
    short, _ = text(tokens[:1, : int(real[0].sum())])
    torch.testing.assert_close(short, words[:1, : short.shape[1]], atol=1e-5, rtol=1e-4)


def test_sentences_are_cut_but_for_their_special_tokens(folder: Path) -> None:
    vocabulary = SubwordVocabulary.read(str(folder / "bert"))
    names = [vocabulary.words[one - 1] for one in vocabulary.encode(["the red stars of the ring"], 5)[0].tolist()]
    assert names == ["[CLS]", "the", "red", "star", "[SEP]"]
    assert vocabulary.encode([""], 4).tolist() == [[3, 4, PAD, PAD]] and vocabulary.encode([], 4).shape == (0, 4)
    with pytest.raises(InputError, match="no room for words beside 2 special"):
        vocabulary.encode(["ring"], 2)


@pytest.mark.parametrize("family", TEXTS)
def test_resmatch_drops_no_special_token(folder: Path, family: str) -> None:
    vocabulary = SubwordVocabulary.read(str(folder / family))
    articles = torch.tensor(vocabulary.tokens_of(("the", "a", "an")))
    assert {vocabulary.words[one - 1].removesuffix("</w>") for one in articles.tolist()} >= {"the", "a"}
    tokens = vocabulary.encode(SENTENCES, 24)
    special = torch.tensor(vocabulary.special)
    bare = False
    for seed in range(20):
        less = strong_sentence(
            tokens, articles, 0.5, torch.Generator().manual_seed(seed), unknown=vocabulary.unknown,
            special=vocabulary.special,
        )  # fmt: skip
        assert ((less == PAD).long().diff(dim=1) >= 0).all()  # padding at the end only
        for before, after in zip(tokens, less, strict=True):
            kept, rest = (one[torch.isin(one, special) & (one != vocabulary.unknown)] for one in (before, after))
            assert torch.equal(kept, rest)
            assert not torch.isin(after, torch.cat([special, torch.tensor([PAD, vocabulary.unknown])])).all()
        bare |= not torch.isin(less[0], articles).any()
    assert bare


# --- through a run ------------------------------------------------------------------------------------------------


def small(folder: Path, **train_settings: Any) -> Config:
    """Three steps of a tiny Swin and a tiny BERT on drawn scenes."""
    config = Config().override(*(f"{name}={value}" for name, value in SMALL.items() if "model.ch" not in name))
    config = config.replace("data", scenes_count=12, rate=0.5, height=64, width=64)
    config = config.replace("model", backbone=str(folder / "swin"), text=str(folder / "bert"))
    return config.replace(
        "train", method="supervised", steps=3, save_every=1, probe_every=100, labelled=2, unlabelled=2, **train_settings
    )


def test_a_run_needs_the_pretrained_folders_no_more(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    shutil.copytree(folder, there)
    config = small(there)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(config, whole)
    train(config, cut, stop_after=2)
    shutil.rmtree(there)
    train(config, cut, resume=True)
    for about in (json.loads((run / "about.json").read_text()) for run in (whole, cut)):
        assert about["backbone"] == f"swin@{digest_of(folder / 'swin')}" and about["sam"] == ""
        assert about["text"] == f"bert@{digest_of(folder / 'bert')}" and str(tmp_path) not in str(about["backbone"])
    network, resumed = load_run(whole)[1], load_run(cut)[1]
    assert network is not None and resumed is not None
    other = resumed.state_dict()
    assert all(torch.equal(one, other[name]) for name, one in network.state_dict().items())

    picture = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    found = []
    for run in (whole, Path(shutil.move(cut, tmp_path / "elsewhere"))):
        predictor = Predictor(run)
        assert isinstance(predictor.vocabulary, SubwordVocabulary)
        predictor.set_image(picture)
        found.append(predictor.segment("the red star"))
    assert np.array_equal(found[0].mask, found[1].mask) and found[0].score == found[1].score
    assert label(whole, tmp_path / "labels").is_file()
    assert json.loads((whole / "about.json").read_text())["vocabulary"] == []
    with pytest.raises(InputError, match=r"model\.text=.*cannot read it"):
        train(config, tmp_path / "new")


def test_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    some = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    arguments = ["train", "--data", "scenes", "--count", "12", "--rate", "0.5", "--size", "64x64", "--steps", "3",
                 "--method", "resmatch", "--out", str(run), *some, "--set", f"model.backbone={folder / 'dinov2'}",
                 "--set", f"model.text={folder / 'clip'}", "--set", "train.burn_in=0", "--set",
                 "model.checkpointing=true"]  # fmt: skip
    assert main(arguments) == 0
    assert {one.name for one in run.iterdir() if one.is_dir()} >= {"backbone", "text"}
    assert main(["evaluate", str(run)]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert main([*arguments[:-6], "--set", "model.start=away", "--set", "model.backbone=x", "--out", "y"]) == 2
    assert "model.start=away" in capsys.readouterr().err


def test_pretrained_parameters_learn_at_a_rate_of_their_own(folder: Path) -> None:
    config = small(folder).replace("model", backbone=str(folder / "dinov3_vit"), backbone_rate=0.25)
    run = Run.start(config, prepare(config))
    rate = {id(one): group["peak"] for group in run.optimiser.param_groups for one in group["params"]}
    every = dict(run.parts.network.segmenter.named_parameters())
    slow = {name for name, one in every.items() if rate[id(one)] == 0.25 * config.train.rate}
    assert all(rate[id(every[name])] == config.train.rate for name in every.keys() - slow)
    assert all(name.startswith(("vision.", "text.model.")) for name in slow) and "vision.stages.0.norm.weight" in slow
    fresh = {name for name in every if name.startswith(("vision.", "text."))} - slow
    assert fresh and all("pyramid" in name or name.startswith(("text.project", "text.norm")) for name in fresh)
    decay = {id(one): group["weight_decay"] for group in run.optimiser.param_groups for one in group["params"]}
    assert all((decay[id(one)] > 0) == (one.ndim > 1) for one in every.values()) and len(rate) == len(decay)

    still = config.replace("model", backbone_rate=0.0)
    run = Run.start(still, prepare(still))
    before = {name: one.clone() for name, one in run.parts.network.segmenter.named_parameters()}
    train_step(run)
    moved = {name for name, one in run.parts.network.segmenter.named_parameters() if not torch.equal(one, before[name])}
    assert moved and not moved & slow


def test_l2l_trains_on_pretrained_parts(folder: Path) -> None:
    config = small(folder).replace("train", method="l2l", burn_in=0.0).replace("rple", guard=False)
    run = Run.start(config, prepare(config))
    assert "loss_u" in train_step(run)


def test_runs_without_pretrained_parts_keep_their_names() -> None:
    config = Config()
    assert len({config.hash(), *(config.replace("model", **{name: "x"}).hash() for name in ("backbone", "text"))}) == 3
    cells = sorted((Path(__file__).parents[1] / "results" / "benchmark" / "cells").glob("*.json"))[:20]
    for cell in cells:  # made before there were any
        assert Config.from_json(json.loads(cell.read_text(encoding="utf-8"))["config"]).hash() == cell.stem
    network = build_network(config, Vocabulary(("red", "star")))
    assert not pretrained_parameters(network.segmenter)


def test_articles_of_a_pool(folder: Path) -> None:
    config = small(folder)
    pool = prepare(config).pool
    assert article_ids(pool).tolist() == pool.vocabulary.tokens_of(("the", "a", "an"))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda at: read_backbone(str(at / "bert")), "of type bert; there are swin, convnext"),
        (lambda at: read_backbone(str(at / "nowhere")), "cannot read it"),
        (lambda at: read_text(str(at / "swin"), Vocabulary(()), width=8, length=9), "of type swin; there are bert"),
        (lambda at: read_text(str(at / "mpnet"), Vocabulary(()), width=8, length=31), "at most 30 tokens"),
        (lambda at: read_text(str(at / "bert"), Vocabulary(("x",) * 99), width=8, length=9), "the model knows fewer"),
        (lambda at: SubwordVocabulary.read(str(at / "swin")), "cannot read it"),
        (lambda at: Config().override("model.start=away", "model.text=x"), "compact encoders alone"),
        (lambda at: Config().override("model.backbone_rate=-1"), "at least 0"),
    ],
)
def test_what_is_refused(folder: Path, made: Callable[[Path], Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        made(folder)


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "swin", tmp_path / "swin")
    file = tmp_path / "swin" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: one for name, one in tensors.items() if not name.startswith("layernorm")}, file, {"format": "pt"})
    assert isinstance(read_backbone(str(tmp_path / "swin")).stages[0], SwinStage)  # nobody uses its last norm
    save_file({name: one for name, one in tensors.items() if "downsample" not in name}, file, {"format": "pt"})
    with pytest.raises(InputError, match="weights of the model are not there, as .*downsample"):
        read_backbone(str(tmp_path / "swin"))


def test_transformers_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the extra transformers: pip install -e '\.\[transformers\]'"):
        read_backbone("anything")


def test_a_text_encoder_is_projected(folder: Path) -> None:
    text = build_network(small(folder), SubwordVocabulary.read(str(folder / "bert"))).segmenter.text
    assert isinstance(text, PretrainedText) and text.project.out_features == small(folder).model.text_width
