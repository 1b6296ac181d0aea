"""Count, sum and sum of squares, without rounding: any grouping of the rows gives the same.

A float32 is a whole number of units of 2^-149, its square one of 2^-298. Python's integers hold
any number of them, so nothing depends on the order, the blocks or the clients of an addition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ColumnSums", "PixelSums"]

_UNIT = 149  # the smallest float32 is 2^-149
_FRACTION = 23  # bits of a float32 that hold its fraction
_MANTISSA = _FRACTION + 1  # and the leading one
_BLOCK = 1 << 15  # so many mantissas add up to less than 2^53
_COUNT, _TOTAL, _SQUARES = 8, 44, 80  # bytes of a message that hold 2^63 numbers of any size
_PIXELS = 1 << 20  # pixels whose squares are held at once


@dataclass(frozen=True)
class ColumnSums:
    """Sums of K columns of float32 numbers over R rows, missing ones (NaN) left out.

    Parameters
    ----------
    rows
        R, of which each column has at most as many numbers.
    counts
        How many numbers each column has, [K].
    totals, squares
        Sums of the numbers in units of 2^-149, and of their squares in units of 2^-298, [K].
    """

    rows: int
    counts: tuple[int, ...]
    totals: tuple[int, ...]
    squares: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> ColumnSums:
        """Return the sums of the columns of finite or missing float32 numbers, [R, K]."""
        sums = [_sums(column[~np.isnan(column)]) for column in values.T]
        counts, totals, squares = zip(*sums, strict=True) if sums else ((), (), ())
        return cls(len(values), tuple(counts), tuple(totals), tuple(squares))

    def __add__(self, other: ColumnSums) -> ColumnSums:
        return ColumnSums(
            self.rows + other.rows,
            _added(self.counts, other.counts),
            _added(self.totals, other.totals),
            _added(self.squares, other.squares),
        )

    def missing(self) -> tuple[int, ...]:
        """Return how many numbers each column lacks, [K]."""
        return tuple(self.rows - count for count in self.counts)

    def means(self) -> tuple[float, ...]:
        """Return the mean of each column, rounded once; 0 without numbers."""
        pairs = zip(self.counts, self.totals, strict=True)
        return tuple(float(Fraction(total, max(n, 1) << _UNIT)) for n, total in pairs)

    def deviations(self) -> tuple[float, ...]:
        """Return the standard deviation of each column (of the population); 0 without numbers."""
        found = []
        for n, total, squares in zip(self.counts, self.totals, self.squares, strict=True):
            variance = Fraction(n * squares - total * total, max(n * n, 1) << 2 * _UNIT)
            found.append(math.sqrt(variance))
        return tuple(found)

    def to_bytes(self) -> bytes:
        """Return the message that tells a server these sums: 8 bytes, and 132 a column."""
        parts = [self.rows.to_bytes(_COUNT, "little")]
        for count, total, squares in zip(self.counts, self.totals, self.squares, strict=True):
            parts.append(count.to_bytes(_COUNT, "little"))
            parts.append(total.to_bytes(_TOTAL, "little", signed=True))
            parts.append(squares.to_bytes(_SQUARES, "little"))
        return b"".join(parts)


@dataclass(frozen=True)
class PixelSums:
    """Sums over all pixels of images in bytes: their number, sum and sum of squares."""

    count: int
    total: int
    squares: int

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> PixelSums:
        """Return the sums of images, [N, ...]."""
        total = squares = 0
        step = max(1, _PIXELS // max(1, math.prod(images.shape[1:])))
        for start in range(0, len(images), step):
            block = images[start : start + step]
            total += int(block.sum(dtype=np.int64))
            squares += int(np.square(block, dtype=np.int32).sum(dtype=np.int64))
        return cls(images.size, total, squares)

    def __add__(self, other: PixelSums) -> PixelSums:
        return PixelSums(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def mean(self) -> float:
        """Return the mean of the pixels, in bytes; 0 without any."""
        return self.total / max(self.count, 1)

    def deviation(self) -> float:
        """Return the standard deviation of the pixels, in bytes; 0 without any."""
        # n^2 * variance as one integer: no cancellation.
        scaled = self.count * self.squares - self.total * self.total
        return math.sqrt(scaled) / max(self.count, 1)

    def to_bytes(self) -> bytes:
        """Return the message that tells a server these sums: 24 bytes."""
        numbers = (self.count, self.total, self.squares)
        return b"".join(number.to_bytes(8, "little") for number in numbers)


def _sums(values: NDArray[np.float32]) -> tuple[int, int, int]:
    """Return count, sum and sum of squares of one column of finite numbers.

    A number is a whole mantissa of 24 bits times 2^(exponent - 150). Mantissas of one exponent,
    and both halves of their squares, add up in float64 without rounding.
    """
    total = squares = 0
    for start in range(0, len(values), _BLOCK):
        bits = np.ascontiguousarray(values[start : start + _BLOCK]).view(np.uint32)
        exponents = (bits >> _FRACTION & 0xFF).astype(np.int64)
        mantissas = (bits & (1 << _FRACTION) - 1).astype(np.int64)
        mantissas += (exponents > 0).astype(np.int64) << _FRACTION
        np.maximum(exponents, 1, out=exponents)  # of subnormal numbers it is 1, too
        square = mantissas * mantissas
        signed = np.where(bits >> 31, -mantissas, mantissas)
        parts = (signed, square >> _MANTISSA, square & (1 << _MANTISSA) - 1)
        sums = np.stack([np.bincount(exponents, part, minlength=256) for part in parts], axis=1)
        for exponent in np.flatnonzero(sums.any(axis=1)).tolist():
            first, high, low = map(int, sums[exponent].tolist())
            total += first << exponent - 1
            squares += (high << _MANTISSA) + low << 2 * (exponent - 1)
    return len(values), total, squares


def _added(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))
