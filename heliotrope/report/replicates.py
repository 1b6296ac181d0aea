"""Runs that differ only in seed or fold: one line of a table, one curve with a band."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from heliotrope.report.compare import flatten
from heliotrope.report.record import Point, RunRecord, drawable

__all__ = ["Average", "Replicates", "averaged", "replicates"]

_IRRELEVANT = {"seed", "fold", "resume"}  # keys in which repeated runs of one experiment differ

# A point of a mean curve: x, mean, and the sample standard deviation of the values there.
_Banded = tuple[float, float, float]


@dataclass(frozen=True)
class Replicates:
    """Completed runs of one configuration with distinct seeds or folds, or one run by itself.

    Parameters
    ----------
    runs
        The runs, in the order in which they were given.
    positions
        Where each stands among all runs that were given.
    """

    runs: tuple[RunRecord, ...]
    positions: tuple[int, ...]

    @property
    def representative(self) -> RunRecord:
        """The first run; seed and fold in its config are those of all, such as `1, 2, 3`."""
        first = self.runs[0]
        if len(self.runs) == 1:
            return first
        fold = {} if self.folds is None else {"fold": self.folds}
        return replace(first, config={**first.config, "seed": self.seeds, **fold})

    @property
    def seeds(self) -> str:
        """The seeds of the runs, `1, 2, 3`; of more than six, the first and the last."""
        return _listed([run.seed for run in self.runs])

    @property
    def folds(self) -> str | None:
        """Which folds the runs hold out, likewise; None if they hold out none."""
        known = [run.fold for run in self.runs if run.fold is not None]
        return _listed(known) if known else None

    @property
    def count(self) -> str:
        """How many runs there are, and of what: `3 seeds`, `5 folds`, `15 runs`."""
        seeds, folds = (len({sample[i] for sample in map(_sample, self.runs)}) for i in (0, 1))
        kind = "seeds" if folds == 1 else "folds" if seeds == 1 else "runs"
        return f"{len(self.runs)} {kind}"


@dataclass(frozen=True)
class Average:
    """Mean and sample standard deviation (None of fewer than two values) of a quantity."""

    mean: float
    deviation: float | None

    def text(self, of: Callable[[float], str]) -> str:
        """Return `0.9532 ± 0.0021`; the mean alone where there is no deviation to tell."""
        if not self.deviation or not drawable(self.deviation):
            return of(self.mean)
        return f"{of(self.mean)} ± {of(self.deviation)}"

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Average | None:
        """Return the average of what is known, None if nothing is."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        if not all(map(drawable, known)):  # NaN, or a run that diverged
            return cls(sum(known) / len(known), None)
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), deviation)


def replicates(runs: Sequence[RunRecord]) -> list[Replicates]:
    """Put runs together that differ only in seed or fold, in the order of the first of each.

    A run that did not complete, or whose config is not known, stands by itself: it is no sample
    of what the others have measured. So does a second run with the same seed and fold.
    """
    groups: list[tuple[object, list[int]]] = []
    for position, run in enumerate(runs):
        key = _configuration(run)
        for other, members in groups:
            known = {_sample(runs[i]) for i in members}
            if key is not None and key == other and _sample(run) not in known:
                members.append(position)
                break
        else:
            groups.append((key, [position]))
    return [Replicates(tuple(runs[i] for i in found), tuple(found)) for _, found in groups]


def averaged(curves: Sequence[Sequence[Point]]) -> list[_Banded]:
    """Return the mean of curves, as far as all of them go, with the deviation at each point.

    Points are taken by their place in the curve, and x is averaged as well: wall times differ.
    """
    found = []
    for points in zip(*curves, strict=False):
        y = Average.of([value for _, value in points])
        assert y is not None
        x = statistics.fmean(place for place, _ in points)
        found.append((x, y.mean, y.deviation or 0.0))
    return found


def _sample(run: RunRecord) -> tuple[str, str]:
    """Return what tells a run from others of its configuration."""
    return str(run.seed), str(run.fold)


def _listed(values: Sequence[object]) -> str:
    told = list(dict.fromkeys(map(str, values)))
    return ", ".join(told) if len(told) <= 6 else f"{told[0]} … {told[-1]} ({len(told)})"


def _configuration(run: RunRecord) -> tuple[Any, ...] | None:
    if run.status != "completed" or not run.config:
        return None
    flat = flatten(run.config)
    return (run.mode, *sorted((k, v) for k, v in flat.items() if k not in _IRRELEVANT))
