"""One step on examples of zeros before anything is started, which shows what plug-ins cannot."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from heliotrope import registry
from heliotrope.config import OptimizerConfig, Run
from heliotrope.errors import ConfigError
from heliotrope.models.usable import about_devices, called
from heliotrope.plugin_loading import raised
from heliotrope.registry import Entry
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task
from heliotrope.tasks.usable import examples_of_zeros
from heliotrope.training.optimizers import build_optimizer

__all__ = ["check_step"]

_MORE = 32  # examples: a model may normalise parts of a batch, for which two are too few
_MOST_NAMES = 5


def check_step(run: Run, model: nn.Module, task: Task) -> tuple[str, ...]:
    """Take a step with a copy of `model`, unless it, its task and its optimizer are all ours.

    Nothing is drawn from the process's generators. What needs a device that is not here is left to
    the workers. Returns lines to be shown.

    Raises
    ------
    ConfigError
        Naming the plug-in, if the model fails in training only, no gradient reaches its weights, or
        the optimizer cannot be built or cannot take a step.
    """
    entries = (
        registry.entry("model", run.model.name),
        registry.entry("task", run.task_name or task.facts.info.task),
        registry.entry("optimizer", run.optimizer.name),
    )
    if all(entry.built_in for entry in entries):
        return ()
    try:
        tried = copy.deepcopy(model).train()
    except Exception:  # noqa: BLE001 - who needs copies says what of it cannot be copied
        return ()
    of_model, of_task, _ = (f"{entry.group}={entry.name} ({entry.where})" for entry in entries)
    with isolated_rng(0):
        _take_gradient(tried, task, of_model, of_task)
        return () if entries[-1].built_in else _take_step(tried, run.optimizer, entries[-1])


def _take_gradient(model: nn.Module, task: Task, of_model: str, of_task: str) -> None:
    """Leave the gradient of the loss in a model's weights."""
    outputs, why = called(model, task)
    if why is not None:
        outputs, still = called(model, task, _MORE)
        why = why if still is not None else None
    if why is not None:
        raise ConfigError(f"{of_model} cannot be trained: {why}")
    if outputs is None:
        return
    if not outputs.requires_grad:
        raise _cut_off(of_model, "its outputs")
    losses = _losses(task, outputs, of_model, of_task)
    if losses is None:
        return
    if not losses.requires_grad:
        raise _cut_off(of_task, "its losses")
    try:
        losses.sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        if about_devices(error):
            return
        raise ConfigError(
            f"{of_model} cannot be trained for {of_task}: taking the gradient raises "
            f"{raised(error)}"
        ) from error
    if all(parameter.grad is None for parameter in model.parameters()):
        raise _cut_off(of_model, "its outputs")


def _losses(task: Task, outputs: Tensor, of_model: str, of_task: str) -> Tensor | None:
    half = outputs.dtype in (torch.bfloat16, torch.float16)
    try:
        return task.losses(
            outputs.float() if half else outputs, examples_of_zeros(task, len(outputs))
        )
    except Exception as error:
        if about_devices(error):
            return None
        raise ConfigError(
            f"{of_task} cannot be trained: on examples of zeros, and the outputs of {of_model} in "
            f"training, it raises {raised(error)}"
        ) from error


def _cut_off(what: str, of_it: str) -> ConfigError:
    return ConfigError(
        f"{what} cannot be trained: no gradient goes from {of_it} back to a weight of the model. "
        "Leave out what cuts them off, such as detach(), argmax(), torch.no_grad() or a tensor "
        "made anew."
    )


def _take_step(model: nn.Module, cfg: OptimizerConfig, entry: Entry) -> tuple[str, ...]:
    """Update a model's weights once; return what is to be said of those that are left out."""
    what = f"optimizer={entry.name} ({entry.where})"
    if cfg.weight_decay and "weight_decay" not in entry.signature.keys:
        raise ConfigError(
            f"optimizer.weight_decay={cfg.weight_decay:g} has no effect: {what} has no such "
            "parameter. Leave it out, or add weight_decay: float."
        )
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = _built(model, cfg, what)
    taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left_out = [name for name, p in weights.items() if id(p) not in taken]
    if len(left_out) == len(weights):
        raise ConfigError(
            f"{what} updates none of the weights that it is given. Hand on params, not copies."
        )
    if all(p.grad is None for p in weights.values()):  # the model needs a device that is not here
        for p in weights.values():
            p.grad = torch.zeros_like(p)
    try:
        optimizer.step()
    except Exception as error:
        if not about_devices(error):
            raise ConfigError(f"{what} cannot take a step: {raised(error)}") from error
    return (_said_of(left_out, len(weights), what),) if left_out else ()


def _built(model: nn.Module, cfg: OptimizerConfig, what: str) -> Optimizer:
    try:
        built: object = build_optimizer(cfg, model.parameters())
    except Exception as error:
        raise ConfigError(f"{what} cannot be built: {raised(error)}") from error
    if not isinstance(built, Optimizer):
        raise ConfigError(f"{what} gave a {type(built).__name__}. Return a torch.optim.Optimizer.")
    if any("lr" not in group for group in built.param_groups):
        raise ConfigError(
            f"{what} has groups of parameters without lr, which schedules change. Give each one lr."
        )
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(built.step).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
    if needed:
        raise ConfigError(
            f"{what} cannot take a step: {type(built).__name__}.step() needs {needed[0]}, which "
            "training does not give it. Choose an optimizer that updates the weights by the "
            "gradients that they have, in step() without arguments."
        )
    return built


def _said_of(left_out: Sequence[str], weights: int, what: str) -> str:
    others = len(left_out) - _MOST_NAMES
    named = ", ".join(left_out[:_MOST_NAMES]) + (f" and {others} others" if others > 0 else "")
    return (
        f"{what} leaves out {len(left_out)} of the {weights} weights that it is given, which stay "
        f"as they begin: {named}"
    )
