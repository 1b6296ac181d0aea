"""The panels of what a model says: scores, how sure it is, and numbers beside the true ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliotrope.panels import HISTOGRAM, PRECISION_RECALL, RELIABILITY, ROC, Curve
from heliotrope.report.charts import Drawing, Studio
from heliotrope.report.record import Point, RunRecord, drawable, number
from heliotrope.report.units import metric_text

__all__ = ["PredictionRow", "predictions"]


@dataclass(frozen=True)
class PredictionRow:
    """Drawings under one title; `runs` are the positions of the runs that share them."""

    title: str
    hint: str
    runs: Sequence[int]
    drawings: Sequence[Drawing]


@dataclass(frozen=True)
class _Kind:
    """A curve, what it is called, and what is said of it."""

    curve: Curve
    caption: str
    say: Callable[[Sequence[Point]], str]


def predictions(
    runs: Sequence[RunRecord], labels: Sequence[str], studio: Studio
) -> list[PredictionRow]:
    """Draw what the last event of each run that has any says of its predictions."""
    found = [_curves(kind, runs, labels, studio) for kind in _KINDS]
    shown = [row for row in found if row is not None]
    rows = []
    if shown:
        hint = "Reliability: points below the dotted line are surer than they are right."
        drawn = sorted({index for indices, _ in shown for index in indices})
        drawings = [drawing for _, drawing in shown]
        rows.append(PredictionRow("Scores", hint, drawn, drawings))
    histograms = [
        _histogram(label, counts, low, high, studio)
        for run, label in zip(runs, labels, strict=True)
        for counts, low, high in _counts(_last(run, HISTOGRAM))
    ]
    if histograms:
        hint = "Shade: how often (square-root scale). Dotted: predicted as they are."
        rows.append(PredictionRow("Predicted against true", hint, [], histograms))
    return rows


def _last(run: RunRecord, key: str) -> Mapping[str, Any]:
    panels = [event[key] for event in run.events if isinstance(event.get(key), Mapping)]
    return panels[-1] if panels else {}


# --- curves -------------------------------------------------------------------------------


def _curves(
    kind: _Kind, runs: Sequence[RunRecord], labels: Sequence[str], studio: Studio
) -> tuple[list[int], Drawing] | None:
    """Draw one kind of curve of all runs; return the positions of those that have it."""
    curve = kind.curve
    lines = [_points(_last(run, curve.key), curve.x, curve.y) for run in runs]
    drawn = [index for index, line in enumerate(lines) if line]
    if not drawn:
        return None
    said = [f"{labels[index]}: {kind.say(lines[index])}." for index in drawn]
    names = tuple(name.replace("_", " ") for name in (curve.x, curve.y))
    svg = studio.unit_curves(lines, names, diagonal=curve != PRECISION_RECALL)
    return drawn, Drawing(kind.caption, f"{kind.caption}. {' '.join(said)}", svg)


def _points(panel: Mapping[str, Any], x: str, y: str) -> list[Point]:
    sides = [_fractions(panel.get(name)) for name in (x, y)]
    if not all(sides) or len(sides[0]) != len(sides[1]):
        return []
    return list(zip(*sides, strict=True))


def _fractions(values: object) -> list[float]:
    """Return a list of numbers in [0, 1], or an empty one if it is anything else."""
    if not isinstance(values, list):
        return []
    numbers = [number(value) for value in values]
    fractions = [n for n in numbers if n is not None and 0 <= n <= 1]
    return fractions if len(fractions) == len(numbers) else []


def _area(line: Sequence[Point]) -> str:
    pairs = itertools.pairwise(line)
    return f"area {metric_text(sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs))}"


def _ends(line: Sequence[Point]) -> str:
    return f"precision {metric_text(line[0][1])} at first, {metric_text(line[-1][1])} of all"


def _gap(line: Sequence[Point]) -> str:
    gap = max(abs(y - x) for x, y in line)
    return f"{RELIABILITY.x} and {RELIABILITY.y} differ by up to {gap:.4f}"


_KINDS = (
    _Kind(ROC, "ROC curve", _area),
    _Kind(PRECISION_RECALL, "precision and recall", _ends),
    _Kind(RELIABILITY, "reliability", _gap),
)


# --- numbers ------------------------------------------------------------------------------


def _counts(panel: Mapping[str, Any]) -> list[tuple[list[list[float]], float, float]]:
    """Return the counts and the limits of a histogram, or nothing if it is none."""
    low, high, counts = number(panel.get("low")), number(panel.get("high")), panel.get("counts")
    if low is None or high is None or not low < high or not drawable(high - low):
        return []
    if not isinstance(counts, list) or not counts:
        return []
    rows = [[number(cell) for cell in row] for row in counts if isinstance(row, list)]
    square = [[n for n in row if n is not None and 0 <= n < math.inf] for row in rows]
    if [len(row) for row in square] != [len(counts)] * len(counts):
        return []
    return [(square, low, high)] if any(map(any, square)) else []


def _histogram(
    label: str, counts: Sequence[Sequence[float]], low: float, high: float, studio: Studio
) -> Drawing:
    most = max(map(max, counts))
    shades = [[math.sqrt(n / most) for n in row] for row in counts]
    near = sum(counts[i][j] for i in range(len(counts)) for j in range(len(counts)) if i == j)
    alt = (
        f"Predictions of {label} against the true values, from {metric_text(low)} to "
        f"{metric_text(high)}: {near:,.0f} of {sum(map(sum, counts)):,.0f} lie in the same of "
        f"{len(counts)} bins."
    )
    return Drawing(label, alt, studio.histogram(shades, (low, high)))
