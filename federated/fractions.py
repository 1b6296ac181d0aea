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


def fraction_rounded_up(share: float, count: int) -> int:
    """Return the smallest integer that is at least `share` of `count`: 0.55 of 100 is 55."""
    return -(-decimal(share) * count // 1)


def fraction_rounded_down(share: float, count: int) -> int:
    """Return the largest integer that is at most `share` of `count`: 0.29 of 100 is 29."""
    return int(decimal(share) * count // 1)


def fractions_rounded_down(share: float, counts: _Ints) -> _Ints:
    """Return `fraction_rounded_down` of each of `counts`, int64 of the same shape."""
    distinct, place = np.unique(counts, return_inverse=True)
    shares = [fraction_rounded_down(share, count) for count in distinct.tolist()]
    return np.array(shares, dtype=np.int64)[place].reshape(np.shape(counts))
