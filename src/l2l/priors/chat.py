"""Qwen2.5-VL, Qwen3-VL and InternVL: a picture is looked at once, then asked about in many sentences.

All three chat in ChatML, and the picture comes before the words. So what they have seen, the keys and values of all
tokens up to the end of the picture, is computed once and serves every sentence about it.

The attention read-out ("where does it look when it is about to answer?") follows Zhang et al., "MLLMs Know Where to
Look", ICLR 2025: attention to the picture's tokens, relative to that for a question about nothing in particular.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2l.errors import InputError
from l2l.pretrained import CLIP, HALF, IMAGENET, Pretrained, frame
from l2l.priors.answers import DIALECTS, instruction, smart_resize
from l2l.priors.greedy import TOKENS, greedy, make_greedy
from l2l.priors.prior import Prior
from l2l.rle import Rle

TILES = 12  # of InternVL, at most; one more shows the whole picture
CLOSE, END = "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"
NOTHING = "Describe the picture in a single word."  # asked about nothing in particular
CUT = 0.5  # of the attention's range, above which a cell belongs to the mask


@dataclass(frozen=True)
class Family:
    """What the models of one kind have in common."""

    model: str
    """Its class in transformers."""
    dialect: str
    """How it writes boxes: a name of `answers.DIALECTS`."""
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean and standard deviation of each channel."""
    before: str
    """What stands before the picture's tokens."""
    after: str
    """What stands behind them; it ends with a special token, so that words behind it are always cut the same way."""
    least: int = 0
    """Side of a square of as many pixels as a picture has at least; of the Qwen family."""


USER = "<|im_start|>user\n"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
FAMILIES = {
    "qwen2_5_vl": Family("Qwen2_5_VLForConditionalGeneration", "qwen2.5-vl", CLIP,
                         f"{SYSTEM}{USER}<|vision_start|>", "<|vision_end|>", 56),
    "qwen3_vl": Family("Qwen3VLForConditionalGeneration", "qwen3-vl", HALF,
                       f"{USER}<|vision_start|>", "<|vision_end|>", 256),
    "internvl": Family("InternVLForConditionalGeneration", "internvl", IMAGENET, f"{USER}<img>", "</img>"),
}  # fmt: skip
"""By the `model_type` of a model's configuration."""


@dataclass
class Look:
    """What a model has seen of one picture."""

    size: tuple[int, int]
    """(height, width) of the picture; pixels."""
    seen: tuple[int, int]
    """The same as the model saw it."""
    ids: list[int]
    """Tokens up to the end of the picture."""
    at: int
    """Place of the picture's first token among them."""
    cells: tuple[int, int]
    """Rows and columns of the picture's tokens (Qwen); of InternVL's, the number of tiles and the tokens of each."""
    cache: Any
    """Keys and values of `ids`."""
    deltas: Tensor | None
    """What Qwen adds to the places of later tokens, since a picture takes fewer places than it has tokens."""
    nothing: Tensor | None = None
    """Attention (rows, columns) when it is asked about nothing in particular."""


class Chat:
    """One model of a family.

    Args:
        weights: which one.
        device: torch device. dtype: of weights and arithmetic.
        tokens: of a reply, at most.
        pixels: pictures with more are seen smaller (Qwen).
        readout: `reply`, the boxes that it writes; or `attention` (Qwen), where it looks, as a mask.

    Raises:
        InputError: if the model's kind has no such read-out.
    """

    def __init__(
        self, weights: Pretrained, *, device: str, dtype: torch.dtype, tokens: int = TOKENS,
        pixels: int = 1280 * 28 * 28, readout: str = "reply",
    ):  # fmt: skip
        self.weights, self.device, self.dtype, self.tokens, self.pixels = weights, device, dtype, tokens, pixels
        self.family, self.dialect = FAMILIES[weights.kind], DIALECTS[FAMILIES[weights.kind].dialect]
        self.attention = readout == "attention"
        if self.attention and weights.kind == "internvl":
            raise InputError("--readout attention is for Qwen2.5-VL and Qwen3-VL", file=weights.name)

    @property
    def about(self) -> str:
        """What the answers depend on besides the weights."""
        asked = instruction(self.dialect, "...", (100, 100))
        told = f"{self.family}\n{self.dialect}\n{asked}\n{CLOSE}\n{self.tokens} {self.pixels} {TILES} {self.dtype}"
        return f"{told}\nattention {CUT} {NOTHING}" if self.attention else told

    @cached_property
    def model(self) -> Any:
        """The model. Raises `InputError` if it cannot be loaded or does not chat in ChatML."""
        tokenizer = self.weights.tokenizer
        for token in set(re.findall(r"<[^<>]+>", self.family.before + self.family.after + CLOSE)):
            if len(tokenizer(token, add_special_tokens=False).input_ids) != 1:
                raise InputError(f"its tokenizer has no {token}: it does not chat in ChatML", file=self.weights.name)
        how = "eager" if self.attention else None  # no other gives attention away
        model = self.weights.load(self.family.model, device=self.device, dtype=self.dtype, attn_implementation=how)
        make_greedy(model, ends=tokenizer.convert_tokens_to_ids(END))
        return model

    # --- looking ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def look(self, picture: np.ndarray) -> Look:
        """See a picture, uint8 (H, W, 3) RGB."""
        from transformers import DynamicCache

        model, tokenizer = self.model, self.weights.tokenizer
        size = (picture.shape[0], picture.shape[1])
        seen, cells, inputs = self._tiles(picture) if self.weights.kind == "internvl" else self._patches(picture)
        before = list(tokenizer(self.family.before).input_ids)
        after = tokenizer(self.family.after, add_special_tokens=False).input_ids
        ids = before + [model.config.image_token_id] * (cells[0] * cells[1]) + list(after)
        whole = self._row(ids)
        if self.family.least:
            inputs["mm_token_type_ids"] = (whole == model.config.image_token_id).int()
        cache = DynamicCache(config=model.config.get_text_config())
        model.model(
            input_ids=whole, attention_mask=torch.ones_like(whole), past_key_values=cache, use_cache=True, **inputs
        )
        deltas = model.model.rope_deltas if self.family.least else None
        return Look(size, seen, ids, len(before), cells, cache, deltas)

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device)

    def _patches(self, picture: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], dict[str, Tensor]]:
        """Qwen: the size at which it is seen, rows and columns of its tokens, inputs of the model."""
        vision = self.model.config.vision_config
        patch, merge = int(vision.patch_size), int(vision.spatial_merge_size)
        seen = smart_resize(
            (picture.shape[0], picture.shape[1]), factor=patch * merge, least=self.family.least**2, most=self.pixels
        )
        values = patches(
            frame(picture, seen, self.family.colours, device=self.device), patch, merge, int(vision.temporal_patch_size)
        )
        grid = torch.tensor([[1, seen[0] // patch, seen[1] // patch]], device=self.device)
        cells = (seen[0] // patch // merge, seen[1] // patch // merge)
        return seen, cells, {"pixel_values": values.to(self.dtype), "image_grid_thw": grid}

    def _tiles(self, picture: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], dict[str, Tensor]]:
        """InternVL: the size at which it is seen, number of tiles and tokens of each, inputs of the model."""
        config = self.model.config
        (side, _), (patch, _) = config.vision_config.image_size, config.vision_config.patch_size
        rows, columns = tiling((picture.shape[0], picture.shape[1]), side)
        whole = frame(picture, (rows * side, columns * side), self.family.colours, device=self.device)
        values = whole.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        if rows * columns > 1:
            small = frame(picture, (side, side), self.family.colours, device=self.device)
            values = torch.cat([values, small[None]])
        tokens = int(side // patch * config.downsample_ratio) ** 2
        return (rows * side, columns * side), (len(values), tokens), {"pixel_values": values.to(self.dtype)}

    # --- asking -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def ask(self, look: Look, sentences: Sequence[str]) -> list[Prior]:
        """One prior per sentence."""
        questions = [instruction(self.dialect, sentence, look.seen) for sentence in sentences]
        if self.attention:
            return [attended(heat) for heat in self._relative(look, questions)]
        ids, mask, cache = self._prompts(look, questions)
        replies = greedy(
            self.model, self.weights.tokenizer, tokens=self.tokens, input_ids=ids, attention_mask=mask,
            past_key_values=cache,
        )  # fmt: skip
        return [reply.prior(self.dialect, look.size, look.seen) for reply in replies]

    def _prompts(self, look: Look, questions: Sequence[str]) -> tuple[Tensor, Tensor, Any]:
        """Tokens (B, L), which of them count (B, L), and the cache of the first ones. Shorter questions are padded
        between the picture and the words: what is cached comes first, and a reply begins at the end."""
        tokenizer = self.weights.tokenizer
        close = list(tokenizer(CLOSE, add_special_tokens=False).input_ids)
        start = "\n" if self.weights.kind == "internvl" else ""
        asked = [self.weights.ids(start + question) + close for question in questions]
        longest = max(map(len, asked))
        ids, mask = [], []
        for words in asked:
            gap = longest - len(words)
            ids.append(look.ids + [close[0]] * gap + words)
            mask.append([1] * len(look.ids) + [0] * gap + [1] * len(words))
        cache = copy.deepcopy(look.cache)
        cache.batch_repeat_interleave(len(questions))
        if look.deltas is not None:
            self.model.model.rope_deltas = look.deltas  # the model keeps those of the picture that it saw last
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device), cache

    def _relative(self, look: Look, questions: Sequence[str]) -> Tensor:
        """Attention (B, rows, columns) for each question, divided by that for a question about nothing."""
        if look.nothing is None:
            look.nothing = self._attention(look, [NOTHING])[0]
        return self._attention(look, questions) / look.nothing.clamp_min(1e-9)

    def _attention(self, look: Look, questions: Sequence[str]) -> Tensor:
        """Attention (B, rows, columns) of the last token, which begins the reply, to the picture's: the mean over heads
        and the middle third of the layers."""
        ids, mask, cache = self._prompts(look, questions)
        assert look.deltas is not None
        places = (mask.cumsum(1) - 1 + look.deltas)[None].expand(3, -1, -1)  # (3, B, L)
        known, last = len(look.ids), ids.shape[1] - 1
        for start, end in ((known, last), (last, last + 1)):  # attention of one token alone takes little memory
            out = self.model.model(
                input_ids=ids[:, start:end], attention_mask=mask[:, :end], position_ids=places[..., start:end],
                past_key_values=cache, use_cache=True, output_attentions=start == last,
            )  # fmt: skip
        layers = len(out.attentions)
        middle = out.attentions[layers // 3 : max(2 * layers // 3, layers // 3 + 1)]  # (B, heads, 1, L) each
        span = slice(look.at, look.at + look.cells[0] * look.cells[1])
        return torch.stack([one[:, :, 0, span].float().mean(1) for one in middle]).mean(0).unflatten(1, look.cells)


def patches(picture: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """A picture as Qwen's vision towers take it.

    Args:
        picture: (C, H, W). patch: side of a patch. merge: patches of a token, along each side; they come one after the
            other. frames: as many times a still picture is shown.

    Returns:
        (H W / patch², C x frames x patch²).
    """
    channels, height, width = picture.shape
    split = picture.view(channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch)
    ordered = split.permute(1, 4, 2, 5, 0, 3, 6)  # (rows, columns, merge, merge, C, patch, patch)
    return ordered.unsqueeze(5).expand(*[-1] * 5, frames, -1, -1).flatten(4).flatten(0, 3)


def tiling(size: tuple[int, int], side: int, most: int = TILES) -> tuple[int, int]:
    """Rows and columns of InternVL's tiles: the grid whose shape is nearest to the picture's; of grids of one shape the
    larger, unless the picture has not half its pixels.

    Args:
        size: (height, width) of the picture. side: of a tile, pixels. most: tiles.
    """
    height, width = size
    grids = [(r, c) for c in range(1, most + 1) for r in range(1, most + 1) if r * c <= most]
    best, nearest = (1, 1), float("inf")
    for rows, columns in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        if apart < nearest or (apart == nearest and 2 * height * width > side * side * rows * columns):
            best, nearest = (rows, columns), apart
    return best


def attended(heat: Tensor) -> Prior:
    """A map (rows, columns) of attention as a prior: a mask of its own size, of the cells that are, with their
    neighbours, above the middle of the map's range; an empty prior for a map without any difference."""
    smooth = F.avg_pool2d(heat[None, None].float(), 3, 1, 1, count_include_pad=False)[0, 0]
    low, high = smooth.aminmax()
    if not bool(torch.isfinite(smooth).all()) or float(high) <= float(low):
        return Prior(note="its attention is the same everywhere")
    return Prior(mask=Rle.encode(((smooth - low) / (high - low) > CUT).cpu().numpy()))
