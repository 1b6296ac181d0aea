"""Whether a user's task is one that a model can be trained for, said before anything is started."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from heliotrope.metrics import Batch, MetricSet
from heliotrope.tasks.base import Task

__all__ = ["outputs_of_zeros", "why_mixing", "why_unusable"]

_ROUNDING = 1e-4  # of a number, whose last digits may differ with the number of examples


def why_unusable(task: Task) -> str | None:
    """Return what is wrong with a task and how to mend it; None if a model can be trained for it.

    It is tried on two examples of zeros, with outputs of zeros, and random ones of each by itself.
    """
    lacking = [name for name in task.inputs if name not in task.facts.example]
    if lacking or not task.inputs:
        named = ", ".join(lacking) or "nothing"
        there = ", ".join(name for name in task.facts.example if name not in task.targets)
        return (
            f"its inputs name {named}, but data={task.facts.name} has {there}. Name some of these."
        )
    outputs = task.num_outputs
    if not isinstance(outputs, int) or outputs < 1:
        return f"its num_outputs is {outputs!r}. Return a whole number of at least 1."
    if not isinstance(task.metrics, MetricSet):
        return (
            f"its metrics are a {type(task.metrics).__name__}. Return a "
            "heliotrope.metrics.MetricSet."
        )
    zeros, two = outputs_of_zeros(task)
    try:
        return _bad_numbers(task, zeros, two)
    except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
        return (
            f"on two examples of zeros, and outputs {list(zeros.shape)}, it raises "
            f"{type(error).__name__}: {error}. Mend it, or choose the data that it is made for."
        )


def outputs_of_zeros(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs of zeros for two examples, and these."""
    two = {name: value.expand(2, *value.shape[1:]) for name, value in task.facts.example.items()}
    return torch.zeros(task.output_shape(two)), two


def _bad_numbers(task: Task, outputs: Tensor, batch: Mapping[str, Tensor]) -> str | None:
    weights = task.weights(batch)
    if weights.shape != (2,) or weights.is_floating_point():
        return (
            f"its weights of two examples are {weights.dtype} of shape {list(weights.shape)}. "
            "Return one whole number for each, as integers [B]."
        )
    losses = task.losses(outputs, batch)
    if losses.shape != (2,) or not losses.is_floating_point():
        return (
            f"its losses of two examples are {losses.dtype} of shape {list(losses.shape)}. Return "
            "one number for each, [B]: not their mean."
        )
    task.metrics.measure(*_shown(task, outputs, outputs, batch, 0)).compute()
    return _mixed_losses(task) or why_mixing(task, task.metrics)


def why_mixing(task: Task, metrics: MetricSet) -> str | None:
    """Return what is wrong if what is measured of one example depends on another; else None."""
    outputs, two = _outputs_of_noise(task)
    shown = _shown(task, outputs, outputs, two, 0)
    groups = metrics.measure_groups(*shown, torch.arange(2), 2).sums
    alone = []
    for place in range(2):
        rows = slice(place, place + 1)
        one = {name: value[rows] for name, value in two.items()}
        part = metrics.measure(*_shown(task, outputs[rows], outputs, one, place))
        alone.append(part.sums)
    if _alike(groups, np.stack(alone)) and _alike(metrics.measure(*shown).sums, sum(alone)):
        return None
    return (
        "what its metrics add for an example is another when a second one is beside it. Return "
        "cells with a value for each example, [B], that depends on no other: not their mean."
    )


def _mixed_losses(task: Task) -> str | None:
    outputs, two = _outputs_of_noise(task)
    together = task.losses(outputs, two)
    if task.joint or not _alike(together, task.losses(outputs, two)):  # or it draws numbers
        return None
    for place in range(2):
        rows = slice(place, place + 1)
        alone = task.losses(outputs[rows], {name: value[rows] for name, value in two.items()})
        if not _alike(alone, together[rows]):
            return (
                "its loss of an example is another when a second one is beside it. Leave out what "
                "depends on the batch, such as its mean, or set joint = True and say what is "
                "compared."
            )
    return None


def _outputs_of_noise(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs drawn from a fixed seed for two examples of zeros, and these."""
    zeros, two = outputs_of_zeros(task)
    return torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)), two


def _shown(
    task: Task, outputs: Tensor, candidates: Tensor, batch: Mapping[str, Tensor], first: int
) -> tuple[Tensor, Batch]:
    """Return what metrics are given of some examples, see `Task.compared`."""
    return task.compared(outputs, candidates, first) if task.joint else (outputs, dict(batch))


def _alike(a: ArrayLike, b: ArrayLike) -> bool:
    return np.allclose(np.asarray(a), np.asarray(b), rtol=_ROUNDING, atol=1e-6, equal_nan=True)
