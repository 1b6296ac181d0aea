"""How far the present epoch is, for a person at a terminal: never a reason for a step to wait."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from heliotrope.runs.display import Display

__all__ = ["POSITION", "Reporter", "report_to_file", "shown_from_files"]

_EVERY = 0.2  # seconds between two reports, and between two looks at them

POSITION = ".position"  # in the run's directory while workers run: epochs done, as a fraction


class Reporter:
    """Calls `report` with the epochs done, as a fraction, now and then."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._due = time.monotonic() + _EVERY

    def before_step(self, epoch: int, step: int, steps: int) -> None:
        """Report, if it is time to, `step` of `steps` done after `epoch` epochs."""
        now = time.monotonic()
        if now >= self._due:
            self._report(epoch + step / steps)
            self._due = now + _EVERY


def report_to_file(path: Path) -> Callable[[float], None]:
    """Return a report that leaves the number in a file, written over each time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def report(epochs: float) -> None:
        with suppress(OSError):  # a full disk
            os.pwrite(descriptor, f"{epochs:16.6f}\n".encode(), 0)

    return report


@contextmanager
def shown_from_files(metrics: Path, position: Path, display: Display) -> Iterator[None]:
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
