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
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.cluster import Cluster, alive, free, room, session
from heliotrope.config import Run
from heliotrope.display import Display
from heliotrope.elastic import worker_range
from heliotrope.errors import HeliotropeError, ResourceError
from heliotrope.rundir import RunDirectory

from .attempt import Attempt, Place, Share, Trained, WorkerFailure
from .failures import lost_a_peer, reason_of
from .launchers import Launcher
from .live import POSITION, shown
from .ray_rank import RayRank, shared
from .share import fitting

if TYPE_CHECKING:
    from heliotrope.data import Dataset

    from .stop import Stop

__all__ = ["ray_launcher"]

_log = logging.getLogger(__name__)

_REPLACEMENT_SECONDS = 60.0  # how long to wait for a node in the place of one that was lost
_FREED_SECONDS = 5.0  # that Ray may take to give back what was held before
_LOOK_SECONDS, _SELDOM = 5.0, 300.0  # between two looks for room for more workers
_CAUSE_SECONDS = 5.0  # how long the cause may take to show, after a rank that only lost its peer


@contextmanager
def ray_launcher(run: Run) -> Iterator[Launcher]:
    """Actors on the running cluster, or on a Ray of our own here; see `heliotrope.cluster`."""
    with session(ray) as cluster:
        launcher = _Ray(run)
        try:
            launcher.start(cluster, patience=30.0)  # they import torch while the driver does
            yield launcher
        finally:
            launcher.stop()


class _Ray:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._held = ExitStack()  # the room on the cluster
        self._ranks: list[Any] = []
        self._share = Share(0, "")
        self._had = 0  # workers of the attempt before
        self._every = _LOOK_SECONDS
        self._look = 0.0  # when to look for more room
        self._data: Any = None

    def gather(self) -> tuple[int, Share]:
        deadline = time.monotonic() + _REPLACEMENT_SECONDS
        while not self._ranks:
            try:
                self.start(alive(ray), patience=3.0)
            except ResourceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        return len(self._ranks), self._share

    def start(self, cluster: Cluster, patience: float) -> None:
        """Start as many workers as find room; `ResourceError` if `cluster` has none for them."""
        workers, self._share, group = self._room(cluster, patience)
        gpus = int(self._share.device == "cuda")
        kind: Any = ray.remote(num_cpus=self._share.threads, num_gpus=gpus, max_restarts=0)(RayRank)
        for rank in range(workers):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            # Two threads: it trains in one and hears in the other.
            actor = kind.options(scheduling_strategy=place, max_concurrency=2)
            self._ranks.append(actor.remote())
        # Free CPUs in the wrong places look like room, but stopping to have them is in vain.
        self._every = _LOOK_SECONDS if workers > self._had else min(2 * self._every, _SELDOM)
        self._look, self._had = time.monotonic() + self._every, workers

    def _room(self, cluster: Cluster, patience: float) -> tuple[int, Share, Any]:
        """Hold room for the most workers that `cluster` has, or for fewer if others hold it."""
        fewest, most = worker_range(self._run.distributed.workers)
        if fewest < most:
            with suppress(ResourceError):
                return self._held_for(cluster, *next(fitting(self._run, cluster)), _FREED_SECONDS)
            *larger, last = fitting(self._run, cluster, free(ray))
            for choice in larger:
                with suppress(ResourceError):
                    return self._held_for(cluster, *choice, 1.0)
        else:
            last = next(fitting(self._run, cluster))
        return self._held_for(cluster, *last, patience)

    def _held_for(
        self, cluster: Cluster, workers: int, share: Share, patience: float
    ) -> tuple[int, Share, Any]:
        each = {"CPU": share.threads} | ({"GPU": 1} if share.device == "cuda" else {})
        held = room(ray, cluster, "distributed.workers", workers, each, patience)
        return workers, share, self._held.enter_context(held)

    def launch(self, attempt: Attempt, dataset: Dataset, display: Display, stop: Stop) -> Trained:
        home = RunDirectory(attempt.directory)
        self._data = self._data or ray.put(shared(dataset))
        at = self._ranks[0].meeting_point.remote()
        answers = [
            actor.train.remote(attempt, Place(rank, len(self._ranks)), self._data, at)
            for rank, actor in enumerate(self._ranks)
        ]
        with shown(home.metrics, home.path / POSITION, display):
            try:
                trained = Trained.from_json(self._all(answers, stop)[0])
            except BaseException:
                self.stop()
                raise
        if trained.stopped:  # they will not be asked again
            self.stop()
        return trained

    def stop(self) -> None:
        """End every worker, whatever it is doing, and give its room back."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks = []
        self._held.close()

    def _all(self, answers: Sequence[Any], stop: Stop) -> list[str]:
        """Return every rank's answer; raise the failure that the others followed from.

        Waits in Python: inside `ray.wait`, Ray turns SIGTERM into an exit of its own.
        """
        ranks: dict[Future[str], int] = {each.future(): rank for rank, each in enumerate(answers)}
        waiting, failures, deadline = set(ranks), [], math.inf
        told = False
        while waiting and time.monotonic() < deadline:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            if not told and (stop.asked() or self._room_for_more()):
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

    def _room_for_more(self) -> bool:
        """Return whether an elastic run could have more workers than it has."""
        now = len(self._ranks)
        if now == worker_range(self._run.distributed.workers)[1] or time.monotonic() < self._look:
            return False
        self._look = time.monotonic() + self._every
        cpus, gpus = free(ray)
        ours = (cpus + now * self._share.threads, gpus + now * (self._share.device == "cuda"))
        try:
            return next(fitting(self._run, alive(ray), ours))[0] > now
        except ResourceError:  # a node is going: its workers will be missed soon enough
            return False


def _failure(rank: int, error: BaseException) -> WorkerFailure:
    """Return what happened to a rank; raise it where another attempt would end the same."""
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, HeliotropeError):
            raise error.cause from None
        return WorkerFailure(rank, reason_of(f"{type(error.cause).__name__}: {error.cause}"))
    _log.error("rank %d: %s", rank, " ".join(str(error).split()))
    if isinstance(error, OutOfMemoryError):
        return WorkerFailure(rank, "ran out of memory: Ray ended its process")
    if "creation task" in str(error):  # such as: this package is not there on that node
        return WorkerFailure(rank, f"could not start: {str(error).splitlines()[-1]}")
    if isinstance(error, ActorUnavailableError):  # Ray does not know yet that it is dead
        return WorkerFailure(rank, "its process died, it seems with its node")
    return WorkerFailure(rank, "its process died")
