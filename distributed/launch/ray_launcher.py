"""The `ray` launcher: one actor a rank in a placement group, on a laptop as on a cluster.

Plain actors instead of Ray Train: they reach the first step in a quarter of the time, and a
step never waits for the two-second poll of Ray Train's `report`. On several nodes, the run's
directory must be on a file system that all of them share.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.cluster.connection import Cluster, alive, free, session
from heliotrope.cluster.environment import driver_environment
from heliotrope.cluster.placement import Request, reserved, say
from heliotrope.config import Run
from heliotrope.config.workers import worker_range
from heliotrope.errors import HeliotropeError
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.system.allocator import huge_pages
from heliotrope.system.process_exit import brief
from heliotrope.system.signals import held_back

from ..attempt import RunAttempt, TrainingResult, WorkerFailure, WorkerResources
from ..loop.progress import POSITION, shown_from_files
from ..topology import Topology
from .base import Launcher
from .failures import lost_a_peer, reason_of
from .ray_worker import RayWorker, shared
from .resources import fitting_resources, returns_large_blocks

if TYPE_CHECKING:
    from heliotrope.data import Dataset
    from heliotrope.system.signals import Stop

__all__ = ["ray_launcher"]

_log = logging.getLogger(__name__)

_LOOK_SECONDS, _SELDOM = 5.0, 300.0  # between two looks for room for more workers
_CAUSE_SECONDS = 5.0  # how long the cause may take to show, after a rank that only lost its peer


@contextmanager
def ray_launcher(run: Run) -> Iterator[Launcher]:
    """Actors on the running cluster, or on a Ray of our own here; see `heliotrope.cluster`."""
    with session(ray) as cluster:
        launcher = _Ray(run)
        try:
            launcher.start(cluster)  # they import torch while the driver does
            yield launcher
        finally:
            launcher.stop()


class _Ray:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._held = ExitStack()  # the room on the cluster
        self._ranks: list[Any] = []
        self._resources = WorkerResources(0, "")
        self._had = 0  # workers of the attempt before
        self._every = _LOOK_SECONDS
        self._look = 0.0  # when to look for more room
        self._data: Any = None
        self._can_grow = False
        self._up: list[Future[Any]] = []  # done where a worker's process is there

    def gather(self) -> tuple[int, WorkerResources]:
        if not self._ranks:
            self.start(self._cluster())
        return len(self._ranks), self._resources

    def start(self, cluster: Cluster) -> None:
        """Start as many workers as find room; `ResourceError` if `cluster` has none for them."""
        self._can_grow = cluster.can_grow
        workers, self._resources, group = self._room(cluster)
        gpus = int(self._resources.device == "cuda")
        kind: Any = ray.remote(num_cpus=self._resources.threads, num_gpus=gpus, max_restarts=0)(
            RayWorker
        )
        environment = driver_environment(self._run.cluster, inherited=not cluster.can_grow)
        if returns_large_blocks(self._run):
            settings = {**environment.settings, **huge_pages(environment.settings)}
            environment = replace(environment, settings=settings)
        for rank in range(workers):
            scheduling = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
            # Two threads: it trains in one and hears in the other.
            options = {
                "scheduling_strategy": scheduling,
                "max_concurrency": 2,
                **environment.options,
            }
            actor = kind.options(**options)
            with held_back():
                self._ranks.append(actor.remote(environment))
        # Free CPUs in the wrong places look like room, but stopping to have them is in vain.
        self._every = _LOOK_SECONDS if workers > self._had else min(2 * self._every, _SELDOM)
        self._look, self._had = time.monotonic() + self._every, workers

    def _room(self, cluster: Cluster) -> tuple[int, WorkerResources, Any]:
        """Hold room for the most workers that `cluster` has, or for fewer if others hold it."""

        def requests(free: tuple[int, int] | None) -> Iterator[Request]:
            for workers, resources in fitting_resources(self._run, cluster, free):
                gpu = {"GPU": 1} if resources.device == "cuda" else {}
                yield Request(workers, {"CPU": resources.threads} | gpu)

        patience = self._run.cluster.wait_seconds
        found = reserved(ray, cluster, "distributed.workers", requests, patience)
        request, group = self._held.enter_context(found)
        resources = WorkerResources(
            int(request.each["CPU"]), "cuda" if "GPU" in request.each else "cpu"
        )
        auto = self._run.device == "auto" and resources.device == "cpu"
        if auto and cluster.gpu_workers >= request.workers:
            say(
                f"device=auto: of the Ray cluster's {cluster.gpus} GPU(s), others leave fewer "
                f"than distributed.workers={request.workers}: training on CPUs. device=cuda waits."
            )
        return request.workers, resources, group

    def _cluster(self) -> Cluster:
        return alive(ray, can_grow=self._can_grow)

    def launch(
        self, attempt: RunAttempt, dataset: Dataset, display: Display, stop: Stop
    ) -> TrainingResult:
        from .node_relay import Relay  # here: it imports torch

        run_dir = RunDirectory(attempt.directory)
        self._data = self._data or ray.put(shared(dataset))
        self._up = [actor.__ray_ready__.remote().future() for actor in self._ranks]
        with shown_from_files(run_dir.metrics, run_dir.path / POSITION, display):
            try:
                with Relay(self._apart(attempt, stop), run_dir.path) as relay:
                    at = self._ranks[0].meeting_point.remote()
                    answers = [
                        actor.train.remote(
                            attempt, Topology(rank, len(self._ranks)), self._data, at
                        )
                        for rank, actor in enumerate(self._ranks)
                    ]
                    first, *_ = self._all(answers, stop, relay.raise_if_failed)
                    trained = TrainingResult.from_json(first)
            except BaseException:
                self.stop()
                raise
        if trained.stopped:  # they will not be asked again
            self.stop()
        return trained

    def _apart(self, attempt: RunAttempt, stop: Stop) -> dict[int, Any]:
        """Return the workers, by rank, that do not see the run's directory, and let them have one.

        A new file in it tells, which no node knows from before.
        """
        if len(self._cluster().node_cpus) == 1:
            return {}
        mark = attempt.directory / f".shared.{attempt.start.token}"
        mark.touch()
        try:
            seen = self._all([actor.sees.remote(mark) for actor in self._ranks], stop)
        finally:
            mark.unlink()
        apart = {rank: actor for rank, actor in enumerate(self._ranks) if not seen[rank]}
        if apart:
            _log.info("rank %s: not on a file system with %s", [*apart], attempt.directory)
            from .node_files import given_to_nodes  # here: it imports torch

            given = ray.put(given_to_nodes(attempt))
            begun = [actor.work_apart.remote(rank, given) for rank, actor in apart.items()]
            self._all(begun, stop)
        return apart

    def stop(self) -> None:
        """End every worker, whatever it is doing, and give its room back."""
        with brief():
            for actor in self._ranks:
                ray.kill(actor)
        self._ranks = []
        self._held.close()

    def _all(
        self, answers: Sequence[Any], stop: Stop, check: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """Return every rank's answer; raise the failure that the others followed from.

        `check` is called while it waits, and may raise. Waits in Python: inside `ray.wait`, Ray
        turns SIGTERM into an exit of its own.
        """
        ranks: dict[Future[Any], int] = {each.future(): rank for rank, each in enumerate(answers)}
        waiting, failures, deadline = set(ranks), [], math.inf
        stopping: list[Future[bool]] = []
        while waiting and time.monotonic() < deadline:
            done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
            check()
            if not stopping and (stop.asked() or self._room_for_more()):
                stopping = [actor.stop.remote().future() for actor in self._ranks]
            if stop.asked() and self._nothing_to_save(stopping):
                stop.leave()
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

    def _nothing_to_save(self, stopping: Sequence[Future[bool]]) -> bool:
        """Return whether the workers, told to stop, have not done a step yet in this attempt."""
        if not all(up.done() for up in self._up):
            return True
        return all(each.done() for each in stopping) and not any(
            each.result() for each in stopping if each.exception() is None
        )

    def _room_for_more(self) -> bool:
        """Return whether an elastic run could have more workers than it has."""
        now = len(self._ranks)
        if now == worker_range(self._run.distributed.workers)[1] or time.monotonic() < self._look:
            return False
        self._look = time.monotonic() + self._every
        cpus, gpus = free(ray)
        ours = (
            cpus + now * self._resources.threads,
            gpus + now * (self._resources.device == "cuda"),
        )
        return next(fitting_resources(self._run, self._cluster(), ours))[0] > now


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
