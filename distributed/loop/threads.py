"""How many threads a step can use: more than its work is worth make it slower, not faster."""

from __future__ import annotations

from torch import nn

from heliotrope.tasks import Task

from ..strategies.speed import operations_per_example

__all__ = ["useful_threads"]

# Measured on two cores: steps of 0.5, 20 and 90 million operations took 0.16, 0.75 and 1.32 ms in
# one thread, 0.20, 0.76 and 1.24 ms in two. On a busy machine, where threads wait for each other
# at every operator, the smallest took 20 ms in two.
_OPERATIONS_PER_THREAD = 50e6


def useful_threads(model: nn.Module, task: Task, batch_size: int, most: int) -> int:
    """Return 1 to `most` threads for steps of `batch_size` examples.

    It follows from the operations of a step, not from a measurement: the sum of a gradient
    depends on the number of threads, and a run must be repeatable.
    """
    operations = operations_per_example(model, task) * batch_size
    return max(1, min(most, int(operations / _OPERATIONS_PER_THREAD)))
