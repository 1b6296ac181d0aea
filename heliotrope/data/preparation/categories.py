"""Categorical columns: words become small numbers; those that training has not seen share one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from heliotrope.config.data import Fit
from heliotrope.data.columns import Raw, Strings
from heliotrope.data.fields import Dense, Field
from heliotrope.data.info import MISSING, UNSEEN, Info
from heliotrope.data.preparation.base import Fitted, Kind, Step
from heliotrope.data.preparation.counts import (
    Counts,
    bucket,
    counted,
    in_order,
    indices_of,
    strings,
)

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
        return Counts(tuple(word_counts(strings(raw, name)) for name in self.columns))

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
        numbers = np.empty((len(raw), len(self.columns)), dtype=np.int64)
        for index, name in enumerate(self.columns):
            column = strings(raw, name)
            table = self._table(index, column.words)
            numbers[:, index] = np.array([*table, MISSING])[column.codes]  # code -1: the last
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


def word_counts(column: Strings) -> Counter[str]:
    """Return how often each word occurs; missing ones are left out."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.words)).tolist()
    pairs = zip(column.words, counts, strict=True)
    return Counter({word: count for word, count in pairs if count})
