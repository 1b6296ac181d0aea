"""Stopping in order: the first SIGINT or SIGTERM is an errand, the second one an order.

A signal is heard in the process that it was sent to, the driver; its launcher passes it on to
the workers. They agree on a step to stop after, write a checkpoint and end.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch

from .attempt import Place
from .group import sum_over_ranks

__all__ = ["Agreement", "Stop", "signals_heard"]

_EVERY = 0.25  # seconds between two questions to all ranks; each costs 0.3 ms on two local ranks


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
def signals_heard() -> Iterator[Stop]:
    """Note the first SIGINT or SIGTERM inside the block; the second one ends it at once.

    Signals that are ignored stay so; off the main thread, which alone can hear, nothing is heard.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def hear(number: int, _frame: FrameType | None) -> None:
        if stop.asked():
            stop.leave()
        stop.signal = number

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number in heard:
            signal.signal(number, before[number])


class Agreement:
    """Lets all ranks stop after the same step, though each hears of it at a time of its own.

    `asked` says whether this rank was asked to. The ranks compare every so many steps, which
    follow from how long a step takes.
    """

    def __init__(self, asked: Callable[[], bool], place: Place, device: torch.device) -> None:
        self._asked = asked
        self._place = place
        self._device = device
        self._interval = self._left = 1
        self._compared = time.monotonic()
        self.reached = False

    def after_step(self) -> bool:
        """Return whether to stop here. Every rank must call it after every step."""
        if self._place.world_size == 1:
            self.reached = self._asked()
            return self.reached
        self._left -= 1
        if self._left == 0:
            self._compare()
        return self.reached

    def _compare(self) -> None:
        now = time.monotonic()
        mine = torch.tensor([self._asked(), now - self._compared], dtype=torch.float64)
        asked, seconds = sum_over_ranks(mine, self._place, self._device).tolist()
        self.reached = asked > 0
        step = seconds / self._place.world_size / self._interval
        self._interval = self._left = max(1, min(2 * self._interval, int(_EVERY / step)))
        self._compared = now
