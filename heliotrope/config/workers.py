"""`distributed.workers`: a number, or the fewest and the most that an elastic run takes."""

from __future__ import annotations

from typing import Any

from heliotrope.errors import ConfigError

__all__ = ["worker_range"]


def worker_range(workers: Any) -> tuple[int, int]:
    """Return the fewest and the most workers: the same number, unless the run is elastic.

    Raises `ConfigError` if `workers` is neither a whole number nor two of them in order.
    """
    bounds = workers if isinstance(workers, list) else [workers, workers]
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
    if not whole or len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ConfigError(
            f"distributed.workers={workers} is neither a number of workers nor a range. Set a "
            "whole number, or the fewest and the most, such as [1,4]."
        )
    if bounds[0] < 1:
        raise ConfigError(f"distributed.workers={workers} must be at least 1.")
    return bounds[0], bounds[1]
