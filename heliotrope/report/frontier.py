"""Accuracy against epsilon: what privacy costs over the runs of a sweep, and which waste none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heliotrope.report.charts import Drawing, Scatter, Studio
from heliotrope.report.record import RunRecord, number
from heliotrope.report.summary import order_metrics
from heliotrope.report.units import metric_label, metric_text

__all__ = ["Frontier", "Place", "compared_by", "draw_frontiers", "frontiers", "searched_by"]


@dataclass(frozen=True)
class Place:
    """A run: its index among those compared, what it spent and reached, and its delta.

    `best` says whether no other run has a better metric at as little epsilon.
    """

    run: int
    epsilon: float
    metric: float
    delta: float | None
    best: bool


@dataclass(frozen=True)
class Frontier:
    """Runs that protect the same unit, under the same adjacency.

    Parameters
    ----------
    unit, adjacency
        Of all of them.
    metric, lower
        What they are compared by, and whether lower is better.
    places
        The runs, by epsilon.
    without
        Runs without privacy, and their metrics.
    """

    unit: str
    adjacency: str
    metric: str
    lower: bool
    places: tuple[Place, ...]
    without: tuple[tuple[int, float], ...]

    @property
    def title(self) -> str:
        """`test accuracy against epsilon, per client (add-or-remove-one)`."""
        kind = f" ({self.adjacency})" if self.adjacency else ""
        return f"{metric_label(self.metric)} against epsilon, per {self.unit}{kind}"

    def lines(self, labels: Sequence[str]) -> list[list[str]]:
        """Return a line a run: epsilon, delta, metric, label, and whether it is on the frontier."""
        found = [
            [
                f"{place.epsilon:.4g}",
                "" if place.delta is None else f"{place.delta:.3g}",
                metric_text(place.metric),
                labels[place.run],
                "on the frontier" if place.best else "",
            ]
            for place in self.places
        ]
        without = [["∞", "", metric_text(value), labels[run], ""] for run, value in self.without]
        return found + without


def frontiers(runs: Sequence[RunRecord]) -> list[Frontier]:
    """Return the private runs among several by unit and adjacency; none of a single run."""
    metric = compared_by(runs)
    if len(runs) < 2 or metric is None:
        return []
    lower = next(filter(None, (run.direction(metric) for run in runs)), "max") == "min"
    kinds: dict[tuple[str, str], list[tuple[int, float, float, float | None]]] = {}
    without = []
    for index, run in enumerate(runs):
        value, said = run.metrics.get(metric), run.detail("privacy")
        if value is None or not math.isfinite(value) or run.result is None:
            continue
        epsilon = None if said is None else number(said.get("epsilon"))
        if said is None:
            without.append((index, value))
        elif epsilon is not None and 0 < epsilon < math.inf:
            kind = str(said.get("unit", "participant")), str(said.get("adjacency", ""))
            kinds.setdefault(kind, []).append((index, epsilon, value, number(said.get("delta"))))
    return [
        Frontier(*kind, metric, lower, _placed(points, lower), tuple(without))
        for kind, points in kinds.items()
    ]


def draw_frontiers(
    found: Sequence[Frontier], labels: Sequence[str], colours: Sequence[int], studio: Studio
) -> list[tuple[str, Drawing, list[list[str]]]]:
    """Return title, drawing and table of each frontier; `colours` are those of the runs."""
    drawn = []
    for each in found:
        points = [(place.epsilon, place.metric, colours[place.run]) for place in each.places]
        best = [(place.epsilon, place.metric) for place in each.places if place.best]
        without = [(colours[run], value) for run, value in each.without]
        scatter = Scatter(points, best, without, metric_label(each.metric))
        said = [f"{line[3]}: {line[2]} at epsilon {line[0]}." for line in each.lines(labels)]
        drawing = Drawing("", f"{each.title}. {' '.join(said)}", studio.frontier(scatter))
        drawn.append((each.title, drawing, each.lines(labels)))
    return drawn


def searched_by(run: RunRecord) -> str | None:
    """Return the metric that a search judges a run by; None if the run is no trial of one."""
    search = run.config.get("search")
    if not isinstance(search, Mapping):
        return None
    splits = ("validation/", "test/")
    first = (name for split in splits for name in run.metrics if name.startswith(split))
    return str(search["metric"]) if search.get("metric") else next(first, None)


def compared_by(runs: Sequence[RunRecord]) -> str | None:
    """Return the metric of a search or a target, or the first test metric that is none of loss.

    Of those that all runs have.
    """
    ended = [run for run in runs if run.result is not None]
    shared = [
        name
        for name in order_metrics(name for run in ended for name in run.metrics)
        if all(name in run.metrics for run in ended)
    ]
    for run in ended:
        wanted = run.config.get("target")
        target = wanted.get("metric") if isinstance(wanted, dict) else None
        chosen = next((name for name in (searched_by(run), target) if name in shared), None)
        if chosen is not None:
            return str(chosen)
    return next((name for name in shared if not name.endswith("/loss")), next(iter(shared), None))


def _placed(
    points: Sequence[tuple[int, float, float, float | None]], lower: bool
) -> tuple[Place, ...]:
    """Return the points by epsilon: on the frontier if none is better in one and as good in both.

    A delta that is larger is less privacy, too: only runs with no larger one dominate.
    """

    def worse(one: tuple[int, float, float, float | None]) -> bool:
        _, epsilon, value, delta = one
        for _, other_epsilon, other_value, other_delta in points:
            gain = value - other_value if lower else other_value - value
            costs = other_epsilon <= epsilon and (other_delta or 0.0) <= (delta or 0.0)
            if costs and gain >= 0 and (gain > 0 or other_epsilon < epsilon):
                return True
        return False

    ordered = sorted(points, key=lambda p: (p[1], p[2] if lower else -p[2]))
    return tuple(Place(*point, best=not worse(point)) for point in ordered)
