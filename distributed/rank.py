"""A worker in a process of its own: what `torchrun` and `ray` have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.distributed as dist

from heliotrope.data import Dataset
from heliotrope.rundir import RunDirectory
from heliotrope.tracking import Tracker, log_to

from . import fence
from .attempt import Attempt, Place, Trained, WorkerFailure
from .group import device_of, joined
from .live import in_file
from .worker import Worker

__all__ = ["POSITION", "lost_a_peer", "root_cause", "run_rank"]

_PEER_IS_GONE = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe", re.IGNORECASE)

POSITION = ".position"  # in the run's directory: epochs done, as a fraction, while workers run


def run_rank(
    attempt: Attempt, place: Place, dataset: Dataset, store: dist.Store | None = None
) -> Trained:
    """Train as rank `place.rank` of a group that meets in `store` (None: torchrun's own)."""
    home = RunDirectory(attempt.directory)
    log_to(home.log, f"rank {place.rank}")
    fence.hold(home.path)
    with joined(place, device_of(attempt.share.device, place), store):
        if place.rank > 0:
            return Worker(attempt, place, dataset, None, lambda _: None).train()
        tracker = Tracker(home.metrics)
        try:
            report = in_file(home.path / POSITION)
            return Worker(attempt, place, dataset, tracker, report).train()
        finally:
            tracker.close()


def lost_a_peer(failure: WorkerFailure) -> bool:
    """Return whether a rank failed only because another one did, and was gone."""
    return _PEER_IS_GONE.search(failure.reason) is not None


def root_cause(failures: Sequence[WorkerFailure]) -> WorkerFailure:
    """Return the failure that the others followed from."""
    return next((f for f in failures if not lost_a_peer(f)), failures[0])
