"""The processes below this one: found, told from others, and ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["children", "end", "killed_once_told"]

_LOOK_SECONDS = 0.01
_SIGTERM = 1 << (signal.SIGTERM - 1)


def children() -> list[int]:
    """Return the process ids of all descendants; none where there is no /proc."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                below.setdefault(int(parent), []).append(int(stat.parent.name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        next_ones = below.get(waiting.pop(), [])
        found += next_ones
        waiting += next_ones
    return found


def end(processes: Sequence[int]) -> None:
    """Kill those of `processes` that are still there."""
    for process in processes:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def killed_once_told(processes: Sequence[int]) -> Iterator[None]:
    """Kill each of `processes`, which do not hear SIGTERM, once it is sent one inside the block."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_LOOK_SECONDS):
            end([process for process in processes if _is_told(process)])

    thread = threading.Thread(target=watch, daemon=True, name="children")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_told(process: int) -> bool:
    """Return whether a SIGTERM awaits that a process hears it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    waiting = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return any(int(mask, 16) & _SIGTERM for mask in waiting)
