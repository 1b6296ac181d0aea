"""Fields of sequences that differ in length: padded in a batch, beside their lengths.

Shape legend: N examples in a split, B examples in a batch, T values in a stream, W the width of a
batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliotrope.data.fields import Batch, Field, Rows, array_of, tensor_of

__all__ = ["Ragged", "Windows", "length_of"]

_LEAST_WIDTH = 8


def length_of(name: str) -> str:
    """Return what the lengths of the sequences `name` are called in a batch: int64 [B]."""
    return f"{name}_length"


class Windows(Field):
    """A piece of one long stream an example: pieces may overlap, and differ in length.

    A batch has them padded with zeros, ``name`` [B, W, ...], and their lengths, ``name_length``
    int64 [B]. Integers come as int64, whatever the stream holds.

    Parameters
    ----------
    stream
        [T, ...] of any type, also memory-mapped.
    starts, lengths
        int64 [N]: example n is ``stream[starts[n] : starts[n] + lengths[n]]``.
    width
        W of every batch; None takes the smallest power of two, at least 8, that holds the longest
        of the batch, or the longest of the split if that is less. So few widths occur, and what
        a model makes of an example must not depend on it.

    Raises
    ------
    ValueError
        If a piece reaches beyond the stream, or is longer than `width`.
    """

    def __init__(
        self,
        stream: Tensor | NDArray[Any],
        starts: Tensor | NDArray[np.int64],
        lengths: Tensor | NDArray[np.int64],
        width: int | None = None,
    ) -> None:
        self.stream = tensor_of(stream)
        self.starts, self.lengths = tensor_of(starts), tensor_of(lengths)
        self.width = width
        if self.starts.shape != self.lengths.shape or self.starts.dim() != 1:
            raise ValueError(
                f"starts {list(self.starts.shape)} and lengths {list(self.lengths.shape)} of "
                "windows must be one number an example"
            )
        self._longest = 0
        if len(self):
            if int(self.lengths.min()) < 0 or int(self.starts.min()) < 0:
                raise ValueError("a window has a negative start or length")
            ends, self._longest = self.starts + self.lengths, int(self.lengths.max())
            if int(ends.max()) > len(self.stream):
                raise ValueError(
                    f"window {int(ends.argmax())} ends at {int(ends.max())}, beyond the stream of "
                    f"{len(self.stream)} values"
                )
        if width is not None and self._longest > width:
            raise ValueError(f"a window of {self._longest} values is wider than width={width}")

    def __len__(self) -> int:
        return len(self.starts)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (array_of(self.stream), array_of(self.starts), array_of(self.lengths))
        return Windows, (*arrays, self.width)

    @property
    def device(self) -> torch.device:
        return self.stream.device

    @property
    def fixed(self) -> bool:
        return self.width is not None

    def take(self, name: str, indices: Tensor) -> Batch:
        flat = indices.reshape(-1)
        starts, lengths = self.starts.index_select(0, flat), self.lengths.index_select(0, flat)
        offsets = torch.arange(self._width_of(lengths), device=self.device)
        inside = offsets < lengths[:, None]  # [B, W]
        positions = torch.where(inside, starts[:, None] + offsets, 0)
        if len(self.stream) == 0:
            found = self.stream.new_zeros((*inside.shape, *self.stream.shape[1:]))
        else:
            found = _widened(self.stream[positions])
            outside = ~inside.view(*inside.shape, *[1] * (found.dim() - 2))
            found.masked_fill_(outside, 0)
        return {
            name: found.view(*indices.shape, *found.shape[1:]),
            length_of(name): lengths.view(indices.shape),
        }

    def blank(self, name: str) -> Batch:
        """Return zeros, as many as the examples have on average."""
        mean = math.ceil(self.lengths.double().mean()) if len(self) else 1
        lengths = self.lengths.new_full((1,), max(1, mean))
        shape = (1, self._width_of(lengths), *self.stream.shape[1:])
        return {name: _widened(self.stream.new_zeros(shape)), length_of(name): lengths}

    def to(self, device: torch.device) -> Windows:
        starts, lengths = self.starts.to(device), self.lengths.to(device)
        return Windows(self.stream.to(device), starts, lengths, self.width)

    def subset(self, rows: Rows) -> Windows:
        return Windows(self.stream, self.starts[rows], self.lengths[rows], self.width)

    def _width_of(self, lengths: Tensor) -> int:
        if self.width is not None:
            return self.width
        longest = int(lengths.max()) if len(lengths) else 0
        power = max(_LEAST_WIDTH, 1 << max(0, longest - 1).bit_length())
        return max(1, longest, min(power, self._longest))


class Ragged(Windows):
    """A sequence an example, one after the other: `Windows` that do not overlap.

    Parameters
    ----------
    values
        [T, ...] of any type, also memory-mapped.
    offsets
        int64 [N + 1]: example n is ``values[offsets[n] : offsets[n + 1]]``.

    Raises
    ------
    ValueError
        If the offsets decrease, or do not begin at 0 and end with the values.
    """

    def __init__(self, values: Tensor | NDArray[Any], offsets: Tensor | NDArray[np.int64]) -> None:
        bounds = tensor_of(offsets)
        if bounds.dim() != 1 or not len(bounds) or int(bounds[0]) != 0:
            raise ValueError("the offsets of ragged values must be [N + 1] numbers from 0 on")
        if int(bounds[-1]) != len(values):
            raise ValueError(
                f"offsets end at {int(bounds[-1])}, but there are {len(values)} values"
            )
        super().__init__(values, bounds[:-1], bounds.diff())


def _widened(values: Tensor) -> Tensor:
    """Return integers as int64, which embeddings and losses take; other values as they are."""
    integers = not (values.is_floating_point() or values.is_complex())
    return values.to(torch.int64) if integers else values
