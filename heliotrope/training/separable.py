"""Whether each training example has a gradient of its own, and nothing else tells of it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliotrope.data import Batch
from heliotrope.data.windows import length_of
from heliotrope.errors import ConfigError
from heliotrope.models.layers.seeded import SeededLayer
from heliotrope.models.usable import why_not_one
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task

__all__ = ["changed_by_a_pass", "check_separable"]


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
    changed = changed_by_a_pass(model, task)
    if changed is not None:
        raise ConfigError(
            f"{chosen}: a pass in training changes the model's {changed}, which tells of examples "
            "without noise. Leave that out, such as by track_running_stats=False, or by "
            "max_norm=None of an embedding."
        )
    if _tells_of_earlier(model, task):
        raise ConfigError(
            f"{chosen}: what the model makes of an example changes with those that it was given "
            "before, so that one changes the gradients of others. Keep nothing of an example in "
            "the model from one pass to the next."
        )
    if _tells_of_padding(model, task):
        raise ConfigError(
            f"{chosen}: what the model makes of an example changes with the zeros that fill it up, "
            "and so with the longest of its batch. Leave out what lies beyond the lengths that the "
            "model is given, such as by a mask."
        )


def _tells_of_padding(model: nn.Module, task: Task) -> bool:
    """Return whether the loss of an example depends on the width of its batch.

    A pass that fails says nothing: that the model can be trained is found elsewhere.
    """
    example = task.facts.example
    padded = [name for name in example if length_of(name) in example]
    width = min((example[name].shape[1] for name in padded), default=0)
    if width < 2:
        return False
    most = max(2, len(task.facts.info.vocabulary))
    wide, narrow = dict(example), dict(example)
    for name in padded:
        value, half = torch.zeros_like(example[name]), width // 2
        drawn = torch.arange(value[:, :half].numel()).view(value[:, :half].shape) + 1
        value[:, :half] = drawn % most
        wide[name], narrow[name] = value, value[:, :half]
        lengths = torch.full_like(example[length_of(name)], half)
        wide[length_of(name)] = narrow[length_of(name)] = lengths
    try:
        tried = copy.deepcopy(model).eval()
        with isolated_rng(0), torch.no_grad():
            few, many = (task.losses(task.call(tried, batch), batch) for batch in (narrow, wide))
    except Exception:  # noqa: BLE001 - whatever a user's code may raise
        return False
    return not torch.allclose(few, many, rtol=1e-3, atol=1e-5)


def changed_by_a_pass(model: nn.Module, task: Task, *, trained: bool = True) -> str | None:
    """Return what a pass in training writes to, such as `buffer mean`; None if to nothing.

    These are buffers, and parameters: an embedding with a `max_norm` scales the rows that it looks
    up down to it. With `trained` False, those parameters that are trained do not matter.
    """
    try:
        tried = copy.deepcopy(model).train()
    except Exception:  # noqa: BLE001 - who needs copies says what of it cannot be copied
        return None
    own = {id(b) for m in tried.modules() if isinstance(m, SeededLayer) for b in m.buffers()}
    before = {n: b.clone() for n, b in tried.named_buffers() if id(b) not in own}
    weights = {
        name: (value, value.detach().clone(), value._version)  # noqa: SLF001 - there is no other way
        for name, value in tried.named_parameters()
        if trained or not value.requires_grad
    }
    with isolated_rng(0), torch.no_grad():
        task.call(tried, _shifted(task.facts.example))
    after = dict(tried.named_buffers())
    for name, value in before.items():
        if not torch.equal(value, after[name]):
            return f"buffer {name}"
    present = dict(tried.named_parameters())
    for name, (parameter, value, version) in weights.items():
        # What is written may be what was there: rows that are short enough for this example.
        written = parameter._version != version  # noqa: SLF001 - as above
        if written or present.get(name) is not parameter or not torch.equal(parameter, value):
            return f"parameter {name}"
    return None


def _tells_of_earlier(model: nn.Module, task: Task) -> bool:
    """Return whether the loss of an example depends on which one the model was given before it.

    So it does where a pass keeps something of its example, whatever in: an attribute, a closure.
    A pass that fails says nothing, nor does a model that cannot be copied.
    """
    example = task.facts.example
    losses = []
    try:
        for before in (example, _shifted(example) | _other_numbers(task)):
            tried = copy.deepcopy(model).train()
            with isolated_rng(0):
                task.call(tried, before)
            with isolated_rng(0), torch.no_grad():
                losses.append(task.losses(task.call(tried, example), example))
    except Exception:  # noqa: BLE001 - whatever a user's code may raise
        return False
    return not torch.equal(*losses)


def _shifted(example: Batch) -> Batch:
    """Return another example of the same shape: numbers are 1 more, whole ones as they are."""
    return {
        name: value + 1 if value.is_floating_point() else value for name, value in example.items()
    }


def _other_numbers(task: Task) -> Batch:
    """Return the inputs of an example that are numbers of something, such as words: all 1."""
    lengths = {length_of(name) for name in task.facts.example}
    inputs = {name: task.facts.example[name] for name in task.inputs}
    return {
        name: torch.ones_like(value)
        for name, value in inputs.items()
        if not value.is_floating_point() and name not in lengths
    }
