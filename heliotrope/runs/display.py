"""What a person sees while a run goes on: a live bar on a terminal, plain lines when piped."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from heliotrope.runs.events import Event
from heliotrope.system.signals import output_closed

__all__ = ["OUTPUT_CLOSED", "Display"]

OUTPUT_CLOSED = "the command that its output was piped to, such as head, has ended"

_log = logging.getLogger(__name__)

_SPLITS = ("train", "validation", "test", "clients", "attack")  # as the bar shows them
_BEFORE = ("train", "privacy")  # of the training, in the line of an evaluation
_SHOWN = 2  # metrics of each in a line


class _Output(Console):
    """The standard output; what to do when nobody reads it any more is `closed`'s to say."""

    def __init__(self, closed: Callable[[], None]) -> None:
        width = None if Console().is_terminal else 120
        super().__init__(width=width, soft_wrap=True, emoji=False)
        self._closed = closed

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        self._closed()


class Display:
    """Turns events into output. A context manager; call it with each event.

    `unit` is "epoch" or "round", `total` how many the run will have. Once nobody reads the output,
    as with `| head`, the run is asked to stop, unless it is `over`: see `output_closed`.
    """

    def __init__(self, title: str, unit: str, total: int) -> None:
        self._console = _Output(self._closed)
        self.over = False
        self._title, self._unit, self._total = title, unit, total
        self._latest: dict[str, str] = {}  # metric -> its text
        self._main: dict[str, str] = {}  # split -> the metric that matters most
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False, table_column=_cut()),
                BarColumn(bar_width=20),
                MofNCompleteColumn(table_column=_whole()),
                TextColumn(f"{self._unit}s", table_column=_whole()),
                TimeElapsedColumn(table_column=_whole()),
                TimeRemainingColumn(table_column=_whole()),
                TextColumn("{task.fields[latest]}", markup=False, table_column=_cut()),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, latest="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind = event["event"]
        if kind == "failure":
            where = ", ".join(
                f"{key} {event[key]}"
                for key in ("round", "epoch", "rank", "worker", "client")
                if event.get(key) is not None
            )
            self.say(f"failed {where}: {event['reason']}", style="red")
        if kind not in ("train", "evaluate", "clients"):
            return
        self._latest |= {
            key: f"{key} {value:.4f}"
            for key, value in event.items()
            if "/" in key and isinstance(value, float)
        }
        self._main |= {key.partition("/")[0]: key for key in _first(event, 1)}
        if self._bar is not None:
            self._bar.update(
                self._task, completed=event[self._unit], latest="  ".join(self._shown())
            )
        elif kind in ("evaluate", "clients"):
            done = f"{self._unit} {event[self._unit]}/{self._total}"
            before = [self._main[split] for split in _BEFORE if split in self._main]
            train = before if kind == "evaluate" else []
            shown = "  ".join(self._latest[key] for key in train + _first(event, _SHOWN))
            self.say(f"{self._title}  {done}  {event['seconds']:.1f} s  {shown}")

    def _closed(self) -> None:
        if self.over:
            return
        _log.error("the run is stopped: %s", OUTPUT_CLOSED)
        with suppress(OSError):  # it may have been piped there, too
            sys.stderr.write(f"the run is stopped: {OUTPUT_CLOSED}\n")
        output_closed()

    def at(self, done: float) -> None:
        """Move the bar to `done` epochs or rounds, the present one counted as a fraction."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def _shown(self) -> list[str]:
        return [self._latest[self._main[split]] for split in _SPLITS if split in self._main]

    def say(self, line: str, style: str | None = None) -> None:
        """Print one line as it is, brackets included, above the bar if there is one."""
        self._console.print(line, style=style, markup=False, highlight=False)


def _first(event: Event, most: int) -> list[str]:
    """Return the first metrics of each split: those that matter most come first."""
    found: dict[str, list[str]] = {}
    for key, value in event.items():
        if "/" in key and isinstance(value, float):
            found.setdefault(key.partition("/")[0], []).append(key)
    return [key for keys in found.values() for key in keys[:most]]


def _whole() -> Column:
    """Return a column that a narrow terminal does not shorten."""
    return Column(no_wrap=True, overflow="ignore")


def _cut() -> Column:
    """Return a column that gives way first."""
    return Column(no_wrap=True, overflow="ellipsis", ratio=1)
