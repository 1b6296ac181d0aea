"""Parallel coordinates: each run a line across the settings that differ, up to what it reached.

The page draws them itself: names and values of a config are text, which matplotlib would read as
mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from heliotrope.report.compare import NOT_SET, differences, short_key, telling
from heliotrope.report.frontier import compared_by
from heliotrope.report.replicates import Average, Replicates
from heliotrope.report.units import metric_label, metric_text

__all__ = ["Axis", "Coordinates", "coordinates"]

WIDTH, HEIGHT = 760.0, 300.0  # of the drawing, in its own units
_LEFT, _TOP, _BOTTOM = 70.0, 40.0, 20.0
_MOST_TICKS = 8
_LOG_FROM = 20.0  # values above 0 whose extremes are further apart have a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """A vertical axis: where it stands, its name, and (height, text) of its ticks."""

    x: float
    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Coordinates:
    """The drawing: axes, and of each line its index and its corners, `x,y x,y ...`.

    `best` is the index of the line with the best value of the metric, `metric` that metric's name.
    """

    axes: Sequence[Axis]
    lines: Sequence[tuple[int, str]]
    best: int
    metric: str
    reached: str
    width: float = WIDTH
    height: float = HEIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def coordinates(lines: Sequence[Replicates]) -> Coordinates | None:
    """Return the drawing; None unless several lines differ in settings and share a metric."""
    runs = [run for line in lines for run in line.runs]
    metric = compared_by(runs)
    settings = telling(differences([line.representative for line in lines]))
    settings = [row for row in settings if row[0] not in ("seed", "fold")]
    if len(lines) < 2 or metric is None or not settings:
        return None
    averages = [Average.of([run.metrics.get(metric) for run in line.runs]) for line in lines]
    drawn = [
        (index, average)
        for index, average in enumerate(averages)
        if average is not None and math.isfinite(average.mean)
    ]
    if len(drawn) < 2:
        return None
    columns = [(short_key(key), [values[index] for index, _ in drawn]) for key, values in settings]
    reached = [average.mean for _, average in drawn]
    step = (WIDTH - 2 * _LEFT) / len(columns)
    axes, heights = [], []
    for place, (name, values) in enumerate(columns):
        ticks, at = _scale(values)
        axes.append(Axis(_LEFT + place * step, name, ticks))
        heights.append(at)
    ticks, at = _spread(reached, [metric_text(value) for value in reached], log=False)
    axes.append(Axis(WIDTH - _LEFT, metric_label(metric), ticks))
    heights.append(at)
    corners = [
        (
            index,
            " ".join(f"{axis.x:.1f},{at[row]:.1f}" for axis, at in zip(axes, heights, strict=True)),
        )
        for row, (index, _) in enumerate(drawn)
    ]
    lower = next(filter(None, (run.direction(metric) for run in runs)), "max") == "min"
    best, average = (min if lower else max)(drawn, key=lambda pair: pair[1].mean)
    return Coordinates(axes, corners, best, metric_label(metric), average.text(metric_text))


def _scale(values: Sequence[str]) -> tuple[list[tuple[float, str]], list[float]]:
    """Return the ticks of an axis and the height of each value: as numbers if all are some."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    if numbers and all(map(math.isfinite, numbers)) and len(set(numbers)) > 1:
        low, high = min(numbers), max(numbers)
        return _spread(numbers, values, log=low > 0 and high > _LOG_FROM * low)
    names = sorted(set(values), key=lambda value: (value == NOT_SET, value))
    places = [float(names.index(value)) for value in values]
    return _spread(places, values, log=False)


def _spread(
    numbers: Sequence[float], texts: Sequence[str], *, log: bool
) -> tuple[list[tuple[float, str]], list[float]]:
    """Return ticks and heights of numbers, the lowest at the bottom of the axis."""
    scaled = [math.log(number) for number in numbers] if log else list(numbers)
    low, high = min(scaled), max(scaled)
    size = HEIGHT - _TOP - _BOTTOM
    heights = [HEIGHT - _BOTTOM - size * (s - low) / ((high - low) or 1.0) for s in scaled]
    told = sorted(set(zip(heights, texts, strict=True)))
    kept = told if len(told) <= _MOST_TICKS else [told[0], told[-1]]
    return kept, heights
