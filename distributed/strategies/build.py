"""Which engine trains: by `distributed.strategy`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from heliotrope.config import Run
from heliotrope.models import build
from heliotrope.tasks import Task

from ..privacy.protection import Protection
from ..topology import Topology
from .engine import Engine
from .initial_weights import initial_model
from .local_sgd import LocalSgdEngine
from .private import PrivateEngine

__all__ = ["build_engine", "build_model"]


def build_model(run: Run, task: Task, directory: Path, device: torch.device) -> nn.Module:
    """Return the model as it begins, on `device`: on the CPU if its parts are to go there."""
    if run.distributed.strategy == "fsdp":
        return initial_model(run, task, directory)
    return build(run.model, task, run.seed).to(device)


def build_engine(
    run: Run,
    model: nn.Module,
    task: Task,
    topology: Topology,
    directory: Path,
    protection: Protection | None = None,
) -> Engine:
    """Return the engine of `distributed.strategy`; the process group must have been joined.

    With a `protection`, what it may release of the gradients is all that trains.
    """
    kind = Engine
    if protection is not None:
        return PrivateEngine(run, model, task, topology, directory, protection)
    if run.distributed.strategy == "fsdp":
        from .fsdp import FsdpEngine  # here: it takes most of a second to import

        kind = FsdpEngine
    elif run.distributed.strategy != "ddp":
        kind = LocalSgdEngine
    return kind(run, model, task, topology, directory)
