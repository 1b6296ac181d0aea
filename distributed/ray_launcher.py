"""The `ray` launcher: one actor a rank in a placement group, on a laptop as on a cluster.

Plain actors instead of Ray Train: they reach the first step in a quarter of the time, and a
step never waits for the two-second poll of Ray Train's `report`. On several nodes, the run's
directory must be on a file system that all of them share.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.cluster import room, session
from heliotrope.config import Run
from heliotrope.display import Display
from heliotrope.errors import HeliotropeError
from heliotrope.rundir import RunDirectory

from .attempt import Attempt, Place, Share, Trained, WorkerFailure
from .failures import lost_a_peer
from .launchers import Launcher
from .live import POSITION, shown
from .ray_rank import RayRank, shared
from .share import share_of

if TYPE_CHECKING:
    from heliotrope.data import Dataset

    from .stop import Stop

__all__ = ["ray_launcher"]

_log = logging.getLogger(__name__)

_CAUSE_SECONDS = 5.0  # how long the cause may take to show, after a rank that only lost its peer


@contextmanager
def ray_launcher(run: Run) -> Iterator[Launcher]:
    """Actors on the running cluster, or on a Ray of our own here; see `heliotrope.cluster`."""
    workers = run.distributed.workers
    with session(ray) as cluster:
        share = share_of(run, workers, cluster.cpus, cluster.cpu_share(workers), cluster.gpus)
        each = {"CPU": share.threads} | ({"GPU": 1} if share.device == "cuda" else {})
        with room(ray, cluster, "distributed.workers", workers, each) as group:
            launcher = _Ray(workers, share, group)
            try:
                yield launcher
            finally:
                launcher.stop()


class _Ray:
    def __init__(self, workers: int, share: Share, group: PlacementGroup) -> None:
        self.share = share
        self._workers = workers
        self._group = group
        self._data: Any = None
        self._ranks = self._start()  # they import torch while the driver does

    def _start(self) -> list[Any]:
        kind: Any = ray.remote(
            num_cpus=self.share.threads,
            num_gpus=int(self.share.device == "cuda"),
            max_restarts=0,
        )(RayRank)
        places = [
            PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
            for rank in range(self._workers)
        ]
        # Two threads: it trains in one and hears in the other.
        return [
            kind.options(scheduling_strategy=place, max_concurrency=2).remote() for place in places
        ]

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display, stop: Stop) -> Trained:
        home = RunDirectory(attempt.directory)
        self._data = self._data or ray.put(shared(dataset))
        self._ranks = self._ranks or self._start()
        at = self._ranks[0].meeting_point.remote()
        answers = [
            actor.train.remote(attempt, Place(rank, self._workers), self._data, at)
            for rank, actor in enumerate(self._ranks)
        ]
        with shown(home.metrics, home.path / POSITION, display):
            try:
                return Trained.from_json(self._all(answers, stop)[0])
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End every worker, whatever it is doing."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks = []

    def _all(self, answers: Sequence[Any], stop: Stop) -> list[str]:
        """Return every rank's answer; raise the failure that the others followed from.

        Waits in Python: inside `ray.wait`, Ray turns SIGTERM into an exit of its own.
        """
        ranks: dict[Future[str], int] = {each.future(): rank for rank, each in enumerate(answers)}
        waiting, failures, deadline = set(ranks), [], math.inf
        told = False
        while waiting and time.monotonic() < deadline:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            if stop.asked() and not told:
                told = True
                for actor in self._ranks:
                    actor.stop.remote()
            for answer in done:
                error = answer.exception()
                if error is not None:
                    failures.append(_failure(ranks[answer], error))
                    deadline = min(deadline, time.monotonic() + _CAUSE_SECONDS)
                    if not lost_a_peer(failures[-1]):
                        raise failures[-1] from error
        if failures:
            raise failures[0]
        return [answer.result() for answer in ranks]


def _failure(rank: int, error: BaseException) -> WorkerFailure:
    """Return what happened to a rank; raise it where another attempt would end the same."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, HeliotropeError):
            raise error.cause from None
        return WorkerFailure(rank, f"{type(error.cause).__name__}: {error.cause}")
    _log.error("rank %d: %s", rank, " ".join(str(error).split()))
    if isinstance(error, OutOfMemoryError):
        return WorkerFailure(rank, "its process ran out of memory")
    if "creation task" in str(error):  # such as: this package is not there on that node
        return WorkerFailure(rank, f"could not start: {str(error).splitlines()[-1]}")
    return WorkerFailure(rank, "its process died")
