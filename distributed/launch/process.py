"""One rank, in a process of its own or in the driver's: who writes, and where."""

from __future__ import annotations

import socket
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from heliotrope.data import Dataset
from heliotrope.errors import RunDirectoryError
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker, log_to
from heliotrope.runs.trackers import listeners
from heliotrope.system.allocator import keep_freed_memory, return_large_blocks

from ..attempt import RunAttempt, TrainingResult
from ..communication import worker_lock
from ..communication.process_group import device_of, joined
from ..loop.progress import POSITION, report_to_file
from ..loop.worker import Worker
from ..topology import Topology
from .resources import returns_large_blocks

__all__ = ["train_process", "train_rank"]


def train_process(
    attempt: RunAttempt,
    topology: Topology,
    dataset: Dataset,
    asked: Callable[[], bool],
    store: Store | None = None,
) -> TrainingResult:
    """Join the group that meets in `store` (None: where torchrun says) and train as one rank.

    Raises `RunDirectoryError` if the run's directory is not there on this machine.
    """
    run_dir = RunDirectory(attempt.directory)
    if not run_dir.path.is_dir():
        raise RunDirectoryError(
            f"hydra.run.dir={run_dir.path} is not there on {socket.gethostname()}, for rank "
            f"{topology.rank}. Choose a directory on a file system that all machines share."
        )
    log_to(run_dir.log, f"rank {topology.rank}")
    timeout = attempt.run.distributed.collective_timeout
    with joined(topology, device_of(attempt.resources.device, topology), timeout, store):
        return train_rank(attempt, topology, dataset, asked)


def train_rank(
    attempt: RunAttempt,
    topology: Topology,
    dataset: Dataset,
    asked: Callable[[], bool],
    display: Display | None = None,
) -> TrainingResult:
    """Train as one rank of the group that this process has joined, until `asked` to stop.

    Rank 0 writes the events, shows them on `display` if the terminal is its own, and leaves its
    position in a file otherwise.
    """
    (return_large_blocks if returns_large_blocks(attempt.run) else keep_freed_memory)()
    run_dir = RunDirectory(attempt.directory)
    with worker_lock.held(run_dir.path):
        if topology.rank > 0:
            return Worker(attempt, topology, dataset, asked, None, lambda _: None).train()
        sinks = listeners(attempt.run, run_dir.path, begun=True)
        report = report_to_file(run_dir.path / POSITION) if display is None else display.at
        with Tracker(run_dir.metrics, sinks if display is None else (display, *sinks)) as tracker:
            return Worker(attempt, topology, dataset, asked, tracker, report).train()
