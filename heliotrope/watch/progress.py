"""How far a run has come, how long a round, epoch or step takes, and how long the rest will."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from heliotrope.report.record import number
from heliotrope.report.units import milliseconds_text, seconds_text
from heliotrope.runs.config_values import at

__all__ = ["Progress"]

_RECENT = 20  # events over which times are averaged: they change with the machine's other work


class Progress:
    """Rounds, epochs and steps of one run, from its events in order."""

    def __init__(self) -> None:
        self._units: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # done, seconds
        self._steps: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self.last = 0.0  # when the last event was written, in unix seconds

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event: `train` ends a round or an epoch, `step` a step."""
        self.last = number(event.get("time")) or self.last
        kind, seconds = event.get("event"), number(event.get("seconds"))
        if kind not in ("train", "step") or seconds is None:
            return
        done = event.get("steps") if kind == "step" else event.get("round", event.get("epoch"))
        if (count := number(done)) is not None:
            (self._steps if kind == "step" else self._units).append((count, seconds))

    @property
    def done(self) -> float:
        """Rounds or epochs that are done."""
        return self._units[-1][0] if self._units else 0.0

    def reached(self, mode: str, config: Mapping[str, Any]) -> str:
        """Return how far it is, such as `3 of 20 rounds`; without the total if none is known."""
        unit, total = "rounds" if mode == "federated" else "epochs", _total(mode, config)
        of_total = "" if total is None else f" of {total:g}"
        return f"{self.done:g}{of_total} {unit}" if mode else ""

    def pace(self, mode: str) -> str:
        """Return the time of a round, or of an epoch and a step."""
        unit = "a round" if mode == "federated" else "an epoch"
        times = ((_each(self._units), unit), (_each(self._steps), "a step"))
        return ", ".join(f"{milliseconds_text(x)} {what}" for x, what in times if x is not None)

    def left(self, mode: str, config: Mapping[str, Any]) -> str:
        """Return the time until its last round or epoch ends; empty if it cannot be known."""
        each, total = _each(self._units), _total(mode, config)
        if each is None or total is None or not self.last:
            return ""
        seconds = max(0, round((total - self.done) * each - (time.time() - self.last)))
        return seconds_text(seconds) if seconds >= 60 else f"{seconds} s"


def _each(counted: deque[tuple[float, float]]) -> float | None:
    """Return the seconds of one round, epoch or step, over the recent ones; two are needed."""
    if len(counted) < 2:  # the first one's time has the start of the run in it
        return None
    (first, begin), (last, end) = counted[0], counted[-1]
    return (end - begin) / (last - first) if last > first and end >= begin else None


def _total(mode: str, config: Mapping[str, Any]) -> float | None:
    return number(at(config, "federated.rounds" if mode == "federated" else "distributed.epochs"))
