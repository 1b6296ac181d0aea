"""One worker of a run by itself, for what is measured before a run, such as its batch size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.system.allocator import keep_freed_memory
from heliotrope.tasks import Task
from heliotrope.training.loop import TrainingBatch, TrainTotals

from ..privacy.protection import Protection
from ..strategies.build import build_engine
from ..strategies.compiler import check_compiler
from ..topology import Topology

__all__ = ["SingleWorker"]


class SingleWorker:
    """Takes steps as a worker of `run` does, in its precision, compiled, with recomputation.

    With a `protection` it takes those of a protected run.

    Raises `ConfigError` for a strategy that divides the weights: alone, a worker has them all.
    """

    def __init__(
        self, run: Run, model: nn.Module, task: Task, protection: Protection | None = None
    ) -> None:
        cfg = run.distributed
        if cfg.strategy == "fsdp":
            raise ConfigError(
                "distributed.strategy=fsdp divides the weights among workers, but batch sizes are "
                "tried by one. Set distributed.strategy=ddp to try them with whole weights."
            )
        if cfg.compile:
            check_compiler()
        keep_freed_memory()
        plain = replace(run, distributed=replace(cfg, profile=False))
        self._engine = build_engine(plain, model, task, Topology(), Path(), protection)
        self.optimizer = self._engine.optimizer
        self._examples = 0
        self._compiles = cfg.compile

    def step(self, batch: TrainingBatch) -> float:
        """Take one step, exchange as at the end of an epoch, and return the mean loss before."""
        if self._compiles and len(batch) != self._examples:
            torch.compiler.reset()  # it compiles for few shapes, and gives up in silence
        self._examples = len(batch)
        totals = TrainTotals()
        self._engine.begin(totals)
        self._engine.step(batch)
        self._engine.finish()
        self._engine.after_step(1, 1)
        return totals.loss
