from __future__ import annotations

import doctest

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from l2l.model import text
from l2l.model.text import PAD, UNKNOWN, CompactText, Vocabulary, words_of

sentences = st.lists(st.text(max_size=20), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The man, on the LEFT.", ["the", "man", "on", "the", "left"]),
        ("person's t-shirt", ["person's", "t-shirt"]),
        ("person\u2019s", ["person's"]),
        ("'quoted' -dash-", ["quoted", "dash"]),
        ("no_underscores", ["no", "underscores"]),
        ("caf\u00e9 \u732b #3", ["caf\u00e9", "\u732b", "3"]),
        ("", []),
        ("?!  ...", []),
    ],
)
def test_words(sentence: str, words: list[str]) -> None:
    assert words_of(sentence) == words


def test_examples() -> None:
    assert doctest.testmod(text).failed == 0


@given(st.text())
def test_words_are_stable(sentence: str) -> None:
    words = words_of(sentence)
    assert all(word and not any(letter.isspace() for letter in word) for word in words)
    assert words_of(" ".join(words)) == words


def test_a_vocabulary_keeps_what_is_frequent_in_one_order() -> None:
    lines = ["red cup", "the red cup", "the CUP", "blue pot"]
    assert Vocabulary.build(lines).words == ("cup", "red", "the")
    assert Vocabulary.build(reversed(lines)) == Vocabulary.build(lines)
    assert Vocabulary.build(lines, least=1).words == ("blue", "cup", "pot", "red", "the")
    assert len(Vocabulary.build(lines)) == 5


def test_encoding_cuts_and_pads() -> None:
    vocabulary = Vocabulary(("cup", "red", "the"))
    tokens = vocabulary.encode(["the red cup", "cup", "a red thing in the cup", "!"], 4)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [
        [4, 3, 2, PAD], [2, PAD, PAD, PAD], [UNKNOWN, 3, UNKNOWN, UNKNOWN], [UNKNOWN, PAD, PAD, PAD],
    ]  # fmt: skip


@given(sentences, st.integers(1, 6))
def test_every_encoding_has_a_word_and_fits(lines: list[str], length: int) -> None:
    vocabulary = Vocabulary.build(lines, least=1)
    tokens = vocabulary.encode(lines, length)
    assert tokens.shape == (len(lines), length)
    assert (tokens[:, 0] != PAD).all() and int(tokens.max()) < len(vocabulary)
    for row, line in zip(tokens.tolist(), lines, strict=True):
        words = words_of(line)[:length]
        assert [vocabulary.words[one - 2] for one in row if one > UNKNOWN] == words
        assert row[max(1, len(words)) :] == [PAD] * (length - max(1, len(words)))


def encoder(*, depth: int = 2, unknown_rate: float = 0.05) -> CompactText:
    torch.manual_seed(0)
    return CompactText(vocabulary_size=20, width=8, length=9, depth=depth, unknown_rate=unknown_rate)


TOKENS = torch.tensor([[3, 4, 5, 6], [7, 8, PAD, PAD]])


def test_padding_changes_nothing() -> None:
    made = encoder().eval()
    words, real = made(TOKENS)
    more, still = made(F.pad(TOKENS, (0, 5), value=PAD))
    assert torch.equal(real, TOKENS != PAD) and torch.equal(still[:, :4], real) and not still[:, 4:].any()
    assert torch.allclose(words[real], more[:, :4][real], atol=1e-5)
    assert words.isfinite().all() and more.isfinite().all()


def test_context_and_order_count() -> None:
    made = encoder().eval()
    words = made(TOKENS)[0]
    changed, swapped = TOKENS.clone(), TOKENS.clone()
    changed[0, 3], swapped[0, :2] = 9, torch.tensor([4, 3])
    assert not torch.allclose(made(changed)[0][0, 0], words[0, 0], atol=1e-4)
    assert not torch.allclose(made(swapped)[0][0, 2], words[0, 2], atol=1e-5)
    assert torch.allclose(made(changed)[0][1], words[1], atol=1e-6)  # the other sentence hears nothing of it


def test_words_are_lost_in_training_only() -> None:
    made, blank = encoder(depth=0, unknown_rate=1.0), torch.where(TOKENS == PAD, PAD, UNKNOWN)
    real = TOKENS != PAD
    made.eval()
    kept, lost = made(TOKENS)[0], made(blank)[0]
    assert not torch.allclose(kept[real], lost[real], atol=1e-3)
    made.train()
    words, still = made(TOKENS)
    assert torch.equal(still, real)  # padding is not a word, so it cannot be lost
    assert torch.allclose(words[real], lost[real])


def test_the_share_of_lost_words() -> None:
    made = encoder(depth=0, unknown_rate=0.05).train()
    same = made(torch.full((4000, 5), 7))[0]
    share = float((same != made.eval()(torch.full((1, 5), 7))[0]).any(-1).float().mean())
    assert 0.04 < share < 0.06
