"""Categorical columns: words become small numbers; those that training has not seen share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw, Strings
from heliotrope.data.fields import Dense, Field, array_of, tensor_of
from heliotrope.data.info import MISSING, UNSEEN, Info
from heliotrope.data.mapped import Mapped
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.data.preparation.counts import (
    Counts,
    bucket,
    counted,
    in_order,
    indices_of,
    strings,
)
from heliotrope.data.stored import StoredWords, stored_rows

__all__ = ["Categories", "FittedCategories"]

_SPECIAL = 2  # numbers that stand for no word
_BUCKETS = 32  # of a column that is not fitted


@dataclass(frozen=True)
class Categories(Step):
    """Make the field `category` of columns of words: int64 [N, C].

    0 is a word that training has not seen, 1 a missing one, and the others follow in their order.
    Weights of both begin at 0 in our models, and stay so where the training rows have none.
    Not fitted, words are numbered by their hash (Weinberger et al. 2009), in 32 buckets.
    """

    columns: tuple[str, ...]

    # Clients need the same numbers for the same words.
    measured_for: ClassVar[tuple[Fit, ...]] = ("training", "per_client")

    @property
    def told(self) -> str:
        return f"counts of {{0.size:,}} values of {counted(len(self.columns))}"

    def measure(self, raw: Raw) -> Counts:
        return Counts(tuple(word_counts(words_of(raw, name)) for name in self.columns))

    def fitted(self, statistic: Counts | None) -> FittedCategories:
        if statistic is None:
            return FittedCategories(self.columns, ())
        words = tuple(in_order(column) for column in statistic.columns)
        return FittedCategories(self.columns, words)


@dataclass(frozen=True)
class FittedCategories(Fitted):
    """The words of each column, in the order of their numbers; none at all if they are hashed."""

    columns: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    kind: ClassVar[str] = "categories"

    def reads(self) -> Mapping[str, Kind]:
        return dict.fromkeys(self.columns, "word")

    def fields(self, raw: Raw) -> Mapping[str, Field]:
        columns = [words_of(raw, name) for name in self.columns]
        tables = tuple(
            np.array([*self._table(index, column.words), MISSING])  # code -1: the last
            for index, column in enumerate(columns)
        )
        stored = stored_rows(raw, self.columns)
        if stored is not None:
            rows, places = stored
            return {"category": Mapped(rows, _Numbered(tables, tuple(places)))}
        numbers = np.empty((len(raw), len(self.columns)), dtype=np.int64)
        for index, (name, table) in enumerate(zip(self.columns, tables, strict=True)):
            numbers[:, index] = table[strings(raw, name).codes]
        return {"category": Dense(numbers)}

    def describe(self, info: Info) -> Info:
        sizes = [_SPECIAL + len(words) for words in self.words] or [
            _SPECIAL + _BUCKETS for _ in self.columns
        ]
        return replace(info, categories=dict(zip(self.columns, sizes, strict=True)))

    def _table(self, index: int, words: tuple[str, ...]) -> list[int]:
        """Return the number of each of `words` in the column at `index`."""
        if not self.words:
            return [_SPECIAL + bucket(word, _BUCKETS) for word in words]
        found = indices_of(words, self.words[index])
        return [UNSEEN if number < 0 else _SPECIAL + number for number in found]


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Numbers the words of rows that are read from a file.

    `tables` have the number of each code of a column, and last that of a missing word; `places`
    say which cell of a row is the column.
    """

    tables: tuple[NDArray[np.int64], ...]
    places: tuple[int, ...]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return int64 [B, C] of codes, int32 [B, cells]."""
        codes = array_of(rows)
        pairs = zip(self.tables, self.places, strict=True)
        return tensor_of(np.stack([table[codes[:, place]] for table, place in pairs], axis=1))


def words_of(raw: Raw, name: str) -> Strings | StoredWords:
    """Return a column of words, also one in a file; raises `DataError` if it holds others."""
    column = raw.columns[name]
    return column if isinstance(column, StoredWords) else strings(raw, name)


def word_counts(column: Strings | StoredWords) -> Counter[str]:
    """Return how often each word occurs; missing ones are left out."""
    counts = column.counts().tolist()
    pairs = zip(column.words, counts, strict=True)
    return Counter({word: count for word, count in pairs if count})
