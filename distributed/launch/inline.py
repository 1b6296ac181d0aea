"""The `inline` launcher: the one worker in the driver's process, for a GPU or a debugger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.errors import HeliotropeError
from heliotrope.plugin_loading import raised
from heliotrope.runs.display import Display
from heliotrope.system.resources import available_cpus
from heliotrope.system.signals import Stop

from ..attempt import RunAttempt, TrainingResult, WorkerFailure, WorkerResources
from ..topology import Topology
from .base import Launcher
from .failures import reason_of
from .process import train_rank
from .resources import worker_resources

__all__ = ["inline_launcher"]

_log = logging.getLogger(__name__)


@contextmanager
def inline_launcher(run: Run) -> Iterator[Launcher]:
    """All CPUs of this process, or `distributed.cpus_per_worker`; one GPU if there is one."""
    cpus = available_cpus()
    yield _Inline(worker_resources(run, 1, cpus, cpus, torch.cuda.device_count()))


class _Inline:
    def __init__(self, resources: WorkerResources) -> None:
        self._resources = resources

    def gather(self) -> tuple[int, WorkerResources]:
        return 1, self._resources

    def launch(
        self, attempt: RunAttempt, dataset: Dataset, display: Display, stop: Stop
    ) -> TrainingResult:
        try:
            return train_rank(attempt, Topology(), dataset, stop.asked, display)
        except HeliotropeError:
            raise
        except Exception as error:
            _log.exception("rank 0 failed")
            raise WorkerFailure(0, reason_of(raised(error, ""))) from error
