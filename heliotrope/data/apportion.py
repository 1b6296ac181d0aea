"""Whole numbers from shares: how many examples each client gets, always summing to the total."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from heliotrope.errors import PartitionError

__all__ = ["cut", "dirichlet_shares", "donations", "even_owners"]


def even_owners(parts: int, examples: int) -> npt.NDArray[np.int64]:
    """Return 0, 0, ..., parts - 1: `examples` values in runs whose lengths differ by at most one.

    int64 ``[examples]``.
    """
    return np.arange(examples, dtype=np.int64) * parts // examples


def dirichlet_shares(
    alpha: float, clients: int, rows: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw `rows` times from the symmetric Dirichlet: float64 ``[rows, clients]``, rows sum to 1.

    Raises
    ------
    PartitionError
        If `alpha` is infinite, or so large or small that the draw overflows.
    """
    if math.isfinite(alpha):
        shares = generator.dirichlet(np.full(clients, alpha), size=rows)
        if np.allclose(shares.sum(axis=1), 1):
            return shares
    raise PartitionError(
        f"federated.partition.alpha={alpha} is too extreme to draw the shares of {clients:,} "
        "clients from. Common values lie between 0.05 and 100; for equal shares use "
        "federated/partition=iid."
    )


def cut(
    shares: npt.NDArray[np.float64], examples: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Turn shares that sum to 1 into counts that sum to `examples`, each within one of its share.

    All boundaries are shifted by one random fraction before they are rounded down (systematic
    sampling), so that a count is right on average. Without it, many clients with less than an
    example of each label would get theirs of every label at the same places.
    int64, the shape of `shares`.
    """
    ends = np.floor(np.cumsum(shares) * examples + generator.random()).astype(np.int64)
    ends = np.minimum(ends, examples)  # the sum may round to a little more than 1
    ends[-1] = examples
    return np.diff(ends, prepend=0)


def donations(sizes: npt.NDArray[np.int64], min_size: int) -> npt.NDArray[np.int64]:
    """Return how many examples each client gives so that none is left below `min_size`.

    Clients give in proportion to what they have above `min_size`, which keeps the shape of the
    distribution of sizes; together exactly what the others lack. Needs
    ``sizes.sum() >= min_size * len(sizes)``, and then nobody gives more than is above
    `min_size`: the proportion is at most 1, and rounding cannot exceed a whole surplus.
    int64 ``[clients]``.
    """
    surplus = np.maximum(sizes - min_size, 0)
    lacking = int(np.maximum(min_size - sizes, 0).sum())
    if lacking == 0:
        return np.zeros_like(sizes)
    return np.diff(np.cumsum(surplus) * lacking // int(surplus.sum()), prepend=0)
