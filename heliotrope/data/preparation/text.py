"""Texts: words or characters become numbers, by a vocabulary of the training rows alone."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from heliotrope.config.data import Fit
from heliotrope.data.columns import Pieces, Raw, Texts
from heliotrope.data.fields import Field
from heliotrope.data.info import SPECIAL_TOKENS, UNKNOWN, Info
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.data.preparation.counts import Counts, bucket
from heliotrope.data.windows import Ragged, Windows
from heliotrope.errors import DataError

__all__ = ["Characters", "FittedCharacters", "FittedWords", "Words", "words_of"]

_WORD = re.compile(r"\w+|[^\w\s]")
_JOINERS = "\u200c\u200d"  # inside words of Persian and of Indic scripts
_OF_MARKS = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))  # code points; none lie elsewhere
_ALPHABET = tuple(sorted(string.printable))  # of characters that are not fitted


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, and each sign of punctuation as one.

    Letters are composed (Unicode's NFC), and combining marks belong to the letter before them: so
    a word is the same however its accents are written, and those of Indic scripts stay whole.
    """
    if text.isascii():
        return _WORD.findall(text.lower())
    return _word_with_marks().findall(unicodedata.normalize("NFC", text.lower()))


@cache
def _word_with_marks() -> re.Pattern[str]:
    """Return what matches words of any script: for Python alone, a mark ends a word."""
    points = (chr(point) for points in _OF_MARKS for point in points)
    marks = "".join(c for c in points if unicodedata.category(c).startswith("M")) + _JOINERS
    return re.compile(rf"\w[\w{marks}]*|[^\w\s][{marks}]*")


@dataclass(frozen=True)
class Words(Step):
    """Make the field `tokens` of a column of texts: `Ragged` int32, a token a word.

    Not fitted, words are numbered by their hash (Weinberger et al. 2009), in `vocabulary` buckets.

    Parameters
    ----------
    vocabulary
        How many words are known: the most frequent of the training rows. The others are `UNKNOWN`.
        Where all of the training rows' words are known, none is `UNKNOWN`: its vector is not
        trained, and stays zeros, as our models begin it.
    most
        Words of a text that are read, from its beginning; None: all.
    """

    vocabulary: int
    most: int | None = None
    column: str = "text"

    # Clients need the same numbers for the same words.
    measured_for: ClassVar[tuple[Fit, ...]] = ("training", "per_client")

    @property
    def told(self) -> str:
        return "counts of {0.size:,} words"

    def measure(self, raw: Raw) -> Counts:
        counts: Counter[str] = Counter()
        for text in _texts(raw, self.column):
            counts.update(words_of(text)[: self.most])
        return Counts((counts,))

    def fitted(self, statistic: Counts | None) -> FittedWords:
        if statistic is None:
            return FittedWords(self.column, self.most, (), self.vocabulary)
        return FittedWords(self.column, self.most, statistic.frequent(self.vocabulary), 0)


@dataclass(frozen=True)
class FittedWords(Fitted):
    """The known words in the order of their numbers, or the number of buckets of their hashes."""

    column: str
    most: int | None
    words: tuple[str, ...]
    buckets: int

    kind: ClassVar[str] = "words"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "text"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        known = {word: len(SPECIAL_TOKENS) + number for number, word in enumerate(self.words)}
        tokens: list[int] = []
        offsets = np.zeros(len(raw) + 1, dtype=np.int64)
        for row, text in enumerate(_texts(raw, self.column)):
            words = words_of(text)[: self.most]
            if not words:
                raise DataError(
                    f"{raw.where(row)}: the {self.column} has no words. Remove the row."
                )
            if self.buckets:
                tokens += [len(SPECIAL_TOKENS) + bucket(word, self.buckets) for word in words]
            else:
                tokens += [known.get(word, UNKNOWN) for word in words]
            offsets[row + 1] = len(tokens)
        return {"tokens": Ragged(np.array(tokens, dtype=np.int32), offsets)}

    def describe(self, info: Info) -> Info:
        words = self.words or tuple(f"<bucket {number}>" for number in range(self.buckets))
        return replace(info, vocabulary=(*SPECIAL_TOKENS, *words))


@dataclass(frozen=True)
class Characters(Step):
    """Make the fields `tokens` and `next` of a column of `Pieces`: a token a character.

    `next` holds, for each token, the one that follows it. Not fitted, the characters are those
    that ASCII can print.
    """

    column: str = "text"

    measured_for: ClassVar[tuple[Fit, ...]] = ("training", "per_client")

    @property
    def told(self) -> str:
        return "counts of {0.size:,} characters"

    def measure(self, raw: Raw) -> Counts:
        pieces = _pieces(raw, self.column)
        counts: Counter[str] = Counter()
        for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True):
            counts.update(map(chr, pieces.stream[start : start + length + 1].tolist()))
        return Counts((counts,))

    def fitted(self, statistic: Counts | None) -> FittedCharacters:
        known = _ALPHABET if statistic is None else tuple(sorted(statistic.columns[0]))
        return FittedCharacters(self.column, known)


@dataclass(frozen=True)
class FittedCharacters(Fitted):
    """The known characters in the order of their numbers."""

    column: str
    characters: tuple[str, ...]

    kind: ClassVar[str] = "characters"

    def reads(self) -> Mapping[str, Kind]:
        return {self.column: "stream"}

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        pieces = _pieces(raw, self.column)
        tokens = self.numbers(pieces.stream)
        lengths = pieces.lengths
        return {
            "tokens": Windows(tokens, pieces.starts, lengths),
            "next": Windows(tokens, pieces.starts + 1, lengths),
        }

    def numbers(self, stream: NDArray[Any]) -> NDArray[np.int32]:
        """Return the token of each code point, int32 [T]."""
        table = np.full(int(stream.max(initial=0)) + 1, UNKNOWN, dtype=np.int32)
        for number, character in enumerate(self.characters, start=len(SPECIAL_TOKENS)):
            if ord(character) < len(table):
                table[ord(character)] = number
        tokens: NDArray[np.int32] = table[stream]
        return tokens

    def describe(self, info: Info) -> Info:
        return replace(info, vocabulary=(*SPECIAL_TOKENS, *self.characters))


def _texts(raw: Raw, name: str) -> list[str]:
    found = raw.columns[name]
    if not isinstance(found, Texts):
        raise DataError(f"{raw.origin}: the column {name} must hold texts, as in training.")
    return list(found.texts)


def _pieces(raw: Raw, name: str) -> Pieces:
    found = raw.columns[name]
    if not isinstance(found, Pieces):
        raise DataError(f"{raw.origin}: the column {name} must hold one long text, as in training.")
    return found
