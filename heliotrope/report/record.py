"""What one run left in its directory, read without trusting that it finished.

A run that crashed or is still going has no `result.json` and may have half a last line in
`metrics.jsonl`; both are told, neither is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliotrope.errors import RunDirectoryError

__all__ = [
    "Event",
    "Point",
    "RunRecord",
    "drawable",
    "metrics_of",
    "number",
    "progress_of",
    "read_run",
]

Event = Mapping[str, Any]
Point = tuple[float, float]

# What `result.json` calls a quantity -> what a progress event calls it.
_IN_PROGRESS = {
    "rounds": "round",
    "epochs": "epoch",
    "steps": "steps",
    "examples_seen": "examples_seen",
    "wall_seconds": "seconds",
    "bytes_up": "bytes_up",
    "bytes_down": "bytes_down",
}


@dataclass(frozen=True)
class RunRecord:
    """One run: its config, its events in order, and its result if it got that far.

    Parameters
    ----------
    directory
        Where it lies.
    config, config_text
        `config.yaml`, as values and as it is written; empty if it cannot be read.
    events
        Those of `metrics.jsonl`, in order.
    result
        `result.json`, None if there is none.
    notes
        What a reader must know before trusting the numbers, in plain words.
    """

    directory: Path
    config: Mapping[str, Any]
    config_text: str
    events: Sequence[Event]
    result: Mapping[str, Any] | None
    notes: Sequence[str] = ()

    @property
    def mode(self) -> str:
        """`distributed` or `federated`; `unknown` if the run died before it said so."""
        return str(self._said("mode", "mode") or "unknown")

    @property
    def name(self) -> str:
        """The experiment's name; failing that, the directory's."""
        name = self._said("experiment", "name") or self.config.get("name") or self.directory.name
        return str(name)

    @property
    def seed(self) -> object:
        """The run's seed, or None."""
        seed = self._said("seed", "seed")
        return self.config.get("seed") if seed is None else seed

    @property
    def fold(self) -> Any:
        """Which fold of a cross-validation it is tested on; None for the test split."""
        return self.config.get("fold")

    @property
    def status(self) -> str:
        """`completed` and the like from `result.json`, or what is known without it."""
        if self.result is not None:
            return str(self.result.get("status", "completed"))
        ends = self.of_kind("end")
        return f"{ends[-1].get('status', 'ended')}, no result" if ends else "did not finish"

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name; those of the last evaluation if there is no result."""
        if self.result is not None and isinstance(self.result.get("metrics"), Mapping):
            return metrics_of(self.result["metrics"])
        evaluated = [e for e in self.events if e.get("event") in ("evaluate", "final")]
        return metrics_of(evaluated[-1]) if evaluated else {}

    def direction(self, metric: str) -> str | None:
        """Return whether `max` or `min` is better of `metric`, or None where nothing says so."""
        directions = self._said("directions", "directions")
        directions = directions if isinstance(directions, Mapping) else {}
        directions = {"loss": "min", **directions}  # 0.1 did not write that of the loss down
        way = directions.get(metric.rpartition("/")[2])
        return way if way in ("max", "min") else None

    @property
    def bytes_exchanged(self) -> float | None:
        """Bytes sent up and down together, or None if neither was recorded."""
        sides = [self.quantity("bytes_up"), self.quantity("bytes_down")]
        known = [side for side in sides if side is not None]
        return sum(known) if known else None

    def quantity(self, key: str) -> float | None:
        """Return the number `result.json` holds under `key`, or the last one reported."""
        value = number((self.result or {}).get(key))
        if value is not None or key not in _IN_PROGRESS:
            return value
        reported = [number(event.get(_IN_PROGRESS[key])) for event in self.events]
        return next((x for x in reversed(reported) if x is not None), None)

    def detail(self, key: str) -> Mapping[str, Any] | None:
        """Return the mapping `result.json` holds under `key`, or None."""
        value = (self.result or {}).get(key)
        return value if isinstance(value, Mapping) else None

    def of_kind(self, kind: str) -> list[Event]:
        """Return all events of one kind, in order."""
        return [event for event in self.events if event.get("event") == kind]

    def metric_names(self) -> list[str]:
        """Return every `split/name` metric that has a curve, in order of appearance."""
        names: dict[str, None] = {}
        for event in self.events:
            if number(event.get("examples_seen")) is not None:
                names.update(dict.fromkeys(metrics_of(event)))
        return list(names)

    def curve(self, metric: str, axis: str) -> list[Point]:
        """Return (x, value) of `metric` in order; `axis` is a progress key, or `bytes`.

        Values that are not finite are kept: a curve that ends in NaN has diverged.
        """
        found = [event for event in self.events if metric in event]
        found = [event for event in found if event.get("event") != "final"] or found
        pairs = ((progress_of(event, axis), metrics_of(event).get(metric)) for event in found)
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [(x, y) for x, y in known if x >= 0 and drawable(x)]

    def _said(self, in_result: str, in_start: str) -> Any:
        value = (self.result or {}).get(in_result)
        starts = self.of_kind("start")
        return starts[-1].get(in_start) if value is None and starts else value


def read_run(directory: Path) -> RunRecord:
    """Read a run directory, finished or not.

    Raises `RunDirectoryError` (a `ConfigError`) naming the directory if it holds no run.
    """
    directory = Path(directory)
    missing = [f for f in ("config.yaml", "metrics.jsonl") if not (directory / f).is_file()]
    if missing:
        raise RunDirectoryError(
            f"{directory} is not a run directory: {' and '.join(missing)} not found. "
            "Name the directory that a run wrote, the one that holds metrics.jsonl."
        )
    notes: list[str] = []
    text = _text(directory / "config.yaml")
    return RunRecord(
        directory=directory,
        config=_read_config(text, notes),
        config_text=text,
        events=_read_events(directory / "metrics.jsonl", notes),
        result=_read_result(directory / "result.json", notes),
        notes=notes,
    )


def drawable(value: float) -> bool:
    """Tell whether a chart can show the number: it is finite, and no axis overflows."""
    return abs(value) < 1e30


def number(value: object) -> float | None:
    """Return a JSON number as a float (NaN and infinities too), anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def progress_of(event: Event, axis: str) -> float | None:
    """Return how far a run was at an event: a progress key, or `bytes`; None if it is not said."""
    if axis != "bytes":
        return number(event.get(axis))
    sides = [number(event.get("bytes_up")), number(event.get("bytes_down"))]
    known = [side for side in sides if side is not None]
    return sum(known) if known else None


def metrics_of(mapping: Mapping[str, Any]) -> dict[str, float]:
    """Return the `split/name` numbers; null, as a strict JSON writer puts it, is NaN."""
    named = {str(key): value for key, value in mapping.items() if "/" in str(key)}
    pairs = ((key, math.nan if v is None else number(v)) for key, v in named.items())
    return {key: value for key, value in pairs if value is not None}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_config(text: str, notes: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # noqa: BLE001 - whatever a YAML parser raises on a damaged file
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
        return {}
    return {str(k): v for k, v in config.items()} if isinstance(config, dict) else {}


def _read_events(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    lines = [line for line in _text(path).split("\n") if line.strip()]
    parsed = [_parse(line) for line in lines]
    damaged = [index for index, event in enumerate(parsed) if event is None]
    if damaged == [len(lines) - 1] and damaged != [0]:
        notes.append("metrics.jsonl: the last line is incomplete and was left out")
    elif damaged:
        notes.append(f"metrics.jsonl: {len(damaged)} unreadable line(s) left out")
    return [event for event in parsed if event is not None]


def _read_result(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        notes.append("no result.json: the run did not finish")
        return None
    result = _parse(_text(path))
    if result is None:
        notes.append("result.json cannot be read; these are the last values of metrics.jsonl")
    return result


def _parse(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
