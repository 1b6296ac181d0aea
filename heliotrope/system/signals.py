"""SIGINT and SIGTERM: heard as a request to stop, held back, or raised in the main thread.

An output that nobody reads any more is such a request, too: as if by SIGPIPE, which Python ignores.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = [
    "STOPPING",
    "STOP_CODES",
    "Stop",
    "code_of",
    "held_back",
    "output_closed",
    "signals_heard",
]

STOPPING = (signal.SIGINT, signal.SIGTERM)

STOP_CODES = {128 + number for number in (*STOPPING, signal.SIGPIPE)}
"""What a process that was asked to stop ends with."""


class Stop:
    """Whether this process has been asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def asked(self) -> bool:
        """Return whether a signal has come."""
        return self.signal is not None

    def leave(self) -> NoReturn:
        """End as the signal would have it: `KeyboardInterrupt`, or `SystemExit` with 128 + it.

        A process that stops because another one was asked to ends as if by SIGTERM.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))


@contextmanager
def signals_heard(repeated: float = 0.0) -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM inside the block; the second one ends it at once.

    One that comes within `repeated` seconds is taken for the first, passed on. Signals that are
    ignored stay so; off the main thread, which alone can hear, nothing is heard.
    """
    stop, first = Stop(), 0.0

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if not stop.asked():
            stop.signal, first = number, time.monotonic()
        elif time.monotonic() - first >= repeated:
            stop.leave()

    _hearing.append(stop)
    try:
        with _handled(hear):
            yield stop
    finally:
        _hearing.remove(stop)


_hearing: list[Stop] = []  # the blocks of `signals_heard` under way, the innermost last


def output_closed() -> None:
    """Ask to stop since nobody reads the output: a block of `signals_heard`, else by an exception.

    From any thread; the exception is `SystemExit` with 128 + SIGPIPE, as shells have it.
    """
    if not _hearing:
        raise SystemExit(128 + signal.SIGPIPE)
    if not _hearing[-1].asked():
        _hearing[-1].signal = signal.SIGPIPE


@contextmanager
def held_back() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back inside the block; what they do is done at its end.

    For calls of Ray's: an exception that a signal raises in the middle of one may end this
    process in Ray's way, with a code and a stack trace of its own.
    """
    came: list[int] = []
    try:
        with _handled(lambda number, _frame: came.append(number)):
            yield
    finally:
        for number in came[-1:]:
            signal.raise_signal(number)


@contextmanager
def _handled(hear: object) -> Iterator[None]:
    """Let `hear` handle the signals inside the block that are not ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, hear)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def code_of(error: BaseException | None) -> int | None:
    """Return the exit code of what a signal has raised; None of any other exception."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code in STOP_CODES:
        return error.code
    return None
