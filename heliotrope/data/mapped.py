"""Arrays that stay in their files: rows are read when a batch has them, and nothing else is.

Each process maps a file by itself, so that what is passed between processes is its path. Pages of a
mapped file belong to the operating system's cache, which gives them back when memory is needed.

Shape legend: N rows, B examples in a batch, A clients in a stack.
"""

from __future__ import annotations

import math
import mmap
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.data.columns import Column, Rows
from heliotrope.data.fields import Batch, Field, tensor_of
from heliotrope.data.fields import Rows as FieldRows
from heliotrope.errors import DataError

__all__ = ["Constant", "Mapped", "MappedArray", "MappedRows"]

_BLOCK_BYTES = 1 << 24  # that are read at once where all rows are

_LINUX = sys.platform == "linux"

_Positions = range | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MappedArray:
    """An array in a file, or the overlapping windows of one that are its rows.

    Parameters
    ----------
    path
        The file.
    dtype, shape
        Of the array.
    offset
        Bytes in the file before its first value.
    strides
        Bytes from one row, and one value of a row, to the next; None if rows follow each other.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0
    strides: tuple[int, ...] | None = None
    _waited: list[bool] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def npy(cls, path: Path) -> MappedArray:
        """Return the array of an .npy file.

        Raises `DataError` if the file cannot be read, is cut off, or holds objects or an order of
        bytes or axes that cannot be mapped.
        """
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} cannot be read as an .npy file of one array: {error}. It is damaged, cut "
                "off or of another kind; put a whole one in its place."
            ) from error
        if not isinstance(found, np.memmap) or not found.flags.c_contiguous:
            raise DataError(f"{path}: the array is not stored row by row. Save it in C order.")
        if not found.dtype.isnative:
            raise DataError(
                f"{path} holds {found.dtype.str}, in the byte order of another machine. Convert it."
            )
        return cls(path, found.dtype, found.shape, found.offset)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArray, (self.path, self.dtype, self.shape, self.offset, self.strides)

    @cached_property
    def _mapping(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def values(self) -> NDArray[Any]:
        """The array, read-only; raises `DataError` if the file is not there, or is too short."""
        try:
            count = math.prod(self.shape)
            if self.strides is not None:
                steps = zip(self.shape, self.strides, strict=True)
                count = 1 + sum((n - 1) * step for n, step in steps) // self.dtype.itemsize
            flat = np.frombuffer(self._mapping, self.dtype, count, self.offset)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path} cannot be mapped: {error}. Every worker reads this file by itself: "
                "it must be there on each machine, as it was when the run began."
            ) from error
        if self.strides is None:
            return flat.reshape(self.shape)
        return np.lib.stride_tricks.as_strided(flat, self.shape, self.strides, writeable=False)

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return these rows, [B, ...]: new memory.

        Once a read has waited for the disk, the rows of each later one are asked for together
        first, on Linux: one after another, each would wait by itself.
        """
        values = self.values
        if self._waited and len(rows):
            self._request(rows)
            found: NDArray[Any] = values[rows]
            return found
        before = _disk_waits()
        found = values[rows]
        if _disk_waits() > before:
            self._waited.append(True)
        return found

    def _request(self, rows: NDArray[np.int64]) -> None:
        """Let the system begin to fetch what it has not of these rows; each takes about 1 us."""
        size = self.dtype.itemsize
        length = step = size * math.prod(self.shape[1:])
        if self.strides is not None:
            step, *inner = self.strides
            pairs = zip(self.shape[1:], inner, strict=True)
            length = size + sum((n - 1) * each for n, each in pairs)
        starts = np.sort(self.offset + rows * step)
        pages, ends = starts // mmap.PAGESIZE * mmap.PAGESIZE, starts + length
        apart = np.flatnonzero(pages[1:] > ends[:-1])  # others are fetched with the one before
        firsts, lasts = pages[np.append(0, apart + 1)], ends[np.append(apart, len(ends) - 1)]
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            _fetch(self._mapping, first, last - first)


@dataclass(frozen=True, eq=False)
class MappedRows(Column):
    """Rows of an array in a file, [N, ...].

    Parameters
    ----------
    array
        The array.
    rows
        Which of its rows, [N].
    """

    array: MappedArray
    rows: _Positions

    @classmethod
    def of(cls, array: MappedArray) -> MappedRows:
        """Return all rows of `array`."""
        return cls(array, range(array.shape[0]))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.array.shape[1:]

    def subset(self, rows: Rows) -> MappedRows:
        if isinstance(rows, slice):
            return MappedRows(self.array, self.rows[rows])
        return MappedRows(self.array, self._positions(rows))

    def read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return these rows, [B, ...]: new memory."""
        return self.array.read(self._positions(rows))

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield all rows in their order, some megabytes at once."""
        size = self.array.dtype.itemsize * math.prod(self.shape)
        some = max(1, _BLOCK_BYTES // max(1, size))
        for start in range(0, len(self), some):
            yield self.read(np.arange(start, min(start + some, len(self))))

    def _positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if isinstance(self.rows, range):
            return self.rows.start + self.rows.step * rows
        return self.rows[rows]


@dataclass(frozen=True, eq=False)
class Mapped(Field):
    """A field whose rows are read from a file whenever a batch has them, on any device.

    Parameters
    ----------
    column
        The rows.
    transform
        What rows read go through, such as `heliotrope.data.fields.Affine`: it treats each example
        alike, and must be picklable.
    device
        Where batches are.
    """

    column: MappedRows
    transform: Callable[[Tensor], Tensor]
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    def __len__(self) -> int:
        return len(self.column)

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        rows = self.column.read(indices.reshape(-1).cpu().numpy())
        values = self.transform(tensor_of(rows)).to(self.device)
        return {name: values.view(*indices.shape, *values.shape[1:])}

    def blank(self, name: str) -> Batch:
        zeros = np.zeros((1, *self.column.shape), self.column.array.dtype)
        return {name: self.transform(tensor_of(zeros)).to(self.device)}

    def to(self, device: torch.device) -> Mapped:
        return replace(self, device=device)

    def subset(self, rows: FieldRows) -> Mapped:
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        return replace(self, column=self.column.subset(chosen))


@dataclass(frozen=True, eq=False)
class Constant(Field):
    """One whole number for each of `count` examples, int64."""

    value: int
    count: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - a constant

    def __len__(self) -> int:
        return self.count

    @property
    def fixed(self) -> bool:
        return True

    def take(self, name: str, indices: Tensor) -> Batch:
        return {name: torch.full(indices.shape, self.value, device=self.device)}

    def blank(self, name: str) -> Batch:
        return {name: torch.full((1,), self.value, device=self.device)}

    def to(self, device: torch.device) -> Constant:
        return replace(self, device=device)

    def subset(self, rows: FieldRows) -> Constant:
        count = len(range(self.count)[rows]) if isinstance(rows, slice) else len(rows)
        return replace(self, count=count)


def _disk_waits() -> int:
    """Return how often this thread has waited for pages from a disk; 0 if that is not told."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt if _LINUX else 0


def _fetch(file: mmap.mmap, start: int, size: int) -> None:
    """Let the system begin to read these bytes of a mapped file; `start` is that of a page."""
    file.madvise(mmap.MADV_WILLNEED, start, size)
