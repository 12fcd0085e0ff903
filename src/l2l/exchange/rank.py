"""Which labels to trust, which to look at, and which pairs to label next.

**Trust**: masks that the model expects to be good (IoU of `trust` or more), best first. An empty mask is never trusted:
most sentences mean something.

**Label next**: the pairs from which the most is to be expected. To label one teaches most where the model is likely
wrong, and more if it is likely wrong on many pairs like it. So, with u = 1 - expected IoU and sim the cosine of two
sentences' words (tf-idf, single words and pairs of them),

    gain(i) = u(i) * sum over j of sim(i, j) * u(j)

the information density of Settles & Craven (2008, https://aclanthology.org/D08-1112), counting neighbours by how much
is still to be learnt from them. The pairs are chosen one by one. After each, what it teaches is taken off its
neighbours, u(j) *= 1 - sim(i, j), so a second sentence of the kind is worth less; and no picture has its second pair
before each picture had its first, since labels in one picture teach less than labels in two. Uncertainty alone would
choose the odd ones out, and the same odd thing over and over.

**Look**: the rest. Where it is even whether a mask is good, a glance decides most: nearest to 0.5 first.

No randomness: the same labels give the same lists; of equals the first in the file comes first.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from l2l.data.durable import write_whole
from l2l.errors import InputError
from l2l.exchange.labels import Label

Action = Literal["label next", "look", "trust"]
COLUMNS = ("id", "image", "sentence", "score", "action", "rank")


@dataclass(frozen=True, slots=True)
class Ranked:
    """One pair in one of the lists."""

    label: Label
    action: Action
    rank: int
    """Its place in its list, from 1."""


def rank(labels: Sequence[Label], *, next: int = 40, trust: float = 0.8) -> list[Ranked]:
    """Every pair in one of three lists: label next, look, trust, in this order.

    Args:
        labels: all pairs.
        next: how many pairs are to be labelled; fewer if the others are trusted.
        trust: expected IoU from which a mask is trusted, in [0, 1].

    Raises:
        InputError: for a `next` below 0 or a `trust` outside [0, 1].
    """
    if next < 0 or not 0 <= trust <= 1:
        raise InputError(f"next is 0 or more and trust lies in [0, 1], not {next} and {trust:g}")
    trusted = [place for place, one in enumerate(labels) if one.score >= trust and one.mask.area()]
    trusted.sort(key=lambda place: -labels[place].score)
    known = set(trusted)
    chosen = choose(labels, [place for place in range(len(labels)) if place not in known], next)
    known.update(chosen)
    look = [place for place in range(len(labels)) if place not in known]
    look.sort(key=lambda place: abs(labels[place].score - 0.5))
    lists: tuple[tuple[Action, list[int]], ...] = (("label next", chosen), ("look", look), ("trust", trusted))
    return [Ranked(labels[place], action, turn) for action, one in lists for turn, place in enumerate(one, start=1)]


def choose(labels: Sequence[Label], among: Sequence[int], count: int) -> list[int]:
    """The places of the pairs to label next, best first; see the module.

    Args:
        labels: all pairs, N; those not in `among` count as neighbours all the same.
        among: which may be chosen.
        count: how many at most.
    """
    words = _Words([one.sentence for one in labels])
    unsure = np.array([1 - one.score for one in labels])  # (N,), less after each choice
    images = {name: number for number, name in enumerate(dict.fromkeys(one.file_name for one in labels))}
    image = np.array([images[one.file_name] for one in labels], dtype=np.int64)
    turns = np.zeros(len(images), np.int64)  # pairs chosen from each picture
    open_ = np.zeros(len(labels), bool)
    open_[list(among)] = True
    chosen: list[int] = []
    while len(chosen) < count and open_.any():
        gain = np.round(unsure * words.neighbours(unsure), 9)  # sums differ in the last digits from machine to machine
        turn = turns[image]
        allowed = open_ & (turn == turn[open_].min())
        best = int(np.argmax(np.where(allowed, gain, -1.0)))
        chosen.append(best)
        open_[best] = False
        turns[image[best]] += 1
        unsure *= 1 - words.similar(best)
    return chosen


class _Words:
    """tf-idf vectors of length 1 of N sentences, sparse, by rows."""

    def __init__(self, sentences: Sequence[str]):
        counts = [_terms(sentence) for sentence in sentences]
        many = Counter(term for one in counts for term in one)
        number = {term: place for place, term in enumerate(many)}
        rows = np.array([row for row, one in enumerate(counts) for _ in one], np.int64)
        self.columns = np.array([number[term] for one in counts for term in one], np.int64)
        rarity = np.log((1 + len(sentences)) / (1 + np.array(list(many.values()), np.float64))) + 1
        weight = np.array([times for one in counts for times in one.values()], np.float64) * rarity[self.columns]
        length = np.sqrt(np.bincount(rows, weight**2, len(sentences)))
        self.rows, self.values, self.shape = rows, weight / length[rows], (len(sentences), len(many))

    def neighbours(self, weight: np.ndarray) -> np.ndarray:
        """Sum over j of sim(i, j) * weight(j), (N,): through the sum of the vectors, not pair by pair."""
        total = np.bincount(self.columns, self.values * weight[self.rows], self.shape[1])
        return np.bincount(self.rows, self.values * total[self.columns], self.shape[0])

    def similar(self, row: int) -> np.ndarray:
        """sim(row, j) of all j, (N,) in [0, 1]."""
        dense = np.zeros(self.shape[1])
        own = self.rows == row
        dense[self.columns[own]] = self.values[own]
        return np.bincount(self.rows, self.values * dense[self.columns], self.shape[0]).clip(0, 1)


def _terms(sentence: str) -> Counter[str]:
    """Words and pairs of neighbouring words; of a sentence without any, the sentence itself."""
    words = re.findall(r"\w+", sentence.casefold())
    pairs = [f"{one} {two}" for one, two in zip(words, words[1:], strict=False)]
    return Counter([*words, *pairs] or [sentence])


def shown(image: str) -> str:
    """Where a picture is, as seen from the working folder if it is in there; else as it is named."""
    path, here = Path(image), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else image


def write_ranking(ranked: Sequence[Ranked], out: Path) -> None:
    """Write `id, image, sentence, score, action, rank` as CSV (UTF-8, quoted as RFC 4180 has it)."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\r\n")
    table.writerow(COLUMNS)
    for one in ranked:
        table.writerow([one.label.id, one.label.image, one.label.sentence, one.label.score, one.action, one.rank])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text.getvalue().encode())
