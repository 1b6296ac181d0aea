"""Columns of a table that stays in a file, whose rows are read when a batch has them.

All columns of a split share which rows it has, so that these positions are held once.

Shape legend: N rows, K columns of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from heliotrope.data.columns import Column, Raw, Rows
from heliotrope.data.mapped import MappedArray, MappedRows

__all__ = ["Selection", "StoredColumn", "StoredNumbers", "StoredWords", "stored_rows"]


class Selection:
    """Which rows of a file a split has: their positions, [N]."""

    def __init__(self, positions: range | NDArray[np.int64]) -> None:
        self.positions = positions
        self._last: tuple[Rows, Selection] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self.positions,)

    def subset(self, rows: Rows) -> Selection:
        """Return these of the rows, in this order: for the same `rows` the same object."""
        # The columns of a table are asked for one subset in turn.
        if self._last is None or self._last[0] is not rows:
            if isinstance(rows, slice):
                found = self.positions[rows]
            elif isinstance(self.positions, range):
                found = self.positions.start + self.positions.step * rows
            else:
                found = self.positions[rows]
            self._last = rows, Selection(found)
        return self._last[1]


@dataclass(frozen=True, eq=False)
class StoredColumn(Column):
    """One column of an array in a file.

    Parameters
    ----------
    array
        All columns of its kind, [N of the file, K].
    index
        Which of them this is.
    selection
        The rows, the same object in all columns of a split.
    """

    array: MappedArray
    index: int
    selection: Selection

    def __len__(self) -> int:
        return len(self.selection.positions)

    def subset(self, rows: Rows) -> Self:
        return replace(self, selection=self.selection.subset(rows))

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield its cells in their order, some at once."""
        for block in MappedRows(self.array, self.selection.positions).blocks():
            yield block[:, self.index]


@dataclass(frozen=True, eq=False)
class StoredNumbers(StoredColumn):
    """Numbers of any type; NaN is a missing one."""


@dataclass(frozen=True, eq=False)
class StoredWords(StoredColumn):
    """Words of a small set, of which the file has the codes: int32, -1 is a missing one."""

    words: tuple[str, ...] = ()

    def counts(self) -> NDArray[np.int64]:
        """Return how often each of `words` occurs, [W]."""
        found = np.zeros(len(self.words), np.int64)
        for codes in self.blocks():
            found += np.bincount(codes[codes >= 0], minlength=len(found))
        return found


def stored_rows(raw: Raw, names: Sequence[str]) -> tuple[MappedRows, list[int]] | None:
    """Return the rows of a file that these columns are in, and which each is of a row's cells.

    None if one of them is in memory.
    """
    columns = [raw.columns[name] for name in names]
    stored = [column for column in columns if isinstance(column, StoredColumn)]
    if not stored or len(stored) < len(columns):
        return None
    first = stored[0]
    if any(column.array is not first.array for column in stored):
        return None
    rows = MappedRows(first.array, first.selection.positions)
    return rows, [column.index for column in stored]
