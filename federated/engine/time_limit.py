"""Limits on how long, and for how many steps, a client is trained."""

from __future__ import annotations

import faulthandler
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from heliotrope.plugin_loading import refusing_exits

__all__ = ["HANG_SECONDS", "UNLIMITED", "Hung", "Limit", "Watch", "limit_of", "read_hang"]

HANG_SECONDS = 1.0  # beyond the limit on seconds: a step that is not over by then hangs
_DEAF_SECONDS = 10.0  # beyond that, for native code to end: about what a new process costs

Hung = Mapping[tuple[int, ...], str]
"""Clients trained or evaluated together that hung, deaf to signals, and what to say of them."""


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


def limit_of(seconds: float | None, clients: int = 1, max_steps: int | None = None) -> Limit:
    """Return the limit, from now on, of `clients` together that have `seconds` each."""
    return Limit(max_steps, seconds and seconds * clients, time.monotonic())


class Watch:
    """Keeps clients to their limits, whatever they do.

    What is only slow stops by `Limit.check`. What hangs is interrupted by an alarm. What hangs
    in native code, deaf to signals, ends this process, if there is a `note` in which to name
    the clients: whoever started the process finds them there by `read_hang`.
    """

    def __init__(self, note: Path | None = None) -> None:
        self._note = None if note is None else note.open("w")
        self.hung: Hung = {}  # those that need not be tried

    @contextmanager
    def over(self, clients: Sequence[int], limit: Limit) -> Iterator[None]:
        """Raise `TimeoutError` in code that goes on for a second beyond the clients' limit.

        And `ConfigError` where a plug-in's code would end this process, which others work in too.
        """
        reason = self.hung.get(tuple(clients))
        if reason is not None:
            raise TimeoutError(reason)
        with self._ending_process(clients, limit), _interrupting(limit), refusing_exits():
            yield

    @contextmanager
    def _ending_process(self, clients: Sequence[int], limit: Limit) -> Iterator[None]:
        """End this process if the block outlives the alarm: by a C thread, without the GIL."""
        if self._note is None or limit.seconds is None:
            yield
            return
        reason = f"{_over(limit.seconds)}, in code that could not be interrupted"
        self._note.seek(0)
        self._note.truncate()
        self._note.write(json.dumps([list(clients), reason]) + "\n")
        self._note.flush()
        seconds = limit.seconds + HANG_SECONDS + _DEAF_SECONDS
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._note)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def read_hang(note: Path) -> tuple[Hung, str] | None:
    """Return whom a `Watch` ended its process for and where it was, or None if it did not."""
    header, _, stacks = note.read_text().partition("\n")
    if not stacks:
        return None
    clients, reason = json.loads(header)
    return {tuple(clients): reason}, stacks


@contextmanager
def _interrupting(limit: Limit) -> Iterator[None]:
    """Raise `TimeoutError` by an alarm signal, a second beyond the limit.

    Python delivers it between two instructions of the main thread, the only one where there is
    such a limit. It may fall at an awkward one, such as the end of `torch.no_grad`: what is
    only slow should be stopped by `Limit.check`.
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
