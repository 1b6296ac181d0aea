"""Whether a user's task is one that a model can be trained for, said before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from heliotrope.metrics import Batch, MetricSet
from heliotrope.plugin_loading import raised
from heliotrope.tasks.base import Task

__all__ = [
    "examples_of_zeros",
    "outputs_of_zeros",
    "shown_to_metrics",
    "why_mixing",
    "why_unusable",
]

_MEND = "Mend it, or choose the data that it is made for."
_ROUNDING = 1e-4  # of a number, whose last digits may differ with the number of examples


def why_unusable(task: Task) -> str | None:
    """Return what is wrong with a task and how to mend it; None if a model can be trained for it.

    It is tried on two examples of zeros, with outputs of zeros, and random ones of each by itself.
    """
    if not hasattr(task, "facts"):
        return "its __init__ leaves out that of Task. Begin it with super().__init__(facts)."
    kinds = (kind for kind in type(task).__mro__ if kind is not Task)
    if not any("targets" in vars(where) for where in (task, *kinds)):
        fields = list(task.facts.example)
        return (
            f"it does not say which of the fields {', '.join(fields)} are to be predicted, and not "
            f'given to the model. Add targets = ("{fields[-1]}",), or targets = () for none.'
        )
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
    if task.joint and type(task).compared is Task.compared:
        return (
            "it is joint, but has no method compared(outputs, candidates, first), which gives "
            "what its metrics measure in an evaluation. Add it, as heliotrope/tasks/contrastive.py "
            "has it."
        )
    zeros, two = outputs_of_zeros(task)
    try:
        return _bad_numbers(task, zeros, two)
    except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
        return (
            f"on two examples of zeros, and outputs {list(zeros.shape)}, it raises "
            f"{raised(error, _MEND)}"
        )


def outputs_of_zeros(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
    """Return outputs of zeros for two examples, and these."""
    two = examples_of_zeros(task)
    return torch.zeros(task.output_shape(two)), two


def examples_of_zeros(task: Task, count: int = 2) -> dict[str, Tensor]:
    """Return a batch of `count` examples that hold nothing of the data."""
    example = task.facts.example
    return {name: value.expand(count, *value.shape[1:]) for name, value in example.items()}


def shown_to_metrics(
    task: Task, outputs: Tensor, candidates: Tensor, batch: Mapping[str, Tensor], first: int = 0
) -> tuple[Tensor, Batch]:
    """Return what metrics are given of some examples, see `Task.compared`."""
    return task.compared(outputs, candidates, first) if task.joint else (outputs, dict(batch))


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
    task.metrics.measure(*shown_to_metrics(task, outputs, outputs, batch)).compute()
    return _mixed_losses(task) or why_mixing(task, task.metrics)


def why_mixing(task: Task, metrics: MetricSet) -> str | None:
    """Return what is wrong if what is measured of one example depends on another; else None."""

    def look(outputs: Tensor, two: Mapping[str, Tensor]) -> str | None:
        shown = shown_to_metrics(task, outputs, outputs, two)
        groups = metrics.measure_groups(*shown, torch.arange(2), 2).sums
        alone = []
        for row in range(2):
            rows = slice(row, row + 1)
            one = {name: value[rows] for name, value in two.items()}
            part = metrics.measure(*shown_to_metrics(task, outputs[rows], outputs, one, row))
            alone.append(part.sums)
        if _alike(groups, np.stack(alone)) and _alike(metrics.measure(*shown).sums, sum(alone)):
            return None
        return (
            "what its metrics add for an example is another when a second one is beside it. Return "
            "cells with a value for each example, [B], that depends on no other: not their mean."
        )

    return _of_made_up(task, look)


def _mixed_losses(task: Task) -> str | None:
    def look(outputs: Tensor, two: Mapping[str, Tensor]) -> str | None:
        together = task.losses(outputs, two)
        if not _alike(together, task.losses(outputs, two)):  # it draws numbers
            return None
        for row in range(2):
            rows = slice(row, row + 1)
            alone = task.losses(outputs[rows], {name: value[rows] for name, value in two.items()})
            if not _alike(alone, together[rows]):
                return (
                    "its loss of an example is another when a second one is beside it. Leave out "
                    "what depends on the batch, such as its mean, or set joint = True and say what "
                    "is compared."
                )
        return None

    return None if task.joint else _of_made_up(task, look)


def _of_made_up(
    task: Task, look: Callable[[Tensor, Mapping[str, Tensor]], str | None]
) -> str | None:
    """Return what `look` finds wrong with outputs for two examples that are unlike in every field.

    All is drawn from a fixed seed. Lengths are left as they are; whole numbers are 0 and 1, which
    are a class, a category or a token of most data: for others, the examples are zeros.
    """
    zeros, two = outputs_of_zeros(task)
    generator = torch.Generator().manual_seed(0)
    outputs, unlike = torch.randn(zeros.shape, generator=generator), dict(two)
    for name, value in two.items():
        if value.is_floating_point():
            unlike[name] = torch.randn(value.shape, generator=generator).to(value.dtype)
        elif not name.endswith("_length"):
            numbers = torch.arange(2).view(2, *[1] * (value.dim() - 1))
            unlike[name] = numbers.expand(value.shape).to(value.dtype)
    try:
        return look(outputs, unlike)
    except Exception:  # noqa: BLE001 - such as of a class that there is not
        return look(outputs, two)


def _alike(a: ArrayLike, b: ArrayLike) -> bool:
    return np.allclose(np.asarray(a), np.asarray(b), rtol=_ROUNDING, atol=1e-6, equal_nan=True)
