"""Whether each training example has a gradient of its own, and nothing else tells of it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliotrope.errors import ConfigError
from heliotrope.models.layers.seeded import SeededLayer
from heliotrope.models.usable import why_not_one
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task

__all__ = ["check_separable"]


def check_separable(chosen: str, model: nn.Module, task: Task) -> None:
    """Raise `ConfigError` for a loss or a model that mixes examples, or keeps something of them.

    `chosen` is the protection that does not go with it, as it is typed.
    """
    if task.joint:
        raise ConfigError(
            f"{chosen} clips the gradient of each example, but the losses of {type(task).__name__} "
            "compare examples with one another: none has a gradient of its own. Set another task."
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{chosen}: {name or 'the model'} is a {type(module).__name__}, which mixes the "
                "examples of a batch. Use GroupNorm or LayerNorm."
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ConfigError(
                f"{chosen} adds real noise, but {name} is {parameter.dtype}. Keep real and "
                "imaginary parts in weights of their own."
            )
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{chosen}: {name} is {parameter.dtype}, in which norms and sums of gradients are "
                "rounded by more than is accounted for. Keep the weights in float32."
            )
    why = why_not_one(model, task)
    if why is not None:
        raise ConfigError(
            f"{chosen} gives the model one example at a time, which it cannot take: {why}. "
            "Normalise without the other examples of a batch, such as by torch.nn.GroupNorm."
        )
    changed = _changed_buffer(model, task)
    if changed is not None:
        raise ConfigError(
            f"{chosen}: a pass in training changes the model's buffer {changed}, which tells of "
            "examples without noise. Leave it out, such as by track_running_stats=False."
        )


def _changed_buffer(model: nn.Module, task: Task) -> str | None:
    """Return the name of a buffer that training on an example changes; None if none is."""
    try:
        tried = copy.deepcopy(model).train()
    except Exception:  # noqa: BLE001 - who needs copies says what of it cannot be copied
        return None
    own = {id(b) for m in tried.modules() if isinstance(m, SeededLayer) for b in m.buffers()}
    before = {n: b.clone() for n, b in tried.named_buffers() if id(b) not in own}
    example = {
        name: value + 1 if value.is_floating_point() else value
        for name, value in task.facts.example.items()
    }
    with isolated_rng(0), torch.no_grad():
        task.call(tried, example)
    after = dict(tried.named_buffers())
    return next((n for n, value in before.items() if not torch.equal(value, after[n])), None)
