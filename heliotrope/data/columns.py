"""One split as its source has it: named columns, nothing fitted, nothing a model could take yet.

`heliotrope.data.preparation` makes `Examples` of it. A source may leave the columns of the labels
out: then there is something to predict, and nothing to compare it with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from heliotrope.errors import DataError
from heliotrope.plugin_loading import install
from heliotrope.registry import Source

__all__ = [
    "Column",
    "Items",
    "Pieces",
    "Raw",
    "Rows",
    "Strings",
    "Texts",
    "Values",
    "item_array",
    "row_of",
]

Rows = slice | NDArray[np.int64]
"""Which examples: a slice, or positions."""


class Column(Protocol):
    """One column of N examples."""

    def __len__(self) -> int:
        """Return N."""

    def subset(self, rows: Rows) -> Self:
        """Return these examples, in this order."""


@dataclass(frozen=True, eq=False)
class Values(Column):
    """Numbers: [N, ...], such as pixels in bytes, class indices, or measurements.

    A missing measurement is NaN.
    """

    values: NDArray[Any]

    def __len__(self) -> int:
        return len(self.values)

    def subset(self, rows: Rows) -> Values:
        return Values(self.values[rows])


@dataclass(frozen=True, eq=False)
class Strings(Column):
    """Words of a small set, such as the values of a categorical column.

    Parameters
    ----------
    codes
        int32 [N]: positions in `words`; -1 is a missing one.
    words
        The different words.
    """

    codes: NDArray[np.int32]
    words: tuple[str, ...]

    @classmethod
    def of(cls, words: Sequence[str | None]) -> Strings:
        """Return the column of these words; None is missing."""
        known = sorted({word for word in words if word is not None})
        code_of: dict[str | None, int] = {word: code for code, word in enumerate(known)}
        code_of[None] = -1
        return cls(np.array([code_of[word] for word in words], dtype=np.int32), tuple(known))

    def __len__(self) -> int:
        return len(self.codes)

    def subset(self, rows: Rows) -> Strings:
        return Strings(self.codes[rows], self.words)

    def counts(self) -> NDArray[np.int64]:
        """Return how often each of `words` occurs, [W]."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.words))


@dataclass(frozen=True, eq=False)
class Texts(Column):
    """A text an example."""

    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, rows: Rows) -> Texts:
        if isinstance(rows, slice):
            return Texts(self.texts[rows])
        return Texts([self.texts[row] for row in rows.tolist()])


@dataclass(frozen=True, eq=False)
class Pieces(Column):
    """A piece of one long stream of characters an example.

    The stream goes on for at least one character after each piece, so that every character of a
    piece has a next one.

    Parameters
    ----------
    stream
        [T]: the characters' code points, of an unsigned type.
    starts, lengths
        int64 [N]: example n is ``stream[starts[n] : starts[n] + lengths[n]]``.
    """

    stream: NDArray[Any]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def subset(self, rows: Rows) -> Pieces:
        return Pieces(self.stream, self.starts[rows], self.lengths[rows])


@dataclass(frozen=True, eq=False)
class Items(Column):
    """The input of each item of a user's map-style dataset, read whenever it is asked for.

    Parameters
    ----------
    dataset
        Its items are (input, target).
    rows
        int64 [N]: which of its items.
    shape, dtype
        Of one input, as `item_array` gives it.
    source
        The plug-in that the dataset is of: another process must have it before the dataset.
    """

    dataset: Any
    rows: NDArray[np.int64]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    source: Source | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.dataset, self.rows, self.shape, self.dtype)
        if self.source is None:
            return Items, given
        # What is unpickled first makes the dataset's class known.
        return _items_of, (_Installing(self.source), *given)

    def subset(self, rows: Rows) -> Items:
        return replace(self, rows=self.rows[rows])

    def read(self, indices: Sequence[int]) -> NDArray[Any]:
        """Return the inputs at these indices, [B, *shape].

        Raises `DataError` naming an item that has another shape or type.
        """
        found = np.empty((len(indices), *self.shape), self.dtype)
        for index, row in enumerate(self.rows[list(indices)].tolist()):
            given = self.dataset[row][0]
            value = item_array(next(iter(given.values())) if isinstance(given, Mapping) else given)
            if value is None or value.size != found[0].size or value.dtype != self.dtype:
                got = "no array" if value is None else f"{value.dtype} {list(value.shape)}"
                raise DataError(
                    f"item {row} of {type(self.dataset).__name__}: its input is {got}, but "
                    f"{self.dtype} {list(self.shape)} when it was read first. Bring all to one "
                    "shape and type."
                )
            found[index] = value.reshape(self.shape)
        return found


@dataclass(frozen=True)
class _Installing:
    """Executes a plug-in where it is unpickled."""

    source: Source

    def __reduce__(self) -> tuple[Any, ...]:
        return _installed, (self.source,)


def _installed(source: Source) -> Source:
    install(source)
    return source


def _items_of(
    source: Source,
    dataset: Any,
    rows: NDArray[np.int64],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Items:
    return Items(dataset, rows, shape, dtype, source)


def item_array(value: Any) -> NDArray[Any] | None:
    """Return what an item has as an array, or None if it is no tensor, array or number.

    Floating-point numbers become float32; bytes of two or three dimensions, which are images, stay
    bytes, and other whole numbers become int64.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    elif not isinstance(value, np.ndarray | np.generic | bool | int | float):
        return None
    array: NDArray[Any] = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype == np.uint8 and array.ndim in (2, 3):
        return array
    return array.astype(np.int64) if array.dtype.kind in "biu" else None


@dataclass(frozen=True, eq=False)
class Raw:
    """The examples of one split, column by column.

    Parameters
    ----------
    columns
        By name, of one length.
    keys
        The natural group of each example, such as its hospital: [N], of any type that can be
        sorted. None if the data has no such groups.
    origin
        Where the examples come from, such as a file, for messages.
    numbers
        The row of each example there, counted from 1: [N]; None if they are all of its rows.
    files
        If the origin is several files: each, and its number of rows. `numbers` go on from one to
        the next.

    Raises
    ------
    ValueError
        If the lengths differ, or there is no column.
    """

    columns: Mapping[str, Column]
    keys: NDArray[Any] | None = None
    origin: str = "the data"
    numbers: NDArray[np.int64] | None = None
    files: tuple[tuple[Path, int], ...] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        lengths |= {} if self.keys is None else {"keys": len(self.keys)}
        lengths |= {} if self.numbers is None else {"numbers": len(self.numbers)}
        if not self.columns or len(set(lengths.values())) != 1:
            raise ValueError(f"the columns of a split must be of one length, not {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def subset(self, rows: Rows) -> Raw:
        """Return these examples, in this order."""
        columns = {name: column.subset(rows) for name, column in self.columns.items()}
        numbers = np.arange(1, len(self) + 1) if self.numbers is None else self.numbers
        keys = None if self.keys is None else self.keys[rows]
        return Raw(columns, keys, self.origin, numbers[rows], self.files)

    def parted(self, test: NDArray[np.bool_]) -> tuple[Raw, Raw]:
        """Return the examples to train on, and those that are in the test split: a mask [N]."""
        return self.subset(np.flatnonzero(~test)), self.subset(np.flatnonzero(test))

    def where(self, index: int) -> str:
        """Return the origin and the row of the example at `index`, for messages."""
        number = index + 1 if self.numbers is None else int(self.numbers[index])
        return row_of(self.origin, self.files, number)


def row_of(origin: object, files: Sequence[tuple[Path, int]], number: int) -> str:
    """Return what row `number` of `origin`, counted from 1, is called: its own number in a file."""
    for file, rows in files:
        if number <= rows:
            return f"{file}, row {number}"
        number -= rows
    return f"{origin}, row {number}"
