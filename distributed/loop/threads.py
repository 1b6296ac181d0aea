"""How many threads a step can use: more than its work is worth make it slower, not faster."""

from __future__ import annotations

import torch
from torch import nn

from heliotrope.config import DistributedConfig
from heliotrope.tasks import Task

from ..strategies.speed import operations_per_example

__all__ = ["useful_threads", "worker_threads"]

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


def worker_threads(
    cfg: DistributedConfig,
    model: nn.Module,
    task: Task,
    device: torch.device,
    workers: int,
    share: int,
) -> int:
    """Return the threads that one of `workers` uses of its `share`; as many as are asked for."""
    if cfg.cpus_per_worker is not None or device.type != "cpu":
        return share
    largest = -(-cfg.batch_size // (workers * cfg.accumulation_steps))
    return useful_threads(model, task, largest, share)
