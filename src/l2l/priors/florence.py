"""Florence-2: phrases of a caption are grounded, with tokens for places.

Xiao et al., "Florence-2", CVPR 2024; as transformers has it, an encoder of picture and words and a decoder. The picture
is encoded once for all its sentences.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from l2l.pretrained import IMAGENET, Pretrained, frame
from l2l.priors.answers import DIALECTS, instruction
from l2l.priors.greedy import TOKENS, greedy, make_greedy
from l2l.priors.prior import Prior

SIDE = 768  # pixels of the square that it sees
TASK, IN_WORDS = "<CAPTION_TO_PHRASE_GROUNDING>", "Locate the phrases in the caption: "  # what stands for the token
DIALECT = DIALECTS["florence-2"]


@dataclass
class Look:
    """What the model has seen of one picture."""

    size: tuple[int, int]
    """(height, width) of the picture; pixels."""
    features: Tensor
    """(N, D) of the picture's tokens."""


class Florence:
    """One Florence-2.

    Args:
        weights: which one.
        device: torch device. dtype: of weights and arithmetic.
        tokens: of a reply, at most.
    """

    def __init__(self, weights: Pretrained, *, device: str, dtype: torch.dtype, tokens: int = TOKENS):
        self.weights, self.device, self.dtype, self.tokens = weights, device, dtype, tokens

    @property
    def about(self) -> str:
        """What the answers depend on besides the weights."""
        return f"{DIALECT}\n{self._question('...')}\n{SIDE} {self.tokens} {self.dtype}"

    @cached_property
    def model(self) -> Any:
        """The model. Raises `InputError` if it cannot be loaded."""
        model = self.weights.load("Florence2ForConditionalGeneration", device=self.device, dtype=self.dtype)
        make_greedy(model)
        return model

    @staticmethod
    def _question(sentence: str) -> str:
        return instruction(DIALECT, sentence, (SIDE, SIDE)).replace(TASK, IN_WORDS)

    @torch.inference_mode()
    def look(self, picture: np.ndarray) -> Look:
        """See a picture, uint8 (H, W, 3) RGB."""
        values = frame(picture, (SIDE, SIDE), IMAGENET, device=self.device)[None].to(self.dtype)
        features = self.model.get_image_features(values).pooler_output[0]
        return Look((picture.shape[0], picture.shape[1]), features)

    @torch.inference_mode()
    def ask(self, look: Look, sentences: Sequence[str]) -> list[Prior]:
        """One prior per sentence."""
        config, tokenizer = self.model.config, self.weights.tokenizer
        text = config.text_config
        count = len(look.features)
        room = max(text.max_position_embeddings - count - 2, 0)
        rows = []
        for sentence in sentences:
            words = self.weights.ids(self._question(sentence))[:room]
            rows.append([config.image_token_id] * count + [tokenizer.bos_token_id, *words, tokenizer.eos_token_id])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [text.pad_token_id] * (longest - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        embedded = self.model.get_input_embeddings()(ids)  # (B, L, D)
        embedded[:, :count] = look.features
        encoded = self.model.model.language_model.encoder(inputs_embeds=embedded, attention_mask=mask)
        replies = greedy(self.model, tokenizer, tokens=self.tokens, encoder_outputs=encoded, attention_mask=mask)
        replies = [dataclasses.replace(reply, text=first_phrase(reply.text)) for reply in replies]
        return [reply.prior(DIALECT, look.size, (SIDE, SIDE)) for reply in replies]


def first_phrase(reply: str) -> str:
    """The first phrase of a reply that has boxes, and its boxes apart from each other.

    The model grounds every phrase of a sentence: of "the coat the person is wearing" the coat, then the person. The
    first is what the sentence is about. Several boxes of a phrase follow each other without a mark between, as the
    corners of a polygon do in other tasks.

    Example:
        >>> first_phrase("a coat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>a man<loc_9>...")
        'a coat<loc_1><loc_2><loc_3><loc_4>;<loc_5><loc_6><loc_7><loc_8>'
    """
    found = re.match(r"([^<]*(?:<(?!loc_)[^<]*)*)((?:<loc_\d+>)+)", reply)
    if found is None:
        return reply
    return found[1] + ";".join(re.findall(r"(?:<loc_\d+>){4}", found[2]))  # what is left over is no place
