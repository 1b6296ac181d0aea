"""How often words occur: counts that add, from which vocabularies and categories are made."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heliotrope.data.columns import Raw, Strings
from heliotrope.errors import DataError

__all__ = ["Counts", "bucket", "counted", "in_order", "indices_of", "strings"]

_WHOLE = re.compile(r"([+-]?\d{1,18})(\.0*)?")


@dataclass(frozen=True)
class Counts:
    """Of each of some columns, how often each word occurs."""

    columns: tuple[Counter[str], ...]

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(self.columns, other.columns, strict=True)
        return Counts(tuple(a + b for a, b in pairs))

    @property
    def size(self) -> int:
        """Number of different words, all columns together."""
        return sum(len(column) for column in self.columns)

    def frequent(self, most: int | None) -> tuple[str, ...]:
        """Return the first column's most frequent words, all if `most` is None."""
        (column,) = self.columns
        return tuple(sorted(column, key=lambda word: (-column[word], word))[:most])

    def to_bytes(self) -> bytes:
        """Return the message that tells a server these counts.

        Of each column the number of words (4 bytes), and of each word its length in UTF-8 (4), its
        letters and its count (8). A lone surrogate, which JSON may hold, is told as such.
        """
        parts = []
        for column in self.columns:
            parts.append(len(column).to_bytes(4, "little"))
            for word in sorted(column):
                letters = _letters(word)
                parts += [
                    len(letters).to_bytes(4, "little"),
                    letters,
                    column[word].to_bytes(8, "little"),
                ]
        return b"".join(parts)


def bucket(word: str, buckets: int) -> int:
    """Return the number of a word that is hashed, 0 to `buckets` - 1."""
    return zlib.crc32(_letters(word)) % buckets


def counted(columns: int) -> str:
    """Return "1 column", "2 columns" and so on."""
    return f"{columns:,} column{'' if columns == 1 else 's'}"


def in_order(words: Iterable[str]) -> tuple[str, ...]:
    """Return words sorted: by value if all are whole numbers, else by their letters."""
    listed = list(words)
    try:
        return tuple(sorted(listed, key=lambda word: (int(word), word)))
    except ValueError:
        return tuple(sorted(listed))


def indices_of(words: Iterable[str], known: Sequence[str]) -> list[int]:
    """Return the index of each of `words` among the known ones, -1 if it is not there.

    Another kind of file, or a column that has got a missing cell, writes true as True and 1 as
    1.0: a word that is not there stands for the first known one of the same value.
    """
    exact = {word: index for index, word in enumerate(known)}
    alike: dict[str, int] = {}
    for word, index in exact.items():
        alike.setdefault(_value(word), index)
    return [exact.get(word, alike.get(_value(word), -1)) for word in words]


def _value(word: str) -> str:
    """Return a word as it is, but whole numbers and truth values in one way of writing."""
    if number := _WHOLE.fullmatch(word):
        return str(int(number[1]))
    return word.lower() if word.lower() in ("true", "false") else word


def strings(raw: Raw, name: str) -> Strings:
    """Return a column of words; raises `DataError` if it holds anything else."""
    found = raw.columns[name]
    if not isinstance(found, Strings):
        raise DataError(f"{raw.origin}: the column {name} must hold words, as in training.")
    return found


def _letters(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")
