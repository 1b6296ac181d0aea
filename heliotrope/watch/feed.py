"""One run as it goes on: its curves, of which each event is sent to a page once, and its row."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliotrope.report.charts import AXES
from heliotrope.report.record import metrics_of, progress_of
from heliotrope.report.units import age_text, metric_label, metric_text
from heliotrope.runs.events import parsed_event, strict
from heliotrope.runs.finding import FoundRun
from heliotrope.watch.appended_lines import AppendedLines
from heliotrope.watch.progress import Progress

__all__ = ["Feed"]

_MOST_EVENTS = 500  # of a kind that are kept; of more, every second, every fourth, ...
_UNFINISHED = ("running", "interrupted")


@dataclass(frozen=True)
class _Kept:
    version: int
    kind: str
    values: Mapping[str, float | None]


class Feed:
    """The events of one run that have curves, each with the version in which it was read."""

    def __init__(self, path: Path, number: int, version: int) -> None:
        self._number = number
        self._lines = AppendedLines(path / "metrics.jsonl")
        self._row: dict[str, str] = {}
        self._row_version = version
        self._restart(version)

    def _restart(self, version: int) -> None:
        self._begun = version  # pages of an earlier version drop what they have
        self._events: list[_Kept] = []
        self._counted: Counter[str] = Counter()
        self._stride: Counter[str] = Counter()
        self.metrics: dict[str, None] = {}
        self.ended = False  # the last event says that the run has
        self.progress = Progress()

    @property
    def behind(self) -> bool:
        """Whether more is to be read."""
        return self._lines.behind

    def read(self, version: int, most: int) -> int:
        """Read up to `most` bytes of what is new; return how many there were."""
        anew, lines = self._lines.read(most)
        if anew:
            self._restart(version)
        for line in lines:
            event = parsed_event(line)
            if event is not None:
                self._take(event, version)
        return sum(map(len, lines))

    def _take(self, event: Mapping[str, Any], version: int) -> None:
        kind = str(event.get("event"))
        self.ended = kind == "end"
        self.progress.take(event)
        metrics: Mapping[str, float] = metrics_of(event)
        if kind == "final":  # the last evaluation again, and what only it tells
            metrics = {name: value for name, value in metrics.items() if name not in self.metrics}
        places = {axis: x for axis in AXES if (x := progress_of(event, axis)) is not None}
        if not metrics or not places:
            return
        self.metrics |= dict.fromkeys(metrics)
        if self._counted[kind] % (1 << self._stride[kind]) == 0:
            self._events.append(_Kept(version, kind, strict({**places, **metrics})))
        self._counted[kind] += 1
        if self._counted[kind] >> self._stride[kind] > _MOST_EVENTS:
            self._thin_out(kind, version)

    def _thin_out(self, kind: str, version: int) -> None:
        """Leave out every second event of a kind, and send the run anew."""
        self._stride[kind] += 1
        self._begun = version
        kept, seen = [], 0
        for event in self._events:
            if event.kind != kind or seen % 2 == 0:
                kept.append(event)
            seen += event.kind == kind
        self._events = kept

    def tell(self, run: FoundRun, name: str, state: str, changed: str, version: int) -> None:
        """Bring its row of the table up to date, as texts."""
        progress, unfinished = self.progress, state in _UNFINISHED or run.state in _UNFINISHED
        row = {
            "name": name,
            "state": state,
            "mode": run.mode,
            "experiment": run.experiment,
            "changed": run.note or changed,
            "metric": _metric(run),
            "progress": progress.reached(run.mode, run.config),
            "pace": progress.pace(run.mode),
            "left": progress.left(run.mode, run.config) if state == "running" else "",
            "age": f"{age_text(run.age)} ago" if unfinished else "",
        }
        if row != self._row:
            self._row, self._row_version = row, version

    def changes(self, after: int) -> dict[str, Any] | None:
        """Return what a page that has version `after` lacks; None if nothing."""
        anew = self._begun > after
        first = 0 if anew else bisect_right(self._events, after, key=lambda event: event.version)
        if not anew and self._row_version <= after and first == len(self._events):
            return None
        events = [event.values for event in self._events[first:]]
        return {"id": self._number, "anew": anew, "row": self._row, "events": events}


def _metric(run: FoundRun) -> str:
    if run.metric is None:
        return ""
    value = metrics_of(run.metrics).get(run.metric)
    return "" if value is None else f"{metric_label(run.metric)} {metric_text(value)}"
