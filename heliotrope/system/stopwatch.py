"""Where the time of a training step goes: two readings of a clock for each of its parts."""

from __future__ import annotations

import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of named laps; reading it costs under a microsecond.

    On a GPU a lap is the time until the kernels are queued, not until they are done.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps = 0
        self._last = 0.0

    def start(self) -> None:
        """Begin a lap that the time before does not count for."""
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap, or since `start`, to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def reset(self) -> None:
        """Forget all laps and steps."""
        self.seconds, self.steps = {}, 0
