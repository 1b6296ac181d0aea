"""The loss of each example: what attacks on a model look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.data import Batch, Examples
from heliotrope.evaluation import evaluating, taken
from heliotrope.tasks import Task

__all__ = ["losses_of"]


def losses_of(
    model: nn.Module, task: Task, examples: Examples, positions: Tensor, batch_size: int
) -> Tensor:
    """Return the loss per unit of weight of the examples at `positions`, int64 [N]: float64 [N].

    At most `batch_size` go through the model at once. The task must not be `joint`.

    Losses are taken in float64: in float32 that of an example which is known by heart is 0, like
    that of any other, and attacks see no difference.
    """
    found = [torch.empty(0, dtype=torch.float64)]
    with evaluating(model):
        for some in torch.split(positions, batch_size):
            batch = taken(examples, some, model)
            losses = _in_double(task, task.call(model, batch), batch)
            found.append((losses / task.weights(batch).clamp(min=1)).double().cpu())
    return torch.cat(found)


def _in_double(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    doubled = {n: v.double() if v.is_floating_point() else v for n, v in batch.items()}
    try:
        return task.losses(outputs.double(), doubled)
    except Exception:  # noqa: BLE001 - a task of one's own may know float32 alone
        return task.losses(outputs.float(), batch)
