"""Robust rules that look at the length of whole updates: geometric median and clipping.

Updates are how far clients went from the global weights, in float64, all trained parameters as one
vector, in which each is once under however many names.
Buffers are medians in which clients count as the rule says: alike, or by trust.

Shape legend: K clients or buckets of them, D numbers in trained parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..flower.messages import read_arrays
from ..updates import Weights
from .facts import ModelFacts
from .robust import RobustStrategy, trimmed_mean

__all__ = ["CenteredClipping", "GeometricMedian", "NormBounding", "OfUpdates", "geometric_median"]

_SMOOTHING = 1e-9  # of the median distance: what a distance counts as at least
_TOLERANCE = 1e-10  # of the median distance: a shorter step is the last
_SMALLEST = 1e-300  # where most updates are the same
_ITERATIONS = 1000


class OfUpdates(RobustStrategy):
    """Works on updates as rows of a matrix; parameters that are not trained stay as they are."""

    def __init__(self, facts: ModelFacts, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._names = sorted(facts.trained)

    def combine(self, weights: Sequence[Weights]) -> Mapping[str, Tensor]:
        start = {name: value.double() for name, value in read_arrays(self._start).items()}
        update, shares = self.center(
            torch.stack([self.difference(each, start) for each in weights])
        )
        combined = dict(start)  # also of parameters that nobody trains
        if shares.any():
            combined |= self.buffers(weights, shares)
        parts = torch.split(update, [start[name].numel() for name in self._names])
        for name, part in zip(self._names, parts, strict=True):
            combined[name] = start[name] + part.view(start[name].shape)
        return combined | {name: combined[of] for name, of in self._facts.aliases.items()}

    def difference(self, weights: Weights, start: Weights) -> Tensor:
        """Return how far `weights` are from `start`, of all that is trained: float64 [D]."""
        return torch.cat(
            [(weights[n].double() - start[n].double()).reshape(-1) for n in self._names]
        )

    def center(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Return one update, [D], for those of all, float64 [K, D], and the shares of each, [K].

        Shares weigh buffers; where all are 0, these stay as they are.
        """
        raise NotImplementedError


class GeometricMedian(OfUpdates):
    """The point with the least sum of distances to the updates (Pillutla et al. 2022).

    By Weiszfeld's algorithm, smoothed, to a step of 1e-10 of the median distance.
    """

    def center(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        # Whoever is at the median itself has most of the shares: buffers must not be theirs.
        return geometric_median(updates) @ updates, _alike(updates)


class NormBounding(OfUpdates):
    """The mean of updates, those longer than `bound` scaled down to it (Sun et al. 2019)."""

    def __init__(self, facts: ModelFacts, bound: float, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._bound = bound

    def center(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        return _clipped(updates, self._bound).mean(dim=0), _alike(updates)


class CenteredClipping(OfUpdates):
    """Clipping around the update of the round before (Karimireddy et al. 2021, Algorithm 2).

    From v, the last round's result, at first 0: v <- v + mean of (x_i - v) min(1, tau/||x_i - v||),
    as often as `iterations` says.
    """

    def __init__(self, facts: ModelFacts, tau: float, iterations: int, **settings: Any) -> None:
        super().__init__(facts, **settings)
        self._tau, self._iterations = tau, iterations
        self._center: Tensor | None = None  # v, [D]

    def center(self, updates: Tensor) -> tuple[Tensor, Tensor]:
        center = torch.zeros_like(updates[0]) if self._center is None else self._center
        for _ in range(self._iterations):
            center = center + _clipped(updates - center, self._tau).mean(dim=0)
        self._center = center
        return center, _alike(updates)

    def state_dict(self) -> dict[str, Any]:
        """Return the last round's update."""
        return {"center": self._center}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self._center = state["center"]


def geometric_median(points: Tensor) -> Tensor:
    """Return the shares of `points`, float64 [K, D], whose sum is their geometric median, [K].

    Begins at the coordinate-wise median, which few points far away do not move.
    """
    center = trimmed_mean(points, (len(points) - 1) // 2)
    distances = torch.linalg.vector_norm(points - center, dim=1)
    scale = float(distances.median())
    least = max(_SMOOTHING * scale, _SMALLEST)
    shares: Tensor
    for _ in range(_ITERATIONS):
        closeness = least / distances.clamp(min=least)
        shares = closeness / closeness.sum()
        moved = shares @ points
        step = float(torch.linalg.vector_norm(moved - center))
        center = moved
        if step <= _TOLERANCE * scale:
            break
        distances = torch.linalg.vector_norm(points - center, dim=1)
    return shares


def _clipped(vectors: Tensor, most: float) -> Tensor:
    norms = torch.linalg.vector_norm(vectors, dim=1)
    clipped: Tensor = (
        vectors * (most / norms).clamp(max=1.0)[:, None]
    )  # of a norm of 0, min(inf, 1)
    return clipped


def _alike(updates: Tensor) -> Tensor:
    return updates.new_full((len(updates),), 1 / len(updates))
