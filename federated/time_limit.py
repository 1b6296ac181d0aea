"""A limit on the time that a piece of Python code may take."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["time_limit"]

_log = logging.getLogger(__name__)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeoutError` in the block once it has run for `seconds`; None sets no limit.

    By an alarm signal, so that code that hangs is interrupted as well. Python delivers signals
    to the main thread only: elsewhere there is no limit, which the log says.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        _log.warning("no limit of %g s: this is not the main thread", seconds)
        yield
        return

    def expired(*_: object) -> NoReturn:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
