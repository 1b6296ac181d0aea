"""The runs below a directory: found by their files, each with its state; nothing is changed.

What others have left there is told apart from runs, and no link or pipe is opened.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from heliotrope.config import Mode
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.report.summary import order_metrics
from heliotrope.runs.config_values import MISSING, at, config_values
from heliotrope.system.locks import Holder, NoLocksError, lock

__all__ = ["FOREIGN", "FoundRun", "find_runs"]

FOREIGN = "not a run"

_RUN_FILES = frozenset({"config.yaml", "metrics.jsonl", "result.json"})
_MADE_FIRST = frozenset({".lock", "overrides.json"})  # in a job's directory, before any work
_CHECKPOINTS = "checkpoints"
_MOST = 1 << 24  # bytes of a file that are read
_TAIL = 1 << 16  # bytes of the last events


@dataclass(frozen=True)
class FoundRun:
    """A directory and what its files tell.

    Parameters
    ----------
    path
        Of the directory.
    state
        `completed`, `running`, `interrupted`, `failed`, `never begun`, `broken`, or `FOREIGN`.
    time
        When something was written there last, in seconds since the epoch.
    config, result
        `config.yaml` and `result.json`; empty without them.
    start, metrics
        The event that it started with, and the metrics at its end or last evaluation.
    note
        What is wrong with it; empty if nothing is.
    """

    path: Path
    state: str
    time: float
    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def mode(self) -> str:
        """`distributed` or `federated`; empty if nothing says so."""
        return str(self.result.get("mode") or self.start.get("mode") or "")

    @property
    def experiment(self) -> str:
        """The experiment's name; empty if nothing says so."""
        return str(self.config.get("name") or self.start.get("name") or "")

    @property
    def age(self) -> float:
        """Seconds since something was written there."""
        return max(0.0, time.time() - self.time)

    @property
    def metric(self) -> str | None:
        """The name of the metric that it is known by: of the test split, if it can be no loss."""
        named = [name for name in order_metrics(self.metrics) if self.metrics[name] is not None]
        scores = [name for name in named if not name.endswith("/loss")]
        return next(iter(scores or named), None)

    def value(self, name: str) -> Any:
        """Return what `name` is: a field above, a metric, a key of result.json or config.yaml."""
        if name in ("state", "mode", "experiment", "age"):
            return getattr(self, name)
        if name in self.metrics:
            return self.metrics[name]
        found = at(self.result, name)
        return at(self.config, name) if found is MISSING else found


def find_runs(root: Path) -> list[FoundRun]:
    """Return the runs at and below `root`, the newest first, and directories that are none.

    Raises `RunDirectoryError` if there is no such directory.
    """
    if not root.is_dir():
        raise RunDirectoryError(f"{root} is no directory. Name one that holds runs.")
    found = sorted(_below(root), key=lambda run: str(run.path))
    return sorted(found, key=lambda run: -run.time)


def _below(root: Path) -> Iterator[FoundRun]:
    waiting = [(root, False)]
    while waiting:
        path, of_a_run = waiting.pop()
        try:
            with os.scandir(path) as scanned:
                entries = list(scanned)
            changed = path.stat().st_mtime
        except OSError as error:
            yield FoundRun(path, FOREIGN, 0.0, note=f"cannot be read: {error.strerror}")
            continue
        names = {entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)}
        folders = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        if names & _RUN_FILES or (".lock" in names and not folders):
            yield _read_run(path, names | folders, changed)
            of_a_run = True
            folders.discard(_CHECKPOINTS)
        elif not folders and not of_a_run and path != root:
            yield FoundRun(path, FOREIGN, changed, note="holds no file of a run")
        waiting += [(path / name, of_a_run) for name in folders]


def _read_run(path: Path, names: set[str], changed: float) -> FoundRun:
    notes: list[str] = []
    config = _config(path, notes) if "config.yaml" in names else {}
    result = _result(path, notes) if "result.json" in names else {}
    events, written = _events(path / "metrics.jsonl", only_first=bool(result))
    start = events[0] if events and events[0].get("event") == "start" else {}
    if not start and not ("name" in config and config.keys() & set(get_args(Mode))):
        if names <= _MADE_FIRST:
            state = "running" if _held(path) else "never begun"
            return FoundRun(path, state, changed)
        return FoundRun(path, FOREIGN, changed, note="; ".join(notes) or "of another program")
    evaluated = [event for event in events if event.get("event") in ("evaluate", "final")]
    told = result.get("metrics") if result else evaluated[-1] if evaluated else {}
    metrics = {k: v for k, v in told.items() if "/" in k} if isinstance(told, dict) else {}
    state = "running" if _held(path) else _state(result, events, notes)
    return FoundRun(
        path, state, written or changed, config, result, start, metrics, "; ".join(notes)
    )


def _state(result: Mapping[str, Any], events: list[dict[str, Any]], notes: list[str]) -> str:
    """Return the state of a run that no process has."""
    if notes:
        return "broken"
    if result:
        return str(result.get("status", "completed"))
    if not events:
        return "never begun"
    last = events[-1]
    ended = last.get("event") == "end" and last.get("status") == "failed"
    return "failed" if ended else "interrupted"


def _held(path: Path) -> bool:
    """Return whether a process has the run; its lock is tried only if the process may live."""
    try:
        with os.fdopen(_opened(path / ".lock")) as file:
            holder = Holder.named_in(file)
            if holder is None or (holder.near and not holder.alive):
                return False
            try:
                return not lock(file, shared=True)
            except NoLocksError:
                return holder.alive
    except (OSError, ValueError):
        return False


def _config(path: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        return config_values(_text(path / "config.yaml"))
    except (OSError, ConfigError) as error:
        notes.append(_why("config.yaml", error))
        return {}


def _result(path: Path, notes: list[str]) -> Mapping[str, Any]:
    try:
        result = json.loads(_text(path / "result.json"))
        if isinstance(result, dict) and result:
            return result
        notes.append("result.json holds no result")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(_why("result.json", error))
    return {}


def _why(name: str, error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error).rstrip(".")
    return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"


def _events(path: Path, *, only_first: bool) -> tuple[list[dict[str, Any]], float | None]:
    """Return the first event and, if asked, the last ones, and when the file was written.

    Lines that are not whole are left out.
    """
    try:
        with os.fdopen(_opened(path), "rb") as file:
            about = os.fstat(file.fileno())
            lines = [file.readline(_TAIL)]
            if not only_first:
                if about.st_size - _TAIL > len(lines[0]):
                    file.seek(about.st_size - _TAIL)
                    file.readline()  # what is left of a line
                lines += file.read(_TAIL).splitlines()
    except OSError:
        return [], None
    parsed = (_event(line) for line in lines)
    return [event for event in parsed if event is not None], about.st_mtime


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _text(path: Path) -> str:
    with os.fdopen(_opened(path), "rb") as file:
        return file.read(_MOST).decode(errors="replace")


def _opened(path: Path) -> int:
    """Return the descriptor of a regular file; `OSError` for a link, a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(None, "not a regular file")
