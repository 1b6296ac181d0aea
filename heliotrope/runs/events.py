"""Events of a run: one JSON object a line in metrics.jsonl, and progress on the terminal.

Events and their own fields (every one has `event` and `time`, in unix seconds):

    start     mode, name, seed, directions: {metric: max | min}, those that matter most first
    step      epoch, step/loss, step/lr
    train     epoch | round, train/loss, timing: {step_ms, examples_per_second ...}
    evaluate  epoch | round, <split>/<metric> ..., weights: "ema" if they are averaged ones
    clients   round, clients: [{client, examples, <metric> ...}], clients/<metric> ...
    failure   round | epoch, client | rank | worker, reason
    final     <split>/<metric> ..., and what panels are drawn from, such as confusion_matrix
    end       status, and the reason of one that failed or was interrupted

All but `start`, `failure` and `end` also carry `Progress`, cumulative since the run began, and
`seconds`, those of `heliotrope.runs.clock.Clock`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heliotrope.errors import RunFailedError, writing
from heliotrope.runs.clock import Clock, keep_seconds, kept_seconds
from heliotrope.system.redaction import masked

__all__ = [
    "Event",
    "Progress",
    "Tracker",
    "log_to",
    "parsed_event",
    "stop_logging",
    "strict",
]

Event = Mapping[str, Any]


@dataclass
class Progress:
    """Cumulative counts of a run; they survive a resume.

    Parameters
    ----------
    steps
        Optimizer steps: of the global model, or of all clients together.
    examples_seen
        Examples trained on, each as often as it was.
    bytes_up, bytes_down
        Sent by workers or clients, and to them, over all of these.
    """

    steps: int = 0
    examples_seen: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Tracker:
    """Appends events to a JSONL file, flushed line by line, and passes them to listeners.

    Listeners that have a `rewound` are told of a rewind, those that have a `close` are closed. A
    `RunFailedError` names a file that takes no more; as a context manager, it does not put that
    in the place of an error under way.
    """

    def __init__(self, path: Path, listeners: tuple[Callable[[Event], None], ...] = ()) -> None:
        self._path = path
        with writing(path):
            self._file = path.open("ab")
        self._listeners = listeners

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with nullcontext() if kind is None else suppress(RunFailedError):
            self.close()

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event. NaN is written as null: the file is strict JSON."""
        self.emit_all(event, [fields])

    def emit_all(self, event: str, each: Iterable[Mapping[str, Any]]) -> None:
        """Write several events of one kind at once."""
        now = round(time.time(), 3)
        records = [{"event": event, "time": now, **fields} for fields in each]
        lines = [_line(record) for record in records]
        with writing(self._path):
            self._file.write("".join(f"{line}\n" for line in lines).encode())
            self._file.flush()
        for listener in self._listeners:
            for record in records:
                listener(record)

    def progress(
        self, event: str, counts: Progress, clock: Clock, unit: Mapping[str, int], **fields: Any
    ) -> None:
        """Write one event with the cumulative counts and `unit`, such as `{"round": 3}`."""
        seconds = round(clock.seconds, 4)
        self.emit(event, **unit, **asdict(counts), seconds=seconds, **fields)

    @property
    def offset(self) -> int:
        """Bytes written so far; a checkpoint keeps it to know which events it holds."""
        return self._file.tell()

    def sync(self) -> None:
        """Make the events written so far durable, before a checkpoint refers to them."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def rewind(self, offset: int) -> float:
        """Drop the events after `offset`: a resumed run writes them again.

        Failures of workers are kept, for these will not happen again; a client's will. Returns
        the seconds that the run is known to have taken, from the events that are dropped and from
        what was kept of earlier ones; they stay known if the run ends before its next event.

        Raises `ValueError` if no event can end at `offset`.
        """
        if offset < 0:
            raise ValueError(f"events do not begin at {offset}")
        offset = min(offset, self._file.tell())  # the file may have been lost: no hole of zeros
        lines = _lines_after(self._path, offset)
        kept = [line for line in lines if _is_worker_failure(line)]
        known = kept_seconds(self._path.parent)
        seconds = max([known, *map(_seconds_of, lines)])
        if seconds > known:
            keep_seconds(self._path.parent, seconds)
        with writing(self._path):
            self._file.truncate(offset)
            self._file.seek(offset)
            for line in kept:
                self._file.write(line + b"\n")
            self._file.flush()
        for listener in self._listeners:
            getattr(listener, "rewound", lambda _: None)(offset)
        return seconds

    def close(self) -> None:
        """Make the file durable and close it."""
        try:
            with writing(self._path), self._file:
                self.sync()
        finally:
            for listener in self._listeners:
                getattr(listener, "close", lambda: None)()


def _lines_after(path: Path, offset: int) -> list[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().splitlines()


def parsed_event(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; None for half a line, by a process that was killed."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _is_worker_failure(line: bytes) -> bool:
    event = parsed_event(line) or {}
    return event.get("event") == "failure" and "client" not in event


def _seconds_of(line: bytes) -> float:
    return float((parsed_event(line) or {}).get("seconds", 0.0))


def _line(record: Mapping[str, Any]) -> str:
    """Return a record as strict JSON; few need the look at each number that `strict` takes."""
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(strict(record), allow_nan=False)


def strict(value: Any) -> Any:
    """Replace non-finite floats by None, at any depth."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


class _Log(logging.FileHandler):
    """A file of log lines; those that find no room on the disk are left out."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _Masked(logging.Formatter):
    """Lines without the passwords of addresses, such as in an exception of a tracker's client."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


def log_to(path: Path, who: str) -> logging.Handler:
    """Send the log lines of this process, marked `who`, to the run's log file (appending)."""
    handler = _Log(path, mode="a")
    handler.setFormatter(_Masked(f"%(asctime)s %(levelname)s [{who}] %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    return handler


def stop_logging(handler: logging.Handler) -> None:
    """Undo `log_to`."""
    logging.getLogger().removeHandler(handler)
    with suppress(OSError):  # no room for the last line
        handler.close()
