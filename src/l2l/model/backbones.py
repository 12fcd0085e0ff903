"""Pretrained encoders of Hugging Face transformers, walked stage by stage: Swin, ConvNeXt, DINOv2 and DINOv3.

Each is an encoder as `model.vision` describes it. The transformers model is taken apart and its own modules are called
in its own order, so that without words the stages give what the model gives; what they give it for is a place to put
the words. Maps have the sizes of the compact encoder's: ceil(H / 4) x ceil(W / 4), then half of that, rounded up.

- Swin and ConvNeXt (`Hierarchical`): the words are fused into a stage's output *before* it is down-sampled, and what is
  fused flows into the next stage, as in LAVT (arXiv 2112.02244, section 3). No norm follows a stage: fusion and decoder
  begin with norms of their own. The attention of Swin runs over whole windows at any size, padded, as transformers'
  `SwinBackbone` has it.
- DINOv2 and DINOv3 (`PlainStage`): a plain ViT has one resolution, so its blocks are walked in four groups. After each
  group its tokens become a map, at strides 4, 8, 16 and 32 in turn, by one level of a simple feature pyramid (ViTDet,
  arXiv 2203.16527, section 3; there all levels come from the last block). The words are fused into that map; what came
  of it is averaged over each token's cells and added to the tokens before the next group, through a 1x1 convolution
  that starts at zero: to begin with, the blocks see what they were trained on.

Pictures are padded at the right and below with the mean colour. A ViT's are then resized, if its patches are not of 16
pixels, so that a token always stands for 16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from l2l.errors import InputError
from l2l.model.pretrained import BACKBONE, build_encoder, pretrained_part
from l2l.model.vision import DEVIATION, MEAN
from l2l.pretrained import IMAGENET

FAMILIES = ("swin", "convnext", "convnextv2", "dinov2", "dinov2_with_registers", "dinov3_vit")
STRIDE = 16  # pixels that a token of a plain ViT stands for


class PretrainedEncoder(nn.Module):
    """A pretrained encoder, ready for the segmenter's walk.

    Args:
        channels: widths of the four maps.
        stem: picture (B, 3, H, W), normalised as `training.pool.normalise` does it -> what the first stage takes.
        stages: four modules.
    """

    def __init__(self, *, channels: Sequence[int], stem: nn.Module, stages: Sequence[nn.Module]):
        super().__init__()
        self.channels, self.stem, self.stages = tuple(channels), stem, nn.ModuleList(stages)

    def pretrained(self) -> list[nn.Parameter]:
        """The parameters that were read; those of a ViT's pyramid are new."""
        levels = (module for module in self.modules() if isinstance(module, PyramidLevel))
        new = {one for level in levels for one in level.parameters()}
        return [one for one in self.parameters() if one not in new]


def read_backbone(
    where: str, *, weights: bool = True, checkpointing: bool = False, attn_implementation: str | None = None
) -> PretrainedEncoder:
    """An encoder from a name on the Hugging Face Hub or a folder.

    Args:
        weights: read them, too; otherwise they are random, to be loaded from a run's checkpoint.
        checkpointing: compute each block again in the backward pass rather than keep what is inside.
        attn_implementation: as transformers knows it; its own choice if not given.

    Raises:
        InputError: if transformers is missing, the model cannot be read, or it is none that is known here.
    """
    found = pretrained_part(BACKBONE, where)
    config = found.config
    family = config.model_type
    if family not in FAMILIES:
        raise InputError(f"model.backbone={where} is a model of type {family}; there are {', '.join(FAMILIES)}")
    plain = family.startswith("dino")
    if not plain and (config.patch_size != 4 or len(config.depths) != 4):
        raise InputError(f"model.backbone={where}: the segmenter needs four stages, the first at stride 4")
    if plain and config.num_hidden_layers < 4:
        raise InputError(f"model.backbone={where}: {config.num_hidden_layers} blocks make no four groups")
    if family == "dinov3_vit":  # random scales of the positions belong to its pre-training
        config.pos_embed_shift = config.pos_embed_jitter = config.pos_embed_rescale = None
    spare = ("embeddings.mask_token",) if plain else ("layernorm.",)
    model = build_encoder(found, config, weights=weights, attn_implementation=attn_implementation, spare=spare)
    made = {"swin": _swin, "convnext": _convnext, "convnextv2": _convnext}.get(family, _plain)
    return made(model, config, checkpointing)


def _swin(model: Any, config: Any, checkpointing: bool) -> PretrainedEncoder:
    layers = list(model.encoder.layers)
    downs = [None, *(layer.downsample for layer in layers[:-1])]  # a stage begins with what ended the one before
    stages = [SwinStage(down, layer.blocks, checkpointing) for down, layer in zip(downs, layers, strict=True)]
    channels = [config.embed_dim * 2**stage for stage in range(4)]
    return PretrainedEncoder(channels=channels, stem=SwinStem(model.embeddings), stages=stages)


def _convnext(model: Any, config: Any, checkpointing: bool) -> PretrainedEncoder:
    stages = [ConvNextStage(stage.downsampling_layer, stage.layers, checkpointing) for stage in model.encoder.stages]
    return PretrainedEncoder(channels=config.hidden_sizes, stem=ConvNextStem(model.embeddings), stages=stages)


def _plain(model: Any, config: Any, checkpointing: bool) -> PretrainedEncoder:
    third = config.model_type == "dinov3_vit"
    blocks, norm = (model.model.layer, model.norm) if third else (model.encoder.layer, model.layernorm)
    model.embeddings.mask_token = None  # of its pre-training; nobody uses it
    width, groups = config.hidden_size, torch.arange(len(blocks)).tensor_split(4)
    channels = (width // 4, width // 2, width, width)
    stages = []
    for level, group in enumerate(groups):
        pyramid = PyramidLevel(level=level, width=width, out=channels[level], before=channels[max(level - 1, 0)])
        stages.append(PlainStage([blocks[at] for at in group.tolist()], copy.deepcopy(norm), pyramid, checkpointing))
    stem = PlainStem(model.embeddings, model.rope_embeddings if third else None, config.patch_size)
    return PretrainedEncoder(channels=channels, stem=stem, stages=stages)


class Renormalise(nn.Module):
    """From the pool's normalisation to the one a model was trained with: an exact affine map.

    Args:
        colours: mean and standard deviation of each channel; ImageNet's, as all models of transformers here have it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, colours: tuple[Sequence[float], Sequence[float]] = IMAGENET) -> None:
        super().__init__()
        mean, deviation = (torch.tensor(one, dtype=torch.float64) for one in colours)
        self.register_buffer("scale", (DEVIATION / deviation).float()[:, None, None], persistent=False)
        self.register_buffer("shift", ((MEAN - mean) / deviation).float()[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        return image * self.scale + self.shift


def pad(x: Tensor, multiple: int) -> Tensor:
    """Zeros at the right and below (B, C, H, W) until both sides are multiples: the mean colour, once renormalised."""
    return F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))


class Blocks(nn.Module):
    """Blocks of a stage, one after the other; with `checkpointing` in training each is computed again on the way back.

    Args:
        blocks: transformers' own.
    """

    def __init__(self, blocks: Sequence[nn.Module], checkpointing: bool):
        super().__init__()
        self.blocks, self.checkpointing = nn.ModuleList(blocks), checkpointing

    def run(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        """x through all blocks, each of which gets the other arguments as well."""
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            call = self.way_through(block)
            made = checkpoint(call, x, *args, use_reentrant=False, **named) if again else call(x, *args, **named)
            x = made[0] if isinstance(made, tuple) else made  # some return their attention weights, too
        return x

    def way_through(self, block: nn.Module) -> Callable[..., Any]:
        """What is called for a block: the block."""
        return block


class SwinStem(nn.Module):
    """Patches of 4 x 4 pixels."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.renormalise, self.embeddings = Renormalise(), embeddings

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4))."""
        tokens, size = self.embeddings(pad(self.renormalise(image), 4), interpolate_pos_encoding=True)
        return tokens.unflatten(1, size).permute(0, 3, 1, 2)


class SwinStage(Blocks):
    """Merging of 2 x 2 patches (but for the first stage), then blocks of windowed attention."""

    def __init__(self, down: nn.Module | None, blocks: Sequence[nn.Module], checkpointing: bool):
        super().__init__(blocks, checkpointing)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        height, width = x.shape[2:]
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # no copy in channels_last
        if self.down is not None:
            tokens = self.down(tokens, (height, width))
            height, width = (height + 1) // 2, (width + 1) // 2
        # without `always_partition` a block that once meets a small map keeps a small window for good
        tokens = self.run(tokens, (height, width), always_partition=True)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def way_through(self, block: nn.Module) -> Callable[..., Any]:
        """`swin_block`, which does what the block does; where attention is not `sdpa`, the block itself."""
        ours = block.attention.config._attn_implementation == "sdpa"
        return partial(swin_block, block) if ours else block


def swin_block(block: Any, x: Tensor, size: tuple[int, int], always_partition: bool = True) -> Tensor:
    """transformers' `SwinLayer`, its own modules in its own order, with less work; (B, h w, C) -> the same shape.

    It pads a map to whole windows and projects what it padded, to throw it away in the end: at 480 x 480 every second
    token of the last stage. What a projection makes of zeros is its bias, so here projections see real tokens alone.

    Args:
        block: a `SwinLayer`. size: (h, w) of the map. always_partition: always, as `SwinStage` wants it.
    """
    attention, window, shift = block.attention, block.window_size, block.shift_size
    heads, (height, width) = attention.num_attention_heads, size
    below, right = -height % window, -width % window
    rows, columns = (height + below) // window, (width + right) // window
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([one.weight for one in projections])  # (3 C, C)
    constant = None if projections[0].bias is None else torch.cat([one.bias for one in projections])
    maps = F.linear(block.layernorm_before(x), weight, constant).unflatten(1, size)  # (B, h, w, 3 C)
    if below or right:
        nothing = maps.new_zeros(maps.shape[3]) if constant is None else constant.to(maps.dtype)
        maps = torch.cat([maps, nothing.expand(len(maps), height, right, -1)], dim=2)
        maps = torch.cat([maps, nothing.expand(len(maps), below, width + right, -1)], dim=1)
    if shift:
        maps = maps.roll((-shift, -shift), (1, 2))
    parts = maps.view(len(maps), rows, window, columns, window, 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    query, key, value = parts.reshape(3, len(maps) * rows * columns, heads, window**2, -1)  # each (B n, heads, N, D)
    bias = attention.relative_position_bias()  # (1, heads, N, N)
    apart = block.get_attn_mask(height + below, width + right, dtype=bias.dtype, device=bias.device)
    dropout = attention.attention_dropout * block.training
    told = window_attention(query, key, value, bias, apart, scale=attention.scaling, dropout=dropout)
    told = told.reshape(len(maps), rows, columns, heads, window, window, -1).permute(0, 1, 4, 2, 5, 3, 6)
    told = told.reshape(len(maps), rows * window, columns * window, -1)
    if shift:
        told = told.roll((shift, shift), (1, 2))
    told = told[:, :height, :width].reshape(x.shape)
    x = x + block.drop_path(block.dropout(attention.o_proj(told)))
    return x + block.dropout(block.mlp(block.layernorm_after(x)))


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, apart: Tensor | None, *, scale: float, dropout: float
) -> Tensor:
    """Attention within windows, with a learned bias on the scores.

    Args:
        query, key, value: (B n, heads, N, D), n windows of each of B pictures.
        bias: (1, heads, N, N), the same for all windows. apart: (n, N, N), very low where two tokens of a window are no
            neighbours in the picture; `None` where all are.

    Returns:
        (B n, heads, N, D).
    """
    if torch.is_grad_enabled() and query.device.type == "cpu" and query.dtype == torch.float32 and not dropout:
        return _LearnedBias.apply(query, key, value, bias, apart, scale)
    shape = query.shape
    if apart is not None:  # windows of one picture as so many heads: what is added is the same for all pictures
        bias = (bias + apart[:, None]).flatten(0, 1)[None]  # (1, n heads, N, N)
        query, key, value = (one.view(-1, bias.shape[1], *shape[2:]) for one in (query, key, value))
    told = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout, scale=scale
    )
    return told.reshape(shape)


class _LearnedBias(torch.autograd.Function):
    """`window_attention` where torch has no fused kernel: on a CPU, with a bias that learns.

    The weights are computed again for the backward pass rather than kept (as in FlashAttention, arXiv 2205.14135), and
    in place: memory that is asked for and given back takes longer than the products.
    """

    @staticmethod
    def weights(query: Tensor, key: Tensor, bias: Tensor, apart: Tensor | None, scale: float) -> Tensor:
        """(B n heads, N, N)."""
        scores = bias.new_empty(len(query), *bias.shape[1:])
        added = bias if apart is None else bias + apart[:, None]  # (1 or n, heads, N, N)
        scores.unflatten(0, (-1, len(added))).copy_(added)
        scores = scores.flatten(0, 1)
        scores.baddbmm_(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
        return torch.softmax(scores, -1, out=scores)

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, apart: Tensor | None, scale: float
    ) -> Tensor:
        weights = _LearnedBias.weights(query, key, bias, apart, scale)
        told = torch.bmm(weights, value.flatten(0, 1)).view(query.shape)
        ctx.save_for_backward(query, key, value, bias, apart, told)
        ctx.scale = scale
        return told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, apart, told = ctx.saved_tensors
        shape, gradient = query.shape, gradient.flatten(0, 1)
        weights = _LearnedBias.weights(query, key, bias, apart, ctx.scale)
        to_value = torch.bmm(weights.transpose(1, 2), gradient)
        to_weights = torch.bmm(gradient, value.flatten(0, 1).transpose(1, 2))
        to_weights.sub_((gradient * told.flatten(0, 1)).sum(-1, keepdim=True))
        to_scores = weights.mul_(to_weights)
        to_query = torch.bmm(to_scores, key.flatten(0, 1)).mul_(ctx.scale)
        to_key = torch.bmm(to_scores.transpose(1, 2), query.flatten(0, 1)).mul_(ctx.scale)
        to_bias = to_scores.view(len(query), *bias.shape[1:]).sum(0, keepdim=True)
        return to_query.view(shape), to_key.view(shape), to_value.view(shape), to_bias, None, None


class ConvNextStem(nn.Module):
    """Patches of 4 x 4 pixels."""

    def __init__(self, embeddings: nn.Module):
        super().__init__()
        self.renormalise, self.embeddings = Renormalise(), embeddings

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / 4), ceil(W / 4))."""
        return self.embeddings(pad(self.renormalise(image), 4))


class ConvNextStage(Blocks):
    """A norm and a strided convolution (but for the first stage), then blocks of depthwise convolutions."""

    def __init__(self, down: nn.ModuleList, blocks: Sequence[nn.Module], checkpointing: bool):
        super().__init__(blocks, checkpointing)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w'); an odd row or column is down-sampled with a copy of itself."""
        if len(self.down):
            x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        for layer in self.down:
            x = layer(x)
        return self.run(x)


@dataclass(frozen=True)
class Grid:
    """What a plain ViT hands on from one group of blocks to the next."""

    tokens: Tensor
    """(B, P + h w, C): class and register tokens, then those of the patches, row by row."""
    size: tuple[int, int]
    """(h, w) = (ceil(H / 16), ceil(W / 16))."""
    cells: tuple[int, int]
    """Size of the stride-4 map."""
    rotary: dict[str, Any]
    """DINOv3's rotary position embeddings, an argument of its blocks; else nothing."""

    def expand(self, count: int, *_: int) -> Grid:
        """Of one picture, as of `count` times the same."""
        return replace(self, tokens=self.tokens.expand(count, -1, -1))

    def __getitem__(self, places: Tensor) -> Grid:
        """Of some of the pictures."""
        return replace(self, tokens=self.tokens[places])


class PlainStem(nn.Module):
    """Patches of a plain ViT, one to 16 x 16 pixels of the picture.

    Args:
        rotary: DINOv3's position embeddings. patch: side of a patch, pixels.
    """

    def __init__(self, embeddings: nn.Module, rotary: nn.Module | None, patch: int):
        super().__init__()
        self.renormalise, self.embeddings, self.rotary, self.patch = Renormalise(), embeddings, rotary, patch

    def forward(self, image: Tensor) -> tuple[None, Grid]:
        """(B, 3, H, W) -> no map yet, and the tokens."""
        cells = ((image.shape[2] + 3) // 4, (image.shape[3] + 3) // 4)
        x = pad(self.renormalise(image), STRIDE)
        size = (x.shape[2] // STRIDE, x.shape[3] // STRIDE)
        if self.patch != STRIDE:
            side = (size[0] * self.patch, size[1] * self.patch)
            x = F.interpolate(x, size=side, mode="bilinear", antialias=True, align_corners=False)
        rotary = {} if self.rotary is None else {"position_embeddings": self.rotary(x)}
        return None, Grid(self.embeddings(x), size, cells, rotary)


class PlainStage(Blocks):
    """A group of a plain ViT's blocks, and its level of the pyramid.

    Args:
        norm: a copy of the model's last norm, through which the pyramid sees the tokens.
    """

    def __init__(self, blocks: Sequence[nn.Module], norm: nn.Module, pyramid: PyramidLevel, checkpointing: bool):
        super().__init__(blocks, checkpointing)
        self.norm, self.pyramid = norm, pyramid

    def forward(self, fused: Tensor | None, grid: Grid) -> tuple[Tensor, Grid]:
        """The map of the stage before with the words in it (`None` for the first), and the tokens -> map, tokens."""
        tokens = grid.tokens
        first = tokens.shape[1] - grid.size[0] * grid.size[1]  # of the patches
        if fused is not None:
            told = self.pyramid.back(fused, grid.size).flatten(2).transpose(1, 2)
            tokens = torch.cat([tokens[:, :first], tokens[:, first:] + told], dim=1)
        tokens = self.run(tokens, **grid.rotary)
        seen = self.norm(tokens)[:, first:].transpose(1, 2).unflatten(2, grid.size)  # (B, C, h, w)
        return self.pyramid(seen, grid.cells), replace(grid, tokens=tokens)


class PyramidLevel(nn.Module):
    """One level of the simple feature pyramid: from the token grid at stride 16 to a map, and back to the grid.

    Args:
        level: 0 to 3, for strides 4 to 32.
        width: channels of a token. out: channels of the map. before: channels of the map of the level before.
    """

    def __init__(self, *, level: int, width: int, out: int, before: int):
        super().__init__()
        self.level = level
        half = width // 2
        ways: tuple[nn.Module, ...] = (
            nn.Sequential(
                nn.ConvTranspose2d(width, half, 2, stride=2), nn.BatchNorm2d(half), nn.GELU(),
                nn.ConvTranspose2d(half, out, 2, stride=2),
            ),
            nn.ConvTranspose2d(width, out, 2, stride=2), nn.Identity(), nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self.way = ways[level]
        self.hear = nn.Conv2d(before, width, 1) if level else None
        if self.hear is not None:
            nn.init.zeros_(self.hear.weight)
            nn.init.zeros_(self.hear.bias)

    def forward(self, seen: Tensor, cells: tuple[int, int]) -> Tensor:
        """Token grid (B, C, h, w) -> the map, cut to its share of `cells`, the stride-4 map's size."""
        height, width = (-(-side // 2**self.level) for side in cells)
        return self.way(seen)[:, :, :height, :width]

    def back(self, fused: Tensor, size: tuple[int, int]) -> Tensor:
        """The map of the level before -> what is added to the token grid, (B, C, *size)."""
        assert self.hear is not None
        cells = 2 ** (3 - self.level)  # of that map to a token, along each side
        height, width = size
        fused = F.pad(fused, (0, width * cells - fused.shape[3], 0, height * cells - fused.shape[2]))
        return self.hear(F.avg_pool2d(fused, cells))
