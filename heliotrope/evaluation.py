"""THE evaluation: one function gives the numbers of both modes, of every split and client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from heliotrope.data import Batch, Examples
from heliotrope.metrics import Metrics
from heliotrope.tasks import Task
from heliotrope.training.joint import Gather, alone

__all__ = ["evaluate", "evaluating", "named", "taken"]


def evaluate(
    model: nn.Module,
    task: Task,
    examples: Examples,
    batch_size: int,
    indices: Tensor | Sequence[int] | None = None,
    gather: Gather = alone,
) -> Metrics:
    """Return the metrics of `model` over `examples`, or over those at `indices`.

    `indices` are int64 [N]; at most `batch_size` examples go through the model at once. The model
    is put into evaluation mode and back. Metrics of disjoint index sets add up to
    the metrics of their union. With a joint task, each example is compared with all that are
    measured here, and those that `gather` brings from other processes.
    """
    positions = torch.arange(len(examples)) if indices is None else torch.as_tensor(indices)
    total = task.metrics.zero()
    with evaluating(model):
        if task.joint:
            parts = [
                task.call(model, taken(examples, some, model))
                for some in torch.split(positions, batch_size)
            ]
            candidates, first = gather(torch.cat(parts))
            for part in filter(len, parts):
                total = total + task.metrics.measure(*task.compared(part, candidates, first))
                first += len(part)
            return total
        for start in range(0, len(positions), batch_size):
            batch = taken(examples, positions[start : start + batch_size], model)
            total = total + task.metrics.measure(task.call(model, batch), batch)
    return total


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have `model` in evaluation mode, and no gradients, inside the block."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        yield
    model.train(was_training)


def taken(examples: Examples, positions: Tensor, model: nn.Module) -> Batch:
    """Return the batch of the examples at `positions`, int64 [B], where `model` is."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in examples.take(positions).items()}


def named(metrics: Metrics, split: str) -> dict[str, float]:
    """Return the computed metrics under `split/name`, such as `test/accuracy`."""
    return {f"{split}/{name}": value for name, value in metrics.compute().items()}
