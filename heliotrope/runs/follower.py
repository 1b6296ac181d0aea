"""Passes the events of a metrics.jsonl on to a tracker, in a thread beside the run.

The file is the record; a tracker only follows it. How far it has come is kept beside the file, so
that a slow tracker falls behind without loss, and the driver, or a resumed run, goes on where a
worker, or an attempt, has stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from heliotrope.runs.events import Event, parsed_event
from heliotrope.runs.sinks import SHOWN, Sink
from heliotrope.system.redaction import masked

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

_AT_ONCE = 500  # events
_PAUSE = 0.5  # seconds between two looks at the file
_LONGEST = 120.0  # seconds that the end of a run waits for a tracker that goes on taking events


class Follower:
    """A listener of a `Tracker`: `sink` is called in a thread, which reads `metrics`.

    `close` waits while events are taken, `patience` seconds for each lot, and tells `say` what
    was left behind, if that is given.
    """

    def __init__(
        self,
        sink: Sink,
        metrics: Path,
        kept: Path,
        patience: float,
        say: Callable[[str], None] | None,
    ) -> None:
        self._sink, self._metrics, self._kept = sink, metrics, kept
        self._patience, self._say = patience, say
        there = metrics.stat().st_size if metrics.exists() else 0
        self._offset = min(_number_in(kept), there)  # a rewound file is shorter
        self._taken = 0  # lots
        self._rewound = threading.Event()
        self._rewound.set()  # the sink is to begin
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._left = False
        self._status: str | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True, name=sink.name)
        self._thread.start()

    def __call__(self, event: Event) -> None:  # noqa: ARG002 - it is in the file by now
        """Look at the file: it has become longer."""
        self._woken.set()

    def wake(self) -> None:
        """Let the tracker know that the run begins or goes on."""
        self._woken.set()

    def rewound(self, offset: int) -> None:
        """Go on from `offset`: the events after it were taken back."""
        self._offset = min(self._offset, offset)
        self._rewound.set()
        self._woken.set()

    def close(self, status: str | None = None) -> None:
        """Wait for the tracker; `status` is how a run ended that has written no end."""
        self._status = status
        self._closing.set()
        self._woken.set()
        deadline = time.monotonic() + _LONGEST
        while self._thread.is_alive() and time.monotonic() < deadline:
            before = self._taken
            self._thread.join(self._patience)
            if self._taken == before:
                break
        if not self._thread.is_alive() and self._failure is None:
            return
        self._left = True
        behind = [event for event, _ in self._unread() if event["event"] in SHOWN]
        if self._say is None:
            _log.info("%s: %d events are left to the driver", self._sink.name, len(behind))
            return
        why = f"took nothing for {self._patience:g} s"
        if self._failure is not None:
            why = f"failed ({type(self._failure).__name__}: {masked(_first_line(self._failure))})"
        line = (
            f"{self._sink.name} {why}: {len(behind)} events are in {self._metrics} but not there, "
            "and it does not show the run's end"
        )
        _log.error(line)
        self._say(line)

    def _follow(self) -> None:
        """Pass on what is new whenever it is told to; after a failure, once more at the end."""
        while True:
            self._woken.wait()
            self._woken.clear()
            closing = self._closing.is_set()
            if self._failure is not None and not closing:
                continue
            try:
                self._failure = None
                self._pass_on(closing)
            except Exception as error:  # noqa: BLE001 - cosmetic beside the run's results
                self._failure = error
                _log.exception("%s failed; the run goes on without it", self._sink.name)
            if closing:
                break
            self._closing.wait(_PAUSE)
        try:
            self._sink.close()
        except Exception:  # noqa: BLE001 - all that it took is safe by now, or told as a failure
            _log.exception("%s could not be closed", self._sink.name)

    def _pass_on(self, closing: bool) -> None:
        while self._rewound.is_set():  # again, if the run was taken back while the sink began
            self._rewound.clear()
            self._kept.write_text(str(self._offset))
            self._sink.begin(self._last_steps())
        lots = self._unread()
        shown_before: set[int] = set()
        if closing and len(lots) > _AT_ONCE:  # what matters most, in case of a slow server
            first = [event for event, _ in lots if event["event"] in SHOWN[1:]]
            shown_before = {id(event) for event in first}
            self._take(first)
        for start in range(0, len(lots), _AT_ONCE):
            if self._left:
                return
            some = lots[start : start + _AT_ONCE]
            events = [event for event, _ in some if id(event) not in shown_before]
            self._take([event for event in events if event["event"] in SHOWN])
            for event in events:
                if event["event"] == "end":
                    self._sink.end(event["status"])
            self._offset = some[-1][1]
            self._kept.write_text(str(self._offset))
        if closing and self._status is not None and not self._left:
            self._sink.end(self._status)

    def _take(self, events: list[dict[str, Any]]) -> None:
        shown = [self._new_in(event) if event["event"] == "final" else event for event in events]
        if shown:
            self._sink.take(shown)
            self._taken += 1

    def _new_in(self, final: dict[str, Any]) -> dict[str, Any]:
        """Return the final event without what an evaluation after the same step has shown."""
        shown: dict[str, Any] = {}
        for event in map(_parsed, self._metrics.read_bytes().splitlines()):
            if event is None or event["event"] != "evaluate":
                continue
            if event["steps"] == final["steps"]:
                shown |= event
        return {
            name: value
            for name, value in final.items()
            if "/" not in name or name not in shown or shown[name] != value
        }

    def _unread(self) -> list[tuple[dict[str, Any], int]]:
        """Return the whole lines after the offset, each with the offset after it."""
        if not self._metrics.exists():
            return []
        with self._metrics.open("rb") as file:
            file.seek(self._offset)
            text, offset = file.read(), self._offset
        found = []
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            event = _parsed(line)
            if event is not None:
                found.append((event, offset))
        return found

    def _last_steps(self) -> int | None:
        """Return the steps of the last event before the offset that has any."""
        if not self._metrics.exists():
            return None
        with self._metrics.open("rb") as file:
            lines = file.read(self._offset).splitlines()
        events = filter(None, map(_parsed, reversed(lines)))
        return next((int(event["steps"]) for event in events if "steps" in event), None)


def _parsed(line: bytes) -> dict[str, Any] | None:
    event = parsed_event(line)
    return event if event is not None and "event" in event else None


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
