"""Count, mean and mean square of a row's numbers, each within known limits.

Numbers are cut off at bounds that are known without them, and mapped to -1 to 1: then one row can
add no more than 1 to a count and to a sum of squares, and no more than 1 either way to a sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bounds", "Scale", "pixel_moments", "row_moments", "scale_of", "unit_sums"]

Bounds = tuple[float, float]
"""The least and the largest number that a column may have; others are cut off there."""

_PIXELS = 1 << 20  # pixels whose squares are held at once


@dataclass(frozen=True)
class Scale:
    """The mean and the deviation, above 0, that numbers are scaled by."""

    mean: float
    deviation: float


def row_moments(values: NDArray[np.float32], bounds: Sequence[Bounds]) -> NDArray[np.float64]:
    """Return what each number of K columns adds, [N, K, 3]: 1, itself, and its square.

    `values` are [N, K]; a missing one (NaN) adds nothing.
    """
    low, high = np.array(bounds, dtype=np.float64).reshape(-1, 2).T
    inside = np.clip(values.astype(np.float64), low, high)
    mapped = 2 * ((inside - low) / (high - low)) - 1
    missing = np.isnan(values)
    mapped[missing] = 0
    return np.stack([(~missing).astype(np.float64), mapped, mapped * mapped], axis=2)


def pixel_moments(images: NDArray[np.uint8], bounds: Bounds) -> NDArray[np.float64]:
    """Return what each image adds, [N, 1, 3]: 1, the mean of its pixels, and of their squares."""
    low, high = bounds
    pixels = max(1, math.prod(images.shape[1:]))
    rows = images.reshape(len(images), pixels)
    step = max(1, _PIXELS // pixels)
    means, squares = np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, len(rows), step):
        block = np.clip(rows[start : start + step], math.ceil(low), math.floor(high))
        whole = block.astype(np.int64)  # exact, so that no order of additions matters
        means[start : start + step] = whole.sum(axis=1) / pixels
        squares[start : start + step] = (whole * whole).sum(axis=1) / pixels
    factor = 2 / (high - low)
    shift = -low * factor - 1
    first = factor * means + shift
    second = factor * factor * squares + 2 * factor * shift * means + shift * shift
    found = [np.ones(len(rows)), np.clip(first, -1, 1), np.clip(second, 0, 1)]
    return np.stack(found, axis=1)[:, None]


def unit_sums(
    moments: NDArray[np.float64], groups: NDArray[np.int64], units: int
) -> NDArray[np.float64]:
    """Return the sums over units of the means of their rows, [K, 3], float64.

    `groups` says whose each row of `moments`, [N, K, 3], is; rows of `units` and above are
    nobody's. Sums over units are exact, rounded once.
    """
    sizes = np.maximum(np.bincount(groups, minlength=units)[:units], 1)
    found = np.zeros(moments.shape[1:])
    for place in np.ndindex(*found.shape):
        of_rows = moments[(slice(None), *place)]
        of_units = np.bincount(groups, weights=of_rows, minlength=units)[:units] / sizes
        found[place] = math.fsum(of_units.tolist())
    return found


def scale_of(sums: NDArray[np.float64], noise: float, bounds: Bounds) -> Scale:
    """Return the scale that follows from noisy sums of a column, [3].

    `noise` is the standard deviation of what was added to each. What it hides is not followed: a
    count below twice that gives the middle and half the width of the bounds, and a variance below
    `noise` / count is taken for that, so that noise is never scaled up.
    """
    low, high = bounds
    middle, half = low + (high - low) / 2, (high - low) / 2
    count, total, squares = sums.tolist()
    if count <= 2 * noise:
        return Scale(middle, half)
    mean = min(max(total / count, -1.0), 1.0)
    variance = min(max(squares / count - mean * mean, noise / count), 1.0)
    return Scale(middle + half * mean, half * math.sqrt(variance))
