"""The `inline` launcher: the one worker in the driver's process, for a GPU or a debugger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.display import Display
from heliotrope.errors import HeliotropeError
from heliotrope.resources import available_cpus

from .attempt import Attempt, Place, Share, Trained, WorkerFailure
from .failures import reason_of
from .launchers import Launcher
from .rank import run_rank
from .share import share_of
from .stop import Stop

__all__ = ["inline_launcher"]

_log = logging.getLogger(__name__)


@contextmanager
def inline_launcher(run: Run) -> Iterator[Launcher]:
    """All CPUs of this process, or `distributed.cpus_per_worker`; one GPU if there is one."""
    cpus = available_cpus()
    yield _Inline(share_of(run, 1, cpus, cpus, torch.cuda.device_count()))


class _Inline:
    def __init__(self, share: Share) -> None:
        self._share = share

    def gather(self) -> tuple[int, Share]:
        return 1, self._share

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display, stop: Stop) -> Trained:
        try:
            return run_rank(attempt, Place(), dataset, stop.asked, display)
        except HeliotropeError:
            raise
        except Exception as error:
            _log.exception("rank 0 failed")
            raise WorkerFailure(0, reason_of(f"{type(error).__name__}: {error}")) from error
