"""The runs below a directory, or in a storage, as they go on: what a page lacks is told on request.

Nothing is read while nobody asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heliotrope.errors import HeliotropeError
from heliotrope.report.summary import order_metrics
from heliotrope.report.units import metric_label
from heliotrope.runs.changed_keys import changed_keys
from heliotrope.runs.finding import FOREIGN, FoundRun, find_runs
from heliotrope.runs.storage import Storage
from heliotrope.system.redaction import masked
from heliotrope.watch.feed import Feed

__all__ = ["LiveRuns"]

_WAIT = 1.0  # seconds between two looks
_WAIT_STORAGE = 5.0  # as often as `heliotrope mirror` saves
_SHARE = 0.25  # of the time that looking may take
_AT_ONCE = 1 << 23  # bytes of events, of a run and about of all, that are read for one answer
_MOST_RUNS = 500  # the newest
_FILES = ("config.yaml", "metrics.jsonl", "result.json", "overrides.json")


class LiveRuns:
    """What pages are shown of the runs below `root`.

    With a `storage`, `root` is a copy of what matters there. Safe to be asked by several threads.
    """

    def __init__(self, root: Path, storage: Storage | None = None) -> None:
        self._root, self._storage = root, storage
        self._version = 0
        self._feeds: dict[Path, Feed] = {}
        self._numbers: dict[Path, int] = {}
        self._newest: list[int] = []
        self._metrics: list[tuple[str, str]] = []
        self._note = ""
        self._looked = self._fetched = -float("inf")
        self._wait = 0.0
        self._lock = threading.Lock()

    def changes(self, after: int) -> dict[str, Any]:
        """Return what a page lacks that has seen the version `after`; 0 is that of a new one.

        `version` is the one it has then, `wait` the seconds until it is to ask again, `newest` the
        numbers of all runs, and `runs` those that have changed, each with its row as texts and the
        events that are new, or all of them if it is `anew`.
        """
        with self._lock:
            if time.monotonic() - self._looked >= self._wait:
                self._look()
            changed = [feed.changes(after) for feed in self._feeds.values()]
            return {
                "version": self._version,
                "wait": self._wait,
                "note": self._note,
                "newest": self._newest,
                "metrics": self._metrics,
                "runs": [each for each in changed if each is not None],
            }

    def fetch(self) -> None:
        """Bring what has changed from the storage; raises `RunFailedError` if it is away."""
        if self._storage is not None:
            self._storage.follow(_FILES)
            self._fetched = time.monotonic()

    def _look(self) -> None:
        begun = time.monotonic()
        trouble = self._fetch_again(begun)
        self._version += 1
        found = find_runs(self._root) if self._root.is_dir() else []
        found = [run for run in found if run.state != FOREIGN]
        self._note = trouble or _note(found)
        found = found[:_MOST_RUNS]
        behind = self._read(found)
        changed = changed_keys(found)
        for run in found:
            below = run.path.relative_to(self._root)
            name = str(below) if below.name else run.path.resolve().name
            self._feeds[run.path].tell(
                run, name, self._state(run), changed.get(id(run), ""), self._version
            )
        self._newest = [self._numbers[run.path] for run in found]
        names = order_metrics(name for feed in self._feeds.values() for name in feed.metrics)
        self._metrics = [(name, metric_label(name)) for name in names]
        self._looked = time.monotonic()
        self._wait = 0.0 if behind else max(_WAIT, (self._looked - begun) / _SHARE)

    def _fetch_again(self, now: float) -> str:
        """Bring what is new in the storage, if it is time; return what is wrong with it."""
        if now - self._fetched < _WAIT_STORAGE:
            return ""
        try:
            self.fetch()
        except HeliotropeError as error:  # it may come back
            return masked(f"{error} It is tried again.")
        return ""

    def _read(self, found: Sequence[FoundRun]) -> bool:
        """Read new events of all runs, up to a limit; return whether there are more."""
        feeds = {run.path: self._feeds.get(run.path) for run in found}
        self._feeds, left = {}, _AT_ONCE
        for run in found:
            number = self._numbers.setdefault(run.path, len(self._numbers))
            feed = feeds[run.path] or Feed(run.path, number, self._version)
            self._feeds[run.path] = feed
            if left > 0:
                left -= feed.read(self._version, _AT_ONCE)  # what a line is depends on no other run
        return left <= 0 or any(feed.behind for feed in self._feeds.values())

    def _state(self, run: FoundRun) -> str:
        """Return its state; no lock in a storage tells whether a process has a run there."""
        unknown = self._storage is not None and run.state == "interrupted"
        return "no end yet" if unknown and not self._feeds[run.path].ended else run.state


def _note(found: Sequence[FoundRun]) -> str:
    if not found:
        return "There are no runs here yet. They appear once they begin."
    if len(found) > _MOST_RUNS:
        return f"The {_MOST_RUNS} newest of {len(found):,} runs."
    return ""
