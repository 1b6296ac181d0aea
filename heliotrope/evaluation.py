"""THE evaluation: one function gives the numbers of both modes, of every split and client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from heliotrope.data import Split
from heliotrope.metrics import ClassificationMetrics
from heliotrope.tasks import Task

__all__ = ["evaluate", "named"]


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    batch_size: int,
    indices: Tensor | Sequence[int] | None = None,
) -> ClassificationMetrics:
    """Return the metrics of `model` over `split`, or over its examples at `indices`.

    The model is put into evaluation mode and back. Metrics of disjoint index sets add up to
    the metrics of their union.
    """
    device = next(model.parameters()).device
    positions = None if indices is None else torch.as_tensor(indices, dtype=torch.int64)
    count = len(split) if positions is None else len(positions)
    total = task.no_metrics()
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for start in range(0, count, batch_size):
            chosen = (
                slice(start, start + batch_size)
                if positions is None
                else positions[start : start + batch_size]
            )
            outputs = model(split.inputs[chosen].to(device))
            total = total + task.measure(outputs, split.targets[chosen].to(device))
    model.train(was_training)
    return total


def named(metrics: ClassificationMetrics, split: str) -> dict[str, float]:
    """Return the computed metrics under `split/name`, such as `test/accuracy`."""
    return {f"{split}/{name}": value for name, value in metrics.compute().items()}
