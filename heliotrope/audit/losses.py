"""The loss of each example: what attacks on a model look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.data import Examples
from heliotrope.evaluation import evaluating, taken
from heliotrope.tasks import Task

__all__ = ["losses_of"]


def losses_of(
    model: nn.Module, task: Task, examples: Examples, positions: Tensor, batch_size: int
) -> Tensor:
    """Return the loss per unit of weight of the examples at `positions`, int64 [N]: float64 [N].

    At most `batch_size` go through the model at once. The task must not be `joint`.
    """
    found = [torch.empty(0, dtype=torch.float64)]
    with evaluating(model):
        for some in torch.split(positions, batch_size):
            batch = taken(examples, some, model)
            outputs = task.call(model, batch).float()
            weights = task.weights(batch).clamp(min=1)
            found.append((task.losses(outputs, batch) / weights).double().cpu())
    return torch.cat(found)
