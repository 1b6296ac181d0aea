"""Shares of whole numbers, by exact arithmetic on the decimal number that a user wrote.

In floating point 0.55 * 100 is a little more than 55 and 0.29 * 100 a little less than 29.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["decimal", "fraction_rounded_down", "fraction_rounded_up", "fractions_rounded_down"]

_Ints = NDArray[np.int64]


def decimal(number: float) -> Fraction:
    """Return the shortest decimal number that reads back as this float, exactly."""
    return Fraction(repr(float(number)))


def fraction_rounded_up(fraction: float, count: int) -> int:
    """Return the smallest integer that is at least `fraction` of `count`: 0.55 of 100 is 55."""
    return -(-decimal(fraction) * count // 1)


def fraction_rounded_down(fraction: float, count: int) -> int:
    """Return the largest integer that is at most `fraction` of `count`: 0.29 of 100 is 29."""
    return int(decimal(fraction) * count // 1)


def fractions_rounded_down(fraction: float, counts: _Ints) -> _Ints:
    """Return `fraction_rounded_down` of each of `counts`, int64 of the same shape."""
    distinct, index = np.unique(counts, return_inverse=True)
    rounded = [fraction_rounded_down(fraction, count) for count in distinct.tolist()]
    return np.array(rounded, dtype=np.int64)[index].reshape(np.shape(counts))
