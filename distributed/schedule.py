"""The learning rate over the run: a function of the step alone, so there is nothing to save."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from torch.optim import Optimizer

from heliotrope.training import Batch

__all__ = ["factor", "scheduled"]


def factor(schedule: str, step: int, steps: int) -> float:
    """Return what the learning rate is multiplied with at `step` (from 0) of `steps`."""
    done = step / steps
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0


def scheduled(
    batches: Iterable[Batch],
    optimizer: Optimizer,
    lr: float,
    schedule: str,
    place: tuple[int, int],
) -> Iterator[Batch]:
    """Yield `batches`, each with the optimizer's learning rate set for its step.

    `place` is the number of the first step, from 0, and the number of steps of the whole run.
    """
    first, steps = place
    for step, batch in enumerate(batches, start=first):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(schedule, step, steps)
        yield batch
