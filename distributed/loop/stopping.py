"""Stopping in order, after a step that all ranks agree on.

A signal is heard in the process that it was sent to, the driver; its launcher passes it on to
the workers. They agree on a step to stop after, write a checkpoint and end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from ..communication.process_group import sum_over_ranks
from ..topology import Topology

__all__ = ["Agreement"]

_EVERY = 0.25  # seconds between two questions to all ranks; each costs 0.3 ms on two local ranks


class Agreement:
    """Lets all ranks stop after the same step, though each hears of it at a time of its own.

    `asked` says whether this rank was asked to. The ranks compare every so many steps, which
    follow from how long a step takes.
    """

    def __init__(self, asked: Callable[[], bool], topology: Topology, device: torch.device) -> None:
        self._asked = asked
        self._topology = topology
        self._device = device
        self._interval = self._left = 1
        self._compared = time.monotonic()
        self.reached = False

    def after_step(self) -> bool:
        """Return whether to stop here. Every rank must call it after every step."""
        if self._topology.world_size == 1:
            self.reached = self._asked()
            return self.reached
        self._left -= 1
        if self._left == 0:
            self._compare()
        return self.reached

    def _compare(self) -> None:
        now = time.monotonic()
        mine = torch.tensor([self._asked(), now - self._compared], dtype=torch.float64)
        asked, seconds = sum_over_ranks(mine, self._topology, self._device).tolist()
        self.reached = asked > 0
        step = seconds / self._topology.world_size / self._interval
        self._interval = self._left = max(1, min(2 * self._interval, int(_EVERY / step)))
        self._compared = now
