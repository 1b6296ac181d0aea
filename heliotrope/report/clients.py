"""The panel that shows how well one model serves each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heliotrope.report.charts import Drawing, Spread, Studio
from heliotrope.report.record import RunRecord, drawable, number
from heliotrope.report.units import UNKNOWN, metric_text

__all__ = ["ClientPanel", "clients"]


@dataclass
class ClientPanel:
    """How well the model serves each client: charts, one fact row a run, the worst clients.

    `runs` are the positions of the runs that have clients.
    """

    measure: str
    runs: list[int] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    worst: list[list[str]] = field(default_factory=list)


def clients(runs: Sequence[RunRecord], labels: Sequence[str], studio: Studio) -> ClientPanel | None:
    """Show the spread of the number that matters most, over rounds and at the end."""
    events = [run.of_kind("clients") for run in runs]
    measure = _measure(events)
    if measure is None:
        return None
    rising = all(run.direction(measure) != "min" for run in runs)
    measured = [[e for e in some if _values(e, measure)] for some in events]
    flat = [v for some in measured for event in some for v in _values(event, measure)]
    pad = 0.05 * ((max(flat) - min(flat)) or 1)
    limits = (min(flat) - pad, max(flat) + pad)
    panel = ClientPanel(measure)
    ends = [sorted(_values(s[-1], measure), reverse=not rising) if s else [] for s in measured]
    for index, some in enumerate(measured):
        if some:
            panel.runs.append(index)
            panel.drawings.append(_spread(labels[index], some, measure, limits, index, studio))
            panel.facts.append([labels[index], *_client_facts(some[-1], ends[index], measure)])
            panel.worst += [[labels[index], *line] for line in _worst(some[-1], measure, rising)]
    alt = f"Client {measure} at the end, from the worst client to the best. " + " ".join(
        f"{label}: {metric_text(end[0])} to {metric_text(end[-1])}."
        for label, end in zip(labels, ends, strict=True)
        if end
    )
    last = Drawing("every client, at the end", alt, studio.ranked(ends))
    panel.drawings.append(last)
    return panel


def _spread(
    label: str,
    events: Sequence[Mapping[str, Any]],
    measure: str,
    limits: tuple[float, float],
    index: int,
    studio: Studio,
) -> Drawing:
    numbers = [number(event.get("round")) for event in events]
    rounds = [i + 1.0 if at is None or not drawable(at) else at for i, at in enumerate(numbers)]
    means = [number(event.get(f"clients/{measure}")) for event in events]
    mean = [(x, y) for x, y in zip(rounds, means, strict=True) if y is not None and drawable(y)]
    values = [_values(event, measure) for event in events]
    alt = (
        f"Client {measure} of {label} over rounds: worst to best from "
        f"{metric_text(min(values[0]))}-{metric_text(max(values[0]))} "
        f"to {metric_text(min(values[-1]))}-{metric_text(max(values[-1]))}."
    )
    svg = studio.spread(Spread(rounds, values, mean, limits), index)
    return Drawing(f"{label}, over rounds", alt, svg)


def _client_facts(event: Mapping[str, Any], ranked: Sequence[float], measure: str) -> list[str]:
    def at(fraction: float) -> str:
        return metric_text(ranked[min(len(ranked) - 1, int(fraction * len(ranked)))])

    mean = number(event.get(f"clients/{measure}"))
    mean_text = UNKNOWN if mean is None else metric_text(mean)
    return [f"{len(ranked):,}", at(0), at(0.1), at(0.5), at(1), mean_text]


def _worst(event: Mapping[str, Any], measure: str, rising: bool, most: int = 5) -> list[list[str]]:
    rows = [row for row in _client_rows(event) if _drawable(row.get(measure))]
    rows.sort(key=lambda row: float(row[measure]), reverse=not rising)
    return [
        [
            str(r.get("client", UNKNOWN)),
            str(r.get("examples", UNKNOWN)),
            metric_text(float(r[measure])),
        ]
        for r in rows[:most]
    ]


def _measure(events: Sequence[Sequence[Mapping[str, Any]]]) -> str | None:
    """Return the first number of the clients: the one that matters most comes first."""
    keys = (
        key
        for some in events
        for event in some
        for row in _client_rows(event)
        for key, value in row.items()
        if _drawable(value) and key not in ("client", "examples")
    )
    return next(keys, None)


def _values(event: Mapping[str, Any], measure: str) -> list[float]:
    return [float(row[measure]) for row in _client_rows(event) if _drawable(row.get(measure))]


def _client_rows(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = event.get("clients")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _drawable(value: object) -> bool:
    return (n := number(value)) is not None and drawable(n)
