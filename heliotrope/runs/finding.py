"""The runs below a directory: found by their files, each with its state; nothing is changed.

What others have left there is told apart from runs, and no link or pipe is opened.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from heliotrope.config import Mode
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.report.summary import order_metrics
from heliotrope.runs.config_values import MISSING, at, config_values
from heliotrope.runs.events import parsed_event
from heliotrope.runs.pruning import PRUNING
from heliotrope.system.locks import Holder, NoLocksError, lock
from heliotrope.system.regular_files import open_regular, read_regular

__all__ = ["FOREIGN", "FoundRun", "find_runs"]

FOREIGN = "not a run"

_RUN_FILES = frozenset({"config.yaml", "metrics.jsonl", "result.json"})
_MADE_FIRST = frozenset(
    {".lock", "overrides.json", PRUNING}
)  # in a job's directory, before any work
_CHECKPOINTS = "checkpoints"
_EVALUATED = ("evaluate", "final")
_MOST = 1 << 24  # bytes of a file that are read
_TAIL = 1 << 16  # bytes of the last events

_Event = Mapping[str, Any]


@dataclass(frozen=True)
class FoundRun:
    """A directory and what its files tell.

    Parameters
    ----------
    path
        Of the directory.
    state
        `completed`, `pruned` (given up by a search), `running`, `interrupted`, `failed`, `never
        begun`, `broken`, or `FOREIGN`.
    time
        When something was written there last, in seconds since the epoch.
    config, result
        `config.yaml` and `result.json`; empty without them.
    start, metrics
        The event that it started with, and the metrics at its end or last evaluation.
    overrides
        Those that it was started with, the swept ones first; None if its directory lacks them.
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
    overrides: Sequence[str] | None = None
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
    with _no_garbage():
        found = sorted(_below(str(root)), key=lambda run: str(run.path))
    return sorted(found, key=lambda run: -run.time)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Pause the search for garbage: all that is read of ten thousand runs is kept."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


def _below(root: str) -> Iterator[FoundRun]:
    waiting = [(root, False)]
    while waiting:
        path, of_a_run = waiting.pop()
        names, folders = set[str](), set[str]()
        try:
            with os.scandir(path) as scanned:
                for entry in scanned:
                    (folders if entry.is_dir(follow_symlinks=False) else names).add(entry.name)
            changed = os.stat(path).st_mtime  # noqa: PTH116 - a Path costs more than the call
        except OSError as error:
            yield FoundRun(Path(path), FOREIGN, 0.0, note=f"cannot be read: {error.strerror}")
            continue
        if names & _RUN_FILES or (names & _MADE_FIRST and not folders):
            yield _read_run(path, names | folders, changed)
            of_a_run = True
            folders.discard(_CHECKPOINTS)
        elif not folders and not of_a_run and path != root:
            yield FoundRun(Path(path), FOREIGN, changed, note="holds no file of a run")
        waiting += [(os.path.join(path, name), of_a_run) for name in folders]  # noqa: PTH118


def _read_run(path: str, names: set[str], changed: float) -> FoundRun:
    notes: list[str] = []
    config = _config(path, notes) if "config.yaml" in names else {}
    result = _result(path, notes) if "result.json" in names else {}
    start, last, evaluated, written = _events(f"{path}/metrics.jsonl", only_first=bool(result))
    if not start and not ("name" in config and config.keys() & set(get_args(Mode))):
        if names <= _MADE_FIRST:
            state = "running" if _held(path) else "never begun"
            overrides = _overrides(path) if "overrides.json" in names else None
            return FoundRun(Path(path), state, changed, overrides=overrides)
        return FoundRun(Path(path), FOREIGN, changed, note="; ".join(notes) or "of another program")
    told = result.get("metrics") if result else evaluated
    return FoundRun(
        Path(path),
        "running" if _held(path) else _state(result, last, notes),
        written or changed,
        config,
        result,
        start,
        {k: v for k, v in told.items() if "/" in k} if isinstance(told, dict) else {},
        _overrides(path) if "overrides.json" in names else None,
        "; ".join(notes),
    )


def _state(result: Mapping[str, Any], last: Mapping[str, Any], notes: list[str]) -> str:
    """Return the state of a run that no process has; `last` is its last event."""
    if notes:
        return "broken"
    if result:
        return str(result.get("status", "completed"))
    if not last:
        return "never begun"
    ended = last.get("event") == "end" and last.get("status") == "failed"
    return "failed" if ended else "interrupted"


def _held(path: str) -> bool:
    """Return whether a process has the run; its lock is tried only if the process may live."""
    try:
        holder = Holder.named(read_regular(f"{path}/.lock", _MOST))
        if holder is None or (holder.near and not holder.alive):
            return False
        with os.fdopen(open_regular(f"{path}/.lock")[0]) as file:
            try:
                return not lock(file, shared=True)
            except NoLocksError:
                return holder.alive
    except (OSError, ValueError, RecursionError):
        return False


def _config(path: str, notes: list[str]) -> Mapping[str, Any]:
    try:
        return config_values(_text(f"{path}/config.yaml"))
    except (OSError, ConfigError) as error:
        notes.append(_why("config.yaml", error))
        return {}


def _result(path: str, notes: list[str]) -> Mapping[str, Any]:
    try:
        result = json.loads(_text(f"{path}/result.json"))
        if isinstance(result, dict) and result:
            return result
        notes.append("result.json holds no result")
    except (OSError, ValueError, RecursionError) as error:
        notes.append(_why("result.json", error))
    return {}


def _overrides(path: str) -> tuple[str, ...] | None:
    """Return the overrides of a job; None if its file is none of ours."""
    try:
        saved = json.loads(_text(f"{path}/overrides.json"))
        swept = {str(each) for each in saved["swept"]}
        every = sorted(str(each) for each in saved["overrides"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return tuple(sorted(every, key=lambda override: override not in swept))


def _why(name: str, error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error).rstrip(".")
    return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"


def _events(path: str, *, only_first: bool) -> tuple[_Event, _Event, _Event, float | None]:
    """Return the start event, the last one, the last evaluation, and when the file was written.

    Without `only_first`, the last two are sought in the last lines. What is not there is empty.
    """
    try:
        descriptor, about = open_regular(path)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            begin = os.pread(file.fileno(), _TAIL, 0)
            whole = about.st_size <= len(begin)
            tail = begin if whole else os.pread(file.fileno(), _TAIL, about.st_size - _TAIL)
    except OSError:
        return {}, {}, {}, None
    first = parsed_event(begin.partition(b"\n")[0]) or {}
    start = first if first.get("event") == "start" else {}
    if only_first:
        return start, first, {}, about.st_mtime
    lines = tail.splitlines() if whole else tail.splitlines()[1:]  # what is left of a line
    recent = filter(None, map(parsed_event, reversed(lines)))
    last = next(recent, first)
    evaluated = next((e for e in chain([last], recent) if e.get("event") in _EVALUATED), {})
    return start, last, evaluated, about.st_mtime


def _text(path: str) -> str:
    return read_regular(path, _MOST).decode(errors="replace")
