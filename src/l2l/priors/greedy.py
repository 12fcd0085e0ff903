"""Greedy decoding: what a model replies, and how probable the numbers in its reply were to it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l2l.priors.answers import Dialect, read
from l2l.priors.prior import Prior

TOKENS = 512  # of a reply
NUMBER = re.compile(r"(?:(?<=<loc_)|(?<![\w.]))\d+(?:\.\d+)?(?!\w)")  # not the 2 of "bbox_2d"
KEPT = (
    "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "no_repeat_ngram_size",
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """What a model wrote."""

    text: str
    confidence: float | None
    """Mean probability, in [0, 1], of the tokens with which it wrote numbers; `None` where it wrote none."""

    def prior(self, dialect: Dialect, size: tuple[int, int], seen: tuple[int, int]) -> Prior:
        """As a prior; sizes as for `answers.read`. All boxes have the confidence as their score: what a model says of
        its own sureness is nearly the same whatever it sees, but it still puts the boxes in order."""
        found = read(self.text, dialect, size, seen=seen)
        if not found.boxes or self.confidence is None:
            return found
        return dataclasses.replace(found, scores=(round(self.confidence, 4),) * len(found.boxes))


class Probabilities:
    """Notes the probability of each token that is chosen; a logits processor, since all scores of a long reply would
    take gigabytes."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []  # (B,) each

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (B, V) of the next token; returned as they are."""
        self.steps.append(scores.float().softmax(-1).amax(-1))
        return scores


def make_greedy(model: Any, *, ends: int | None = None) -> None:
    """Leave of a model's own settings for generating only which tokens begin and end a reply. Sampling goes, and the
    penalty on repetition: a coordinate may well be said twice.

    Args:
        ends: a further token that ends a reply.
    """
    from transformers import GenerationConfig

    kept = {name: getattr(model.generation_config, name, None) for name in KEPT}
    own = kept["eos_token_id"]
    ending = [*(own if isinstance(own, list) else [own] if own is not None else []), *([] if ends is None else [ends])]
    kept["eos_token_id"] = list(dict.fromkeys(ending))
    if kept["pad_token_id"] is None and ending:
        kept["pad_token_id"] = ending[0]
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, repetition_penalty=1.0, **kept)


def greedy(model: Any, tokenizer: Any, *, tokens: int, **inputs: Any) -> list[Reply]:
    """The most probable token, again and again, up to `tokens` of them.

    Args:
        model: one that `make_greedy` was given. inputs: of its `generate`, for B prompts.

    Returns:
        One reply per prompt.
    """
    noted = Probabilities()
    out = model.generate(**inputs, max_new_tokens=tokens, logits_processor=[noted])
    steps = len(noted.steps)
    chosen, chances = out[:, out.shape[1] - steps :].tolist(), torch.stack(noted.steps, 1).tolist()
    told = model.generation_config
    silent = {told.bos_token_id, told.pad_token_id}
    replies = []
    for row, sure in zip(chosen, chances, strict=True):
        end = next((at for at, one in enumerate(row) if one in told.eos_token_id), steps)
        said = [pair for pair in zip(row[:end], sure[:end], strict=True) if pair[0] not in silent]
        text = tokenizer.decode([one for one, _ in said], clean_up_tokenization_spaces=False)
        pieces = [tokenizer.decode([one], clean_up_tokenization_spaces=False) for one, _ in said]
        replies.append(Reply(text, confidence(pieces, [chance for _, chance in said])))
    return replies


def confidence(pieces: list[str], chances: list[float]) -> float | None:
    """Mean of the chances of those pieces of a text that belong to its numbers; `None` if it has none.

    Example:
        >>> confidence(["bbox_", "2", "d", ": ", "1", "7"], [1.0, 0.1, 1.0, 1.0, 0.5, 0.7])
        0.6
    """
    numbers = [one.span() for one in NUMBER.finditer("".join(pieces))]
    within, start = [], 0
    for piece, chance in zip(pieces, chances, strict=True):
        end = start + len(piece)
        if any(first < end and start < last for first, last in numbers):
            within.append(chance)
        start = end
    return sum(within) / len(within) if within else None
