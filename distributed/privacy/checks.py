"""What cannot be trained with record-level privacy, said before any work."""

from __future__ import annotations

from torch import nn

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.errors import ConfigError
from heliotrope.tasks import Task
from heliotrope.training.separable import check_separable

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
    check_separable(chosen, model, task)
    if dataset.fitting is None:
        return
    told = dataset.fitting.statistics.told(dataset.fitting.steps)
    if told:
        raise ConfigError(
            f"{chosen}: data.fit={run.data.fit} prepares all data by {', '.join(told)}, taken from "
            "the training examples without noise. Set data.fit=none, or data.fit=private, with "
            "which means and deviations get noise and are charged."
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
