"""Whether a user's module is one that can be trained, said before anything is started."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from heliotrope.plugin_loading import raised
from heliotrope.seeding import isolated_rng
from heliotrope.system.tensor_file import SAVABLE
from heliotrope.tasks import Task
from heliotrope.tasks.usable import examples_of_zeros

__all__ = ["about_devices", "called", "why_not_one", "why_unusable"]

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
    with isolated_rng(0), torch.no_grad():
        for count in (2, 1):
            try:
                tried(*_inputs(tried, task, examples_of_zeros(task, count)))
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
    with torch.no_grad():
        return called(tried, task)[1]


def called(model: nn.Module, task: Task, count: int = 2) -> tuple[Tensor | None, str | None]:
    """Call a module on `count` examples of zeros; return its outputs, or why they do not fit.

    Neither is known of a module for a device that is not here: a worker may have it.
    """
    batch = examples_of_zeros(task, count)
    inputs = _inputs(model, task, batch)
    named = zip(task.inputs, inputs, strict=True)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in named)
    mode = " in training" if model.training else ""
    try:
        outputs = model(*inputs)
    except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
        if about_devices(error):
            return None, None
        return None, (
            f"called{mode} with {shapes}, as {task.facts.name} has them, it raises "
            f"{raised(error, 'Mend it, or choose the data that it is made for.')}"
        )
    wanted = list(task.output_shape(batch))
    if not isinstance(outputs, Tensor):
        got = f"a {type(outputs).__name__}"
    elif list(outputs.shape) != wanted or not outputs.is_floating_point():
        got = f"{outputs.dtype} of shape {list(outputs.shape)}"
    else:
        return outputs, None
    return None, (
        f"called{mode} with {shapes} it gives {got}. Return the logits, floating-point numbers of "
        f"shape {wanted}: one row an example, task.num_outputs in the last dimension."
    )


def about_devices(error: Exception) -> bool:
    """Return whether what was raised may be of a device that is not here."""
    return _ABOUT_DEVICES.search(str(error)) is not None


def _inputs(model: nn.Module, task: Task, batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what a module is called with for a batch, in the type that it computes in."""
    types = [value.dtype for value in model.parameters() if value.is_floating_point()]
    return [
        value.to(types[0]) if types and value.is_floating_point() else value
        for value in task.arguments(batch)
    ]
