"""Whether a user's module is one that can be trained, said before anything is started."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heliotrope.plugin_loading import raised
from heliotrope.seeding import isolated_rng
from heliotrope.system.tensor_file import SAVABLE
from heliotrope.tasks import Task

__all__ = ["why_not_one", "why_unusable"]

_ABOUT_DEVICES = re.compile(r"\b(cuda|gpus?|cpu|device|triton|nccl|dtype)\b", re.IGNORECASE)


def why_unusable(model: nn.Module, task: Task) -> str | None:
    """Return what is wrong with a module and how to mend it; None if it can be trained.

    A copy of it is called on two examples of zeros, in evaluation mode.
    """
    return _bad_state(model) or _bad_outputs(model, task)


def why_not_one(model: nn.Module, task: Task) -> str | None:
    """Return what a module raises in training on a single example; None if it can take one.

    BatchNorm, for one, needs two. What two do not help either is not told. A copy of the module
    is called on examples of zeros.
    """
    try:
        tried = copy.deepcopy(model).train()
    except Exception:  # noqa: BLE001 - who needs copies says what of it cannot be copied
        return None
    types = [value.dtype for value in tried.parameters() if value.is_floating_point()]
    arguments = task.arguments(task.facts.example)
    with isolated_rng(0), torch.no_grad():
        for count in (2, 1):
            try:
                tried(*(_some_of(value, types, count) for value in arguments))
            except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
                return raised(error, "") if count == 1 else None
    return None


def _bad_state(model: nn.Module) -> str | None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            return (
                f"its {name} has no size yet. Give the layer its sizes, or call the model once on "
                "torch.zeros(1, *task.input_shape) before you return it."
            )
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            return (
                f"its {name} is a {type(value).__name__}, which a checkpoint cannot hold. Keep it "
                "in a buffer, or leave get_extra_state out."
            )
        if value.dtype not in SAVABLE:
            return (
                f"its {name} is {value.dtype}, which a checkpoint cannot hold. Keep real numbers: "
                "of complex ones torch.view_as_real(...), to be read with torch.view_as_complex."
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return "no parameter of it is to be trained. Leave one with requires_grad=True."
    return None


def _bad_outputs(model: nn.Module, task: Task) -> str | None:
    try:
        tried = copy.deepcopy(model).eval()
    except Exception:  # noqa: BLE001 - who needs copies says what of it cannot be copied
        return None
    types = [value.dtype for value in tried.parameters() if value.is_floating_point()]
    inputs = [_some_of(value, types) for value in task.arguments(task.facts.example)]
    named = zip(task.inputs, inputs, strict=True)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in named)
    try:
        with torch.no_grad():
            outputs = tried(*inputs)
    except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
        if _ABOUT_DEVICES.search(str(error)):  # a worker may have what it needs
            return None
        return (
            f"called with {shapes}, as {task.facts.name} has them, it raises "
            f"{raised(error, 'Mend it, or choose the data that it is made for.')}"
        )
    return _unfit(outputs, task, shapes)


def _some_of(value: Tensor, types: Sequence[torch.dtype], count: int = 2) -> Tensor:
    """Return a batch of one example `count` times, in the type that the model computes in."""
    batch = value.expand(count, *value.shape[1:])
    return batch.to(types[0]) if types and value.is_floating_point() else batch


def _unfit(outputs: object, task: Task, shapes: str) -> str | None:
    """Return why outputs for two examples do not fit the task; None if they do."""
    example = {name: _some_of(value, ()) for name, value in task.facts.example.items()}
    wanted = list(task.output_shape(example))
    if not isinstance(outputs, Tensor):
        got = f"a {type(outputs).__name__}"
    elif list(outputs.shape) != wanted or not outputs.is_floating_point():
        got = f"{outputs.dtype} of shape {list(outputs.shape)}"
    else:
        return None
    return (
        f"called with {shapes} it gives {got}. Return the logits, floating-point numbers of shape "
        f"{wanted}: one row an example, task.num_outputs in the last dimension."
    )
