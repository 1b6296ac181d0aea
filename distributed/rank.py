"""One rank, in a process of its own or in the driver's: who writes, and where."""

from __future__ import annotations

import socket
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from heliotrope.allocator import keep_freed_memory
from heliotrope.data import Dataset
from heliotrope.display import Display
from heliotrope.errors import RunDirectoryError
from heliotrope.rundir import RunDirectory
from heliotrope.trackers import listeners
from heliotrope.tracking import Tracker, log_to

from . import fence
from .attempt import Attempt, Place, Trained
from .group import device_of, joined
from .live import POSITION, in_file
from .worker import Worker

__all__ = ["run_process", "run_rank"]


def run_process(
    attempt: Attempt,
    place: Place,
    dataset: Dataset,
    asked: Callable[[], bool],
    store: Store | None = None,
) -> Trained:
    """Join the group that meets in `store` (None: where torchrun says) and train as one rank."""
    home = RunDirectory(attempt.directory)
    if not home.path.is_dir():
        raise RunDirectoryError(
            f"hydra.run.dir={home.path} is not there on {socket.gethostname()}, for rank "
            f"{place.rank}. Choose a directory on a file system that all machines share."
        )
    log_to(home.log, f"rank {place.rank}")
    timeout = attempt.run.distributed.collective_timeout
    with joined(place, device_of(attempt.share.device, place), timeout, store):
        return run_rank(attempt, place, dataset, asked)


def run_rank(
    attempt: Attempt,
    place: Place,
    dataset: Dataset,
    asked: Callable[[], bool],
    display: Display | None = None,
) -> Trained:
    """Train as one rank of the group that this process has joined, until `asked` to stop.

    Rank 0 writes the events, shows them on `display` if the terminal is its own, and leaves its
    position in a file otherwise.
    """
    keep_freed_memory()
    home = RunDirectory(attempt.directory)
    with fence.held(home.path):
        if place.rank > 0:
            return Worker(attempt, place, dataset, asked, None, lambda _: None).train()
        told = listeners(attempt.run, home.path)
        report = in_file(home.path / POSITION) if display is None else display.at
        with Tracker(home.metrics, told if display is None else (display, *told)) as tracker:
            return Worker(attempt, place, dataset, asked, tracker, report).train()
