"""Pretrained text encoders of Hugging Face transformers (BERT, CLIP's text model, sentence encoders) and their words.

The pool keeps int64 tokens with 0 for padding everywhere, and a tokenizer has an id 0 of its own: its id i is token
i + 1 here, and the encoder shifts it back. What is padding is known from the sentence's length, never from an id:
CLIP pads with the very id that ends a sentence. Special tokens ([CLS], [SEP] and their kin) are tokens like others: the
pixels may look at them, and they count towards `data.words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2l.config import Config
from l2l.errors import InputError
from l2l.model.pretrained import TEXT, build_encoder, pretrained_part, source, text_config
from l2l.model.text import PAD, Vocabulary

FAMILIES = ("bert", "clip", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
FROM_PADDING = ("mpnet", "roberta", "xlm-roberta")  # their positions are counted from the padding's id


@dataclass(frozen=True)
class SubwordVocabulary(Vocabulary):
    """A pretrained tokenizer; `words` are its tokens, in the order of their ids."""

    tokenizer: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def read(cls, where: str) -> SubwordVocabulary:
        """From a name on the Hugging Face Hub or a folder. Raises `InputError` if there is no tokenizer."""
        tokenizer = pretrained_part(TEXT, where).tokenizer
        return cls(tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))), tokenizer)

    def __len__(self) -> int:
        return len(self.words) + 1

    def encode(self, sentences: Sequence[str], length: int) -> Tensor:
        """Tokens (B, length), int64, cut and padded; the special tokens at both ends stay.

        Raises:
            InputError: if `length` leaves no room for a word.
        """
        added = self.tokenizer.num_special_tokens_to_add()
        if length <= added:
            raise InputError(f"data.words={length} leaves no room for words beside {added} special tokens")
        tokens = torch.full((len(sentences), length), PAD, dtype=torch.int64)
        if not sentences:
            return tokens
        for row, ids in enumerate(self.tokenizer(list(sentences), truncation=True, max_length=length)["input_ids"]):
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
        return tokens

    def tokens_of(self, words: Iterable[str]) -> list[int]:
        """Tokens that are one of these words, at the beginning of a sentence or inside."""
        found = set()
        for word in words:
            for ids in self.tokenizer([word, f"of {word}"], add_special_tokens=False)["input_ids"]:
                found |= {one + 1 for one in ids if self.tokenizer.decode([one]).strip().lower() == word}
        return sorted(found)

    @property
    def special(self) -> list[int]:
        """Tokens that stand for no word, unknown ones included."""
        return sorted(one + 1 for one in self.tokenizer.all_special_ids)

    @property
    def unknown(self) -> int:
        """The mask, which such models know; `PAD` where there is none: such a word is left out."""
        mask = self.tokenizer.mask_token_id
        return PAD if mask is None else mask + 1


def vocabulary_of(config: Config, about: Mapping[str, Any], run: Path | str) -> Vocabulary:
    """The vocabulary that a run was trained with.

    Args:
        config, about: the run's, as `load_run` gives them. run: its folder.

    Raises:
        InputError: if the run has a tokenizer and its files are not there.
    """
    if config.model.text:
        return SubwordVocabulary.read(source(config.model.text, TEXT, Path(run)))
    return Vocabulary(tuple(about["vocabulary"]))


class PretrainedText(nn.Module):
    """A pretrained text encoder; its words are projected to the width that the fusion expects.

    Args:
        model: transformers' own. width: channels of a word.
    """

    def __init__(self, model: nn.Module, *, width: int):
        super().__init__()
        self.model = model
        self.padding = model.config.pad_token_id or 0
        self.project, self.norm = nn.Linear(model.config.hidden_size, width), nn.LayerNorm(width)

    def pretrained(self) -> list[nn.Parameter]:
        """The parameters that were read; the projection is new."""
        return list(self.model.parameters())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L) int64 -> word features (B, L, D) and the boolean mask (B, L) that is true on real tokens."""
        real = tokens != PAD
        ids = torch.where(real, tokens - 1, self.padding)
        seen = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        return self.norm(self.project(seen)), real


def read_text(
    where: str, vocabulary: Vocabulary, *, width: int, length: int, weights: bool = True,
    attn_implementation: str | None = None,
) -> PretrainedText:
    """A text encoder from a name on the Hugging Face Hub or a folder.

    Args:
        vocabulary: made from the same tokenizer. width: channels of a word. length: longest sentence in tokens.
        weights: read them, too; otherwise they are random, to be loaded from a run's checkpoint.
        attn_implementation: as transformers knows it; its own choice if not given.

    Raises:
        InputError: if transformers is missing, the model cannot be read, it is none that is known here, it reads no
            sentence of that length, or its tokenizer is another's.
    """
    found = pretrained_part(TEXT, where)
    config = text_config(found)
    family = config.model_type.removesuffix("_text_model")
    if family not in FAMILIES:
        raise InputError(f"model.text={where} is a model of type {family}; there are {', '.join(FAMILIES)}")
    most = config.max_position_embeddings - (config.pad_token_id + 1 if family in FROM_PADDING else 0)
    if length > most:
        raise InputError(f"data.words={length}: model.text={where} reads at most {most} tokens")
    if len(vocabulary) - 1 > config.vocab_size:
        raise InputError(f"model.text={where}: the tokenizer has {len(vocabulary) - 1} tokens, the model knows fewer")
    model = build_encoder(found, config, weights=weights, attn_implementation=attn_implementation, spare=("pooler.",))
    if hasattr(model, "pooler"):
        model.pooler = None  # one vector for the sentence, which nobody reads
    return PretrainedText(model, width=width)
