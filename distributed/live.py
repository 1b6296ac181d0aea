"""How far the present epoch is, for a person at a terminal: never a reason for a step to wait."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from heliotrope.display import Display

__all__ = ["POSITION", "in_file", "reported", "shown"]

_Item = TypeVar("_Item")

_EVERY = 0.2  # seconds between two reports, and between two looks at them

POSITION = ".position"  # in the run's directory while workers run: epochs done, as a fraction


def reported(
    items: Iterable[_Item], count: int, before: float, report: Callable[[float], None]
) -> Iterator[_Item]:
    """Pass `items` on, reporting now and then `before` + the share of the `count` items done."""
    due = time.monotonic() + _EVERY
    for done, item in enumerate(items):
        now = time.monotonic()
        if now >= due:
            report(before + done / count)
            due = now + _EVERY
        yield item


def in_file(path: Path) -> Callable[[float], None]:
    """Return a report that leaves the number in a file, written over each time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def report(epochs: float) -> None:
        with suppress(OSError):  # a full disk
            os.pwrite(descriptor, f"{epochs:16.6f}\n".encode(), 0)

    return report


@contextmanager
def shown(metrics: Path, position: Path, display: Display) -> Iterator[None]:
    """Show on `display` what other processes append to `metrics` and report in `position`."""
    with metrics.open("rb") as file:
        file.seek(0, os.SEEK_END)
        stop = threading.Event()

        def watch() -> None:
            rest = b""
            while True:
                last = stop.wait(_EVERY / 2)
                *lines, rest = (rest + file.read()).split(b"\n")
                for line in lines:
                    display(json.loads(line))
                _show_position(position, display)
                if last:
                    return

        thread = threading.Thread(target=watch, daemon=True, name="display")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            position.unlink(missing_ok=True)


def _show_position(path: Path, display: Display) -> None:
    try:
        display.at(float(path.read_text()))
    except (OSError, ValueError):  # not there yet, or half written
        return
