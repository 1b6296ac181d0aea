"""Model families, one file each, behind one `build`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from heliotrope.config import ModelConfig
from heliotrope.models.cnn import build_cnn
from heliotrope.models.layers import initialise
from heliotrope.models.mlp import build_mlp
from heliotrope.seeding import isolated_rng, seed
from heliotrope.tasks import Task

__all__ = ["BUILDERS", "build", "parameter_count"]

BUILDERS: dict[str, Callable[[Any, Task], nn.Module]] = {"mlp": build_mlp, "cnn": build_cnn}


def build(cfg: ModelConfig, task: Task, run_seed: int) -> nn.Module:
    """Return the model of `cfg` for `task`, initialised from the run's seed, on the CPU.

    Raises `ConfigError` if the model does not fit the task's input.
    """
    with isolated_rng(seed(run_seed, "init")):
        model = BUILDERS[cfg.name](cfg, task)
        initialise(model)
        return model


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
