"""Three launchers of one worker: `inline`, `torchrun`, `ray`; each gives a run its workers.

A launcher is opened once a run and starts workers once an attempt. What it needs is imported
when it is chosen: `inline` and `torchrun` work where Ray is not installed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.display import Display
from heliotrope.errors import HeliotropeError
from heliotrope.resources import available_cpus
from heliotrope.rundir import RunDirectory
from heliotrope.tracking import Tracker

from .attempt import Attempt, Place, Share, Trained, WorkerFailure
from .share import share_of
from .worker import Worker

__all__ = ["Launcher", "opened"]

_log = logging.getLogger(__name__)


class Launcher(Protocol):
    """Starts the workers of an attempt and waits for them.

    `share` is each worker's part of the machine. `launch` raises `WorkerFailure` if a worker
    died, a `HeliotropeError` if another attempt would end the same; no worker outlives it.
    """

    share: Share

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display) -> Trained:
        """Run the workers of one attempt to their end."""


def opened(run: Run) -> AbstractContextManager[Launcher]:
    """Open the launcher that `run` names; `ResourceError` if it lacks the CPUs or GPUs."""
    match run.distributed.launcher:
        case "ray":
            from .ray_launcher import ray_launcher

            return ray_launcher(run)
        case "torchrun":
            from .torchrun import torchrun_launcher

            return torchrun_launcher(run)
        case _:
            return inline_launcher(run)


@contextmanager
def inline_launcher(run: Run) -> Iterator[Launcher]:
    """The one worker in this process: for one GPU, and for a debugger."""
    cpus = available_cpus()
    yield _Inline(share_of(run, cpus, cpus, torch.cuda.device_count()))


class _Inline:
    def __init__(self, share: Share) -> None:
        self.share = share

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display) -> Trained:
        tracker = Tracker(RunDirectory(attempt.directory).metrics, (display,))
        try:
            return Worker(attempt, Place(), dataset, tracker, display.at).train()
        except HeliotropeError:
            raise
        except Exception as error:
            _log.exception("rank 0 failed")
            raise WorkerFailure(0, f"{type(error).__name__}: {error}") from error
        finally:
            tracker.close()
