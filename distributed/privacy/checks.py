"""What cannot be trained with record-level privacy, said before any work."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.errors import ConfigError
from heliotrope.models.layers.seeded import SeededLayer
from heliotrope.models.usable import why_not_one
from heliotrope.seeding import isolated_rng
from heliotrope.tasks import Task

from .names import privacy_of

__all__ = ["check_private"]


def check_private(run: Run, model: nn.Module, task: Task, dataset: Dataset) -> None:
    """Raise `ConfigError` for what tells more than is accounted for; nothing without privacy."""
    privacy = privacy_of(run.distributed)
    if privacy is None:
        return
    chosen = f"distributed/privacy={run.distributed.privacy.name}"
    _check_keys(run, chosen)
    privacy.delta_for(len(dataset.train))
    if task.joint:
        raise ConfigError(
            f"{chosen} clips the gradient of each example, but the losses of {type(task).__name__} "
            "compare examples with one another: none has a gradient of its own. Set another task."
        )
    _check_model(model, task, chosen)
    if dataset.fitting is None:
        return
    told = dataset.fitting.statistics.told(dataset.fitting.steps)
    if told:
        raise ConfigError(
            f"{chosen}: data.fit={run.data.fit} prepares all data by {', '.join(told)}, taken from "
            "the training examples without noise. Set data.fit=none."
        )


def _check_keys(run: Run, chosen: str) -> None:
    cfg = run.distributed
    for key, unsupported, remedy in (
        (f"distributed.strategy={cfg.strategy}", cfg.strategy != "ddp", "distributed.strategy=ddp"),
        (
            f"distributed.precision={cfg.precision}",
            cfg.precision != "fp32",
            "distributed.precision=fp32",
        ),
        ("distributed.compile=true", cfg.compile, "distributed.compile=false"),
        (
            "distributed.activation_checkpointing=true",
            cfg.activation_checkpointing,
            "it to false, and distributed.accumulation_steps higher for less memory",
        ),
        (
            f"distributed.mixup={cfg.mixup:g}, which blends examples",
            cfg.mixup,
            "distributed.mixup=0",
        ),
    ):
        if unsupported:
            raise ConfigError(f"{chosen} does not support {key}. Set {remedy}.")


def _check_model(model: nn.Module, task: Task, chosen: str) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{chosen}: {name or 'the model'} is a {type(module).__name__}, which mixes the "
                "examples of a batch. Use GroupNorm or LayerNorm."
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
