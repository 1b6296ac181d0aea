"""What a trial of a search must reach to be trained to its end, from the curves of others.

A pruner settles that before the trial begins, for all of its evaluations: see `PruningRule`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from heliotrope.runs.pruning import PruningRule
from heliotrope.search.trials import Ended

__all__ = ["Pruner", "halving", "median", "none"]


class Pruner(Protocol):
    """Makes the rule of the next trial."""

    def rule(self, ended: Sequence[Ended], metric: str, lower: bool) -> PruningRule | None:
        """Return what the next trial must reach, from those that have ended; None: nothing."""


@dataclass(frozen=True)
class _None:
    def rule(self, ended: Sequence[Ended], metric: str, lower: bool) -> PruningRule | None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class _Median:
    startup_trials: int
    warmup: int

    def rule(self, ended: Sequence[Ended], metric: str, lower: bool) -> PruningRule | None:
        complete = [trial.curve for trial in ended if trial.state == "complete"]
        if len(complete) < self.startup_trials:
            return None
        limits = {}
        for step in sorted({step for curve in complete for step in curve}):
            values = [curve[step] for curve in complete if step in curve]
            known = [value for value in values if not math.isnan(value)]
            if step >= self.warmup and len(values) >= self.startup_trials and known:
                limits[step] = statistics.median(known)
        return PruningRule(metric, lower, limits, best=True)


@dataclass(frozen=True)
class _Halving:
    min_resource: int
    reduction_factor: int

    def rule(self, ended: Sequence[Ended], metric: str, lower: bool) -> PruningRule | None:
        curves = [trial.curve for trial in ended if trial.state != "failed"]
        longest = max((step for curve in curves for step in curve), default=0)
        limits, rung = {}, self.min_resource
        while rung <= longest:
            found = [_reached(curve, rung) for curve in curves]
            values = sorted((v for v in found if v is not None), reverse=not lower)
            kept = max(1, (len(values) + 1) // self.reduction_factor)  # the next trial among them
            if len(values) >= kept:
                limits[rung] = values[kept - 1]
            rung *= self.reduction_factor
        return PruningRule(metric, lower, limits, best=False)


def none() -> Pruner:
    """Train every trial to its end."""
    return _None()


def median(*, startup_trials: int = 5, warmup: int = 0) -> Pruner:
    """Give up a trial whose best value is worse than the median of others at that time.

    (Golovin et al. 2017, Google Vizier, section 3.2; the others are those that are complete.)

    Parameters
    ----------
    startup_trials
        So many must be complete before any is given up, and have come as far: where most have
        stopped early, the few that went on are no median.
    warmup
        The first epoch or round after which one is given up.
    """
    return _Median(startup_trials, warmup)


def halving(*, min_resource: int = 1, reduction_factor: int = 3) -> Pruner:
    """Give up all but the best of those that come as far: asynchronous successive halving.

    (Li et al. 2020, A system for massively parallel hyperparameter tuning.) A trial is compared
    with those before it, so that none waits for others.

    Parameters
    ----------
    min_resource
        The epoch or round at which trials are first compared.
    reduction_factor
        One of so many goes on, and is compared again after so many times as long.
    """
    return _Halving(min_resource, reduction_factor)


def _reached(curve: Mapping[int, float], rung: int) -> float | None:
    """Return the value of a trial at its first evaluation from `rung` on; None if it has none."""
    later = [step for step in curve if step >= rung]
    value = curve[min(later)] if later else math.nan
    return None if math.isnan(value) else value
