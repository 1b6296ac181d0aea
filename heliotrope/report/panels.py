"""The panels of the page that hold charts: learning curves and confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliotrope.panels import CONFUSION, NAMES
from heliotrope.report.charts import AXES, Chart, Drawing, Studio
from heliotrope.report.record import Point, RunRecord, drawable, number
from heliotrope.report.replicates import Replicates, averaged
from heliotrope.report.summary import order_metrics, target
from heliotrope.report.units import bytes_text, count_text, metric_label, metric_text, seconds_text

__all__ = ["CurveRow", "Matrix", "curves", "matrices"]

HIT, MISS = "#0072b2", "#d55e00"
_MOST_CELLS = 20  # classes; above this a confusion matrix is an image
_UNITS = {"examples_seen": count_text, "seconds": seconds_text, "bytes": bytes_text}


@dataclass
class CurveRow:
    """Curves that share an x axis, and what could not be drawn."""

    title: str
    drawings: list[Drawing] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix; either `rows` of (class, cells, correct) or an image."""

    label: str
    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, float, str]], str]]
    image: Drawing | None
    confused: Sequence[str]


# --- learning curves ----------------------------------------------------------------------


def curves(lines: Sequence[Replicates], labels: Sequence[str], studio: Studio) -> list[CurveRow]:
    """Draw the main metrics against examples, seconds and bytes, the others against examples.

    Runs that differ only in their seed are their mean, in a band of one deviation.
    """
    runs = [run for line in lines for run in line.runs]
    names = order_metrics(name for run in runs for name in run.metric_names())
    names = [name for name in names if not name.startswith(("clients/", "privacy/epsilon_rdp"))]
    tests = [name for name in names if name.startswith("test/")]
    main = (tests[:2] + [n for n in names if n.startswith("train/")][:1]) if tests else names[:3]
    found = [_curve_row(lines, labels, main, axis, studio) for axis in _UNITS]
    if rest := [name for name in names if name not in main]:
        found.append(_curve_row(lines, labels, rest, "examples_seen", studio))
        found[-1].title = "Other metrics, against examples seen"
    found[0].notes += _not_finite(lines, labels, names)
    return [row for row in found if row.drawings or row.notes]


def _curve_row(
    lines: Sequence[Replicates],
    labels: Sequence[str],
    metrics: Sequence[str],
    axis: str,
    studio: Studio,
) -> CurveRow:
    row = CurveRow(f"Against {AXES[axis][0]}")
    runs = [run for line in lines for run in line.runs]
    silent = [axis == "bytes" and line.runs[0].bytes_exchanged == 0 for line in lines]
    for label, none in zip(labels, silent, strict=True):
        if none:
            row.notes.append(f"{label} exchanged no bytes, so it has no curve here.")
    for metric in metrics:
        drawn = [
            [] if none else [c for run in line.runs if (c := run.curve(metric, axis))]
            for line, none in zip(lines, silent, strict=True)
        ]
        if not any(drawn):
            continue
        goals = {t.value for run in runs if (t := target(run)) and t.metric == metric}
        goals = {value for value in goals if drawable(value)}
        said = [_in_words(*pair, axis) for pair in zip(labels, drawn, strict=True) if pair[1]]
        caption = metric_label(metric)
        alt = f"{caption} against {AXES[axis][0]}. {' '.join(said)}"
        svg = studio.curves(Chart(axis, drawn, sorted(goals)))
        row.drawings.append(Drawing(caption, alt, svg))
    return row


def _in_words(label: str, seeds: Sequence[Sequence[Point]], axis: str) -> str:
    mean = averaged(seeds)
    (_, first, _), (x, last, deviation) = mean[0], mean[-1]
    spread = f" ± {metric_text(deviation)}" if deviation else ""
    return (
        f"{label}: from {metric_text(first)} to {metric_text(last)}{spread} at {_UNITS[axis](x)}."
    )


def _not_finite(
    lines: Sequence[Replicates], labels: Sequence[str], names: Sequence[str]
) -> list[str]:
    notes = []
    runs = [(run, label) for line, label in zip(lines, labels, strict=True) for run in line.runs]
    for run, label in runs:
        for name in names:
            line = run.curve(name, "examples_seen")
            lost = sum(not drawable(y) for _, y in line)
            if lost:
                notes.append(
                    f"{label}: {lost} of {len(line)} values of {metric_label(name)} are not "
                    "finite and are not drawn. The run diverged; try a lower learning rate."
                )
    return notes


# --- confusion matrices -------------------------------------------------------------------


def matrices(runs: Sequence[RunRecord], labels: Sequence[str], studio: Studio) -> list[Matrix]:
    """Return the last confusion matrix of every run that has one."""
    found = []
    for run, label in zip(runs, labels, strict=True):
        events = [event for event in run.events if CONFUSION in event]
        counts = _square(events[-1][CONFUSION]) if events else None
        if counts:
            found.append(_matrix(label, counts, _names(events[-1], len(counts)), studio))
    return found


def _square(value: object) -> list[list[int]] | None:
    if not isinstance(value, list) or not value:
        return None
    for line in value:
        if not isinstance(line, list) or len(line) != len(value):
            return None
        if any((n := number(cell)) is None or not 0 <= n < math.inf for cell in line):
            return None
    return [[int(cell) for cell in line] for line in value]


def _names(event: Mapping[str, Any], size: int) -> list[str]:
    names = event.get(NAMES)
    fits = isinstance(names, list) and len(names) == size
    return [str(name) for name in names] if fits and names else [str(i) for i in range(size)]


def _matrix(label: str, counts: list[list[int]], names: list[str], studio: Studio) -> Matrix:
    totals = [sum(line) or 1 for line in counts]
    # The square root lets a share of 1 % be seen.
    shades = [[math.sqrt(n / t) for n in line] for line, t in zip(counts, totals, strict=True)]
    pairs = sorted(
        ((n, i, j) for i, line in enumerate(counts) for j, n in enumerate(line) if n and i != j),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    confused = [
        f"{names[i]} taken for {names[j]}: {n:,} of {totals[i]:,} ({n / totals[i]:.1%})"
        for n, i, j in pairs[:5]
    ]
    right = sum(counts[i][i] for i in range(len(counts)))
    if len(counts) > _MOST_CELLS:
        alt = f"Confusion matrix of {label}, {len(counts)} classes, {right:,} correct."
        image = Drawing("", alt, studio.matrix(shades, HIT, MISS))
        return Matrix(label, names, [], image, confused)
    rows = []
    for i, name in enumerate(names):
        cells = [
            (n, round(shade, 3), _cell_title(name, names[j], n, totals[i]))
            for j, (n, shade) in enumerate(zip(counts[i], shades[i], strict=True))
        ]
        rows.append((name, cells, f"{counts[i][i] / totals[i]:.1%}"))
    return Matrix(label, names, rows, None, confused)


def _cell_title(true: str, predicted: str, count: int, total: int) -> str:
    return f"true {true}, predicted {predicted}: {count:,} ({count / total:.1%})"
