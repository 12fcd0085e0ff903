"""Words: the vocabulary of a data set and the compact text encoder that trains from scratch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l.model.attention import TransformerLayer
from l2l.model.rows import ByRow

PAD, UNKNOWN = 0, 1
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def words_of(sentence: str) -> list[str]:
    """Lower-case words of a sentence; punctuation goes, apostrophes and hyphens inside a word stay.

    Example:
        >>> words_of("The person's T-shirt!")
        ['the', "person's", 't-shirt']
    """
    return [word.replace("\u2019", "'") for word in _WORD.findall(sentence.lower())]


@dataclass(frozen=True)
class Vocabulary:
    """Word -> id; 0 is padding, 1 is any word not seen often enough."""

    words: tuple[str, ...]

    @classmethod
    def build(cls, sentences: Iterable[str], *, least: int = 2) -> Vocabulary:
        """All words that occur at least `least` times, in alphabetical order."""
        counts = Counter(word for sentence in sentences for word in words_of(sentence))
        return cls(tuple(sorted(word for word, count in counts.items() if count >= least)))

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, sentences: Sequence[str], length: int) -> Tensor:
        """Ids (B, length), int64, cut and padded. A sentence without a single word becomes one unknown word."""
        index = {word: position + 2 for position, word in enumerate(self.words)}
        tokens = torch.full((len(sentences), length), PAD, dtype=torch.int64)
        for row, sentence in enumerate(sentences):
            ids = [index.get(word, UNKNOWN) for word in words_of(sentence)][:length] or [UNKNOWN]
            tokens[row, : len(ids)] = torch.tensor(ids)
        return tokens

    def tokens_of(self, words: Iterable[str]) -> list[int]:
        """Ids of those of the words that are known, in order."""
        given = set(words)
        return [place + 2 for place, word in enumerate(self.words) if word in given]

    @property
    def special(self) -> list[int]:
        """Ids that stand for no word and that nobody may drop; none here."""
        return []

    @property
    def unknown(self) -> int:
        """What stands for a word that is lost."""
        return UNKNOWN


def trimmed(tokens: Tensor) -> Tensor:
    """Tokens (B, L) as far as the longest sentence goes: no work for padding that nobody needs."""
    return tokens[:, : max(1, int((tokens != PAD).sum(1).max()))]


class CompactText(ByRow, nn.Module):
    """Word embeddings and a small pre-norm transformer.

    Args:
        vocabulary_size: number of ids.
        width: channels of a word.
        length: longest sentence in words.
        depth: transformer layers.
        unknown_rate: share of words replaced by the unknown word in training, so that it means something at test time.
    """

    def __init__(self, *, vocabulary_size: int, width: int, length: int, depth: int = 2, unknown_rate: float = 0.05):
        super().__init__()
        self.unknown_rate = unknown_rate
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.position = nn.Parameter(torch.zeros(1, length, width))
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.position, std=0.1)
        self.layers = nn.ModuleList(TransformerLayer(width, dropout=0.1) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (B, L) int64 -> word features (B, L, C) and the boolean mask (B, L) that is true on real words."""
        real = tokens != PAD
        if self.training and self.unknown_rate:
            length = tokens.shape[1]
            chance = self.drawn(lambda count: torch.rand(count, length, device=tokens.device), len(tokens))
            lost = chance < self.unknown_rate
            tokens = torch.where(lost & real, UNKNOWN, tokens)
        words = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        for layer in self.layers:
            words = layer(words, real)
        return self.norm(words), real
