"""The weight of every example of a split, before any forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from heliotrope.data import Examples
from heliotrope.errors import ConfigError
from heliotrope.tasks.base import Task

__all__ = ["example_weights"]

_BLOCK = 4096  # examples whose fields are held at once


def example_weights(task: Task, examples: Examples) -> Tensor:
    """Return the weight of each training example, int64 [N] on the CPU.

    Raises
    ------
    ConfigError
        If the task gives anything else than one whole number of at least 0 for each, or none but 0.
    """
    found = torch.empty(len(examples), dtype=torch.int64)
    for rows in torch.split(torch.arange(len(examples)), _BLOCK):
        if not len(rows):
            break
        weights = task.weights(examples.on_demand(rows))
        integers = not (weights.is_floating_point() or weights.is_complex())
        if not integers or weights.shape != rows.shape or int(weights.min()) < 0:
            raise ConfigError(
                f"The weights that {type(task).__name__} gives for {len(rows)} examples are "
                f"{weights.dtype} of shape {list(weights.shape)}. Return one whole number of at "
                "least 0 for each, as integers."
            )
        found[rows] = weights.to("cpu", torch.int64)
    if len(found) and not bool(found.any()):
        raise ConfigError(
            f"None of the {len(found)} training examples of data={task.facts.name} weighs anything "
            f"for {type(task).__name__}. Choose other data, or another task."
        )
    return found
