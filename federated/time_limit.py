"""Limits on how long, and for how many steps, a client is trained."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

__all__ = ["HANG_SECONDS", "UNLIMITED", "Limit", "not_hanging"]

HANG_SECONDS = 1.0  # beyond the limit on seconds: a step that is not over by then hangs


@dataclass(frozen=True)
class Limit:
    """Where training stops: after `max_steps` local steps in order, after `seconds` in error.

    `began` is when the seconds began to run, by `time.monotonic`.
    """

    max_steps: int | None = None
    seconds: float | None = None
    began: float = 0.0

    def check(self) -> None:
        """Raise `TimeoutError` if the time is over; to be called between two steps."""
        if self.seconds is not None and time.monotonic() - self.began > self.seconds:
            raise _over(self.seconds)


UNLIMITED = Limit()


@contextmanager
def not_hanging(limit: Limit) -> Iterator[None]:
    """Raise `TimeoutError` in code that goes on for a second beyond the limit.

    By an alarm signal, which Python delivers between two instructions of the main thread, the
    only one where there is such a limit. It may fall at an awkward one, such as the end of
    `torch.no_grad`: what is only slow should be stopped by `Limit.check`.
    """
    if limit.seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    seconds = limit.seconds

    def expired(*_: object) -> NoReturn:
        raise _over(seconds)

    before = signal.signal(signal.SIGALRM, expired)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds + HANG_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


def _over(seconds: float) -> TimeoutError:
    return TimeoutError(f"not done after {seconds:g} s")
