"""The loss of single steps, for metrics.jsonl: kept where it is, and told many at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from heliotrope.runs.clock import Clock
from heliotrope.runs.events import Progress, Tracker

__all__ = ["StepLog"]

_TOGETHER = 64  # steps that are told at once: one exchange between ranks, one wait for a GPU


class StepLog:
    """Tells of every `every`-th step: `step/loss`, the mean over the global batch, `step/lr`.

    `sum_over_ranks` adds float64 numbers [n]; every rank must call the methods alike. `tracker`
    is rank 0's.
    """

    def __init__(
        self,
        every: int,
        optimizer: Optimizer,
        tracker: Tracker | None,
        sum_over_ranks: Callable[[list[float]], list[float]],
    ) -> None:
        self._every = every
        self._optimizer = optimizer
        self._tracker = tracker
        self._sum = sum_over_ranks
        self._last: Tensor | None = None
        self._losses: list[Tensor] = []
        self._weights: list[int] = []
        self._fields: list[dict[str, Any]] = []

    def note_loss(self, loss_sum: Tensor) -> None:
        """Take the sum of this rank's losses in the step just done, []."""
        self._last = loss_sum

    def after_step(self, epoch: int, weight: int, counts: Progress, clock: Clock) -> None:
        """Keep what there is to tell of the step just done, on examples of `weight` together."""
        if counts.steps % self._every or self._last is None:
            return
        self._losses.append(self._last)
        self._weights.append(weight)
        if self._tracker is not None:
            seconds, lr = round(clock.seconds, 4), self._optimizer.param_groups[0]["lr"]
            self._fields.append({"epoch": epoch, **vars(counts), "seconds": seconds, "step/lr": lr})
        if len(self._losses) == _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Tell what is kept."""
        if not self._losses:
            return
        sums = self._sum(torch.stack(self._losses).tolist())
        if self._tracker is not None:
            steps = zip(self._fields, sums, self._weights, strict=True)
            self._tracker.emit_all(
                "step", [{**fields, "step/loss": loss / weight} for fields, loss, weight in steps]
            )
        self._losses, self._weights, self._fields = [], [], []
