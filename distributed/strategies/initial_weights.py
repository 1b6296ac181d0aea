"""What every worker begins with, built once: by the driver, from whose file the workers map it.

So a sharded run needs the memory of a whole model in one process, and begins with the same bits as
any other run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from heliotrope.config import Run
from heliotrope.models import build
from heliotrope.models.mapped import mapped_model, release_values, write_values
from heliotrope.tasks import Task

__all__ = ["initial_model", "initial_weights", "initial_weights_file"]

_log = logging.getLogger(__name__)


def initial_weights_file(directory: Path) -> Path:
    """Return the file that the values are in, below the directory of a run."""
    return directory / ".initial.safetensors"


@contextmanager
def initial_weights(run: Run, model: nn.Module, directory: Path) -> Iterator[None]:
    """Have the values of the `model` that was built in a file below `directory`, the run's.

    `model` itself is left without values. There is a file only for a strategy that divides weights;
    where there is no room for it, each worker builds the model.
    """
    path = initial_weights_file(directory)
    try:
        if run.distributed.strategy == "fsdp":
            _write(model, path)
        release_values(model)
        yield
    finally:
        path.unlink(missing_ok=True)


def _write(model: nn.Module, path: Path) -> None:
    try:
        write_values(model, path)
    except (OSError, ValueError) as error:
        _log.warning("each worker builds the whole model: %s", error)
        path.unlink(missing_ok=True)


def initial_model(run: Run, task: Task, directory: Path) -> nn.Module:
    """Return the model as it begins, on the CPU: mapped from the file if there is one, or built."""
    path = initial_weights_file(directory)
    mapped = mapped_model(run.model, task, run.seed, path) if path.exists() else None
    if mapped is not None:
        return mapped
    _log.info("model=%s is built whole here: its weights cannot be mapped", run.model.name)
    return build(run.model, task, run.seed)
