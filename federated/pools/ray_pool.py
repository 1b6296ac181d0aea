"""The pool on Ray: one actor a CPU share, data in shared memory, one broadcast a round.

Ray places the workers, notices their deaths and starts them anew. Those on the driver's machine
are asked over a `LocalChannels`, the others by calls of Ray.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.cluster.environment import DriverEnvironment
from heliotrope.config import Run
from heliotrope.errors import WorkerError
from heliotrope.metrics import Metrics
from heliotrope.system.process_exit import brief
from heliotrope.system.signals import held_back

from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations, merged
from ..engine.context import TrainingContext
from ..engine.execution import Decision, ExecutionPlan
from ..engine.thread_lane import Reply
from ..engine.time_limit import HANG_SECONDS, Hung, read_hang
from ..updates import Instruction, Weights
from .base import Pool
from .cohort_worker import assign_clients
from .local_channel import LocalChannels
from .ray_actor import TRAIN, Actor, as_arrays, unpacked
from .ray_process import Process

__all__ = ["RayPool"]

_log = logging.getLogger(__name__)


class _LostError(Exception):
    """A worker closed its channel, and Ray does not know why."""


class _FailedError(Exception):
    """What a worker was asked to do raised an error: its traceback."""


_INHERITED = DriverEnvironment()
_DEAD = (RayActorError, WorkerCrashedError, OutOfMemoryError, _LostError)
_GRACE = 30.0  # seconds beyond the clients' own time limits, for a worker that is not heard
_TRIALS = 16  # clients' trainings in a decision: two, in four ways, from two starts
_LISTEN_SECONDS = 0.2  # that a call of Ray's may last: no signal is heard in it
_LOOK_SECONDS = 0.002  # between looks at workers here, which have channels, and elsewhere
_ATTEMPTS = 3  # times one part of a cohort may kill its worker before the run gives up


class RayPool(Pool):
    """`federated.workers` actors in the placement group that holds each one's `resources`.

    `resources` are CPUs, which are its threads, and perhaps a part of a GPU.

    An actor that dies is replaced and its part of the cohort done again: the result is the
    same, since all draws are seeded. If it ended itself over a client that hangs, that client
    fails the second time.
    """

    def __init__(
        self,
        run: Run,
        context: TrainingContext,
        resources: Mapping[str, float],
        group: PlacementGroup,
        log: Path,
        on_failure: Callable[[int, str], None],
        environment: DriverEnvironment = _INHERITED,
    ) -> None:
        workers = run.federated.workers
        self._population = context.population
        self._patience = run.federated.client_timeout
        self._grace = _GRACE
        self._on_failure = on_failure
        partition = context.population.partition
        central = sum(map(len, context.central.values())) / (workers * partition.sizes.mean())
        self._central_seconds = self._patience and _GRACE + central * self._patience
        splits = {TRAIN: context.train, **context.central}
        data: list[Any] = [
            ray.put(array) for array in (partition.indices, partition.offsets, partition.identities)
        ]
        data += [ray.put(replace(split, keys=None)) for split in splits.values()]
        remote = ray.remote(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_restarts=0,
            max_task_retries=0,
        )
        kind: Any = remote(Process)
        setting = (run, context.task, dict(context.owners), dict(resources), log)
        references = [ray.put((Actor, setting, list(splits))), *data]
        self._notes = [log.with_name(f"worker_{worker}.note") for worker in range(workers)]
        self._forget()

        def start(worker: int) -> Any:
            assign_clients = PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=worker
            )
            note = None if self._patience is None else self._notes[worker]
            options = {"scheduling_strategy": assign_clients, **environment.options}
            return kind.options(**options).remote(environment, note, references)

        self._start: Callable[[int], Any] = start
        self._local = LocalChannels()
        with held_back():
            self._actors: list[Any] = [start(worker) for worker in range(workers)]
        _log.info("%d workers, each of %s: processes %s", workers, resources, self.processes())

    def processes(self) -> list[int]:
        """Return the process id of each worker, once it is set up."""
        return self._ask("process", dict.fromkeys(range(len(self._actors)), ()))

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        # The made-up clients of `verdict` stand for the cohort.
        (decision,) = self._ask(
            "decide", {0: (cohort, algorithms)}, [range(2)], self._seconds(_TRIALS)
        )
        assert isinstance(decision, Decision)
        return decision

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> list[Reply]:
        costs = self._population.train_sizes(cohort)
        answers = self._spread(
            "train", weights, cohort, costs, lambda part: (instruction.of(part), execution, reduce)
        )
        return [unpacked(reply, arrays) for reply, arrays in answers]

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        costs = self._population.holdout_sizes(cohort)
        return merged(
            self._spread(
                "evaluate",
                weights,
                cohort,
                costs,
                lambda part: (None if states is None else states.take(part),),
            )
        )

    def evaluate_splits_of(self, weights: Weights, states: ClientStates) -> dict[str, Metrics]:
        cohort = states.clients
        costs = self._population.train_sizes(cohort)
        return _summed(
            self._spread(
                "evaluate_splits_of", weights, cohort, costs, lambda part: (states.take(part),)
            )
        )

    def evaluate_centrally(self, weights: Weights) -> dict[str, Metrics]:
        workers = range(len(self._actors))
        calls = {worker: (worker, len(workers)) for worker in workers}
        seconds = self._central_seconds
        return _summed(self._ask("evaluate_centrally", calls, seconds=seconds, weights=weights))

    def _spread(
        self,
        method: str,
        weights: Weights,
        cohort: Sequence[int],
        costs: Sequence[int],
        arguments: Callable[[Sequence[int]], tuple[object, ...]],
    ) -> list[Any]:
        """Call `method` on every worker with its part of the cohort; answers in worker order.

        `arguments` gives what follows for a part.
        """
        parts = assign_clients(costs, cohort, len(self._actors))
        calls = {worker: (part, *arguments(part)) for worker, part in enumerate(parts) if part}
        return self._ask(method, calls, parts, self._seconds(max(map(len, parts))), weights)

    def _seconds(self, clients: int) -> float | None:
        """Return how long a worker may be silent: all its clients stacked, then one by one."""
        if self._patience is None:
            return None
        return self._grace + clients * (2 * self._patience + HANG_SECONDS)

    def _ask(
        self,
        method: str,
        calls: Mapping[int, tuple[Any, ...]],
        parts: Sequence[Sequence[int]] = (),
        seconds: float | None = None,
        weights: Weights | None = None,
    ) -> list[Any]:
        """Call `method` on the workers named; one that dies is replaced and asked again.

        `weights`, if any, are its first argument. `parts` are the clients each worker has, for
        messages; a worker that is silent for `seconds` is killed. Raises `WorkerError` naming
        worker and clients if it raises, or dies too often.
        """
        answers: dict[int, Any] = {}
        deaths = dict.fromkeys(calls, 0)
        hung: dict[int, Hung] = {worker: {} for worker in calls}
        waiting: dict[int, Any] = {}  # worker -> Ray's reference, None where there is a channel
        submit = self._submitter(method, calls, weights)
        for worker in calls:
            waiting[worker] = submit(worker, {})
        while waiting:
            ready = self._ready(waiting, seconds)
            if not ready:
                self._silence(list(waiting), method, seconds)
            for worker in ready:
                having = f" with clients {_some(parts[worker])}" if parts else ""
                try:
                    answers[worker] = self._answer(worker, waiting.pop(worker))
                except _DEAD as error:
                    hang = self._hang(worker)
                    hung[worker] = {**hung[worker], **hang}
                    if not hang:
                        deaths[worker] += 1
                        self._mourn(worker, having, deaths[worker], error)
                    self._replace(worker)
                    waiting[worker] = submit(worker, hung[worker])
                except (RayTaskError, _FailedError) as error:
                    raise WorkerError(f"worker {worker} failed{having}: {error}") from error
        return [answers[worker] for worker in sorted(answers)]

    def _submitter(
        self, method: str, calls: Mapping[int, tuple[Any, ...]], weights: Weights | None
    ) -> Callable[[int, Hung], Any]:
        """Return what sends a worker its call, and returns Ray's reference or None."""
        for worker in calls:
            self._local.connect(worker, _held(self._actors[worker].serve.remote), _is_over)
        arrays = None if weights is None else as_arrays(weights)
        packed = None if arrays is None else self._local.share(arrays)
        put: list[Any] = []

        def submit(worker: int, hung: Hung) -> Any:
            channel = self._local.channels.get(worker)
            if channel is not None:
                return channel.ask(method, hung, packed, calls[worker])
            if arrays is not None and not put:
                put.append(_held(ray.put)(arrays))
            return _held(self._actors[worker].do.remote)(method, hung, *put, *calls[worker])

        return submit

    def _ready(self, waiting: Mapping[int, Any], seconds: float | None) -> list[int]:
        """Return workers that have answered or died; none if all are silent for `seconds`."""
        elsewhere = {ref: worker for worker, ref in waiting.items() if ref is not None}
        here = [worker for worker, ref in waiting.items() if ref is None]
        if not elsewhere:
            return self._local.answered(here, seconds)
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            look = _LOOK_SECONDS if here else _LISTEN_SECONDS
            with held_back():
                found, _ = ray.wait(list(elsewhere), num_returns=1, timeout=look)
            ready = [elsewhere[ref] for ref in found]
            ready += self._local.answered(here, 0) if here else []
            if ready or (until is not None and time.monotonic() >= until):
                return ready

    def _answer(self, worker: int, reference: Any) -> Any:
        if reference is not None:
            return _held(ray.get)(reference)
        channel = self._local.channels[worker]
        try:
            done, value = channel.answer()
        except (EOFError, OSError) as error:
            with suppress(GetTimeoutError), held_back():
                ray.get(channel.serving, timeout=_GRACE)  # raises what the worker died of
            raise _LostError("it closed its channel") from error
        if not done:
            raise _FailedError(value)
        return value

    def _replace(self, worker: int) -> None:
        self._local.forget(worker)
        with held_back():
            ray.kill(self._actors[worker])  # it may live, and only not be heard
            self._actors[worker] = self._start(worker)

    def _silence(self, workers: Sequence[int], method: str, seconds: float | None) -> None:
        """Kill workers that are silent: they will be replaced.

        Raises `WorkerError` if it is over no client, and so would be again.
        """
        if method == "evaluate_centrally":
            raise WorkerError(
                f"worker {_some(workers)}: central evaluation was not done after {seconds:g} s. "
                "If it does not hang, raise federated.client_timeout, from which that follows."
            )
        for worker in workers:
            _log.error("worker %d is silent: it is killed", worker)
            ray.kill(self._actors[worker])

    def _hang(self, worker: int) -> Hung:
        """Return the clients over whom a dead worker ended itself, if it did."""
        note = self._notes[worker]
        left = read_hang(note) if note.exists() else None
        note.unlink(missing_ok=True)  # the next worker may die before it has begun its own
        if left is None:
            return {}
        hung, stacks = left
        for clients, reason in hung.items():
            what = f"clients {_some(clients)} were {reason}"
            _log.error("worker %d ended itself, since %s. It was at\n%s", worker, what, stacks)
        return hung

    def _mourn(self, worker: int, having: str, deaths: int, error: Exception) -> None:
        """Note the death of a worker; raises `WorkerError` if it is one too many."""
        reason = f"worker process died ({type(error).__name__}){having}"
        _log.error("worker %d: %s", worker, reason)
        self._on_failure(worker, reason)
        if deaths >= _ATTEMPTS:
            raise WorkerError(
                f"worker {worker} died {deaths} times{having}: {error}. "
                "If memory ran out, lower federated.workers or federated.batch_size."
            ) from error

    def peak_rss_bytes(self) -> int:
        return sum(self._ask("peak_rss_bytes", dict.fromkeys(range(len(self._actors)), ())))

    def close(self) -> None:
        with brief():
            self._local.close()
            for actor in self._actors:
                ray.kill(actor)
        self._forget()

    def _forget(self) -> None:
        for note in self._notes:  # perhaps those of an earlier run, which was killed
            note.unlink(missing_ok=True)


def _summed(parts: Sequence[dict[str, Metrics]]) -> dict[str, Metrics]:
    """Return the sum of workers' metrics of each split."""
    first, *others = parts
    return {name: sum((o[name] for o in others), start=own) for name, own in first.items()}


def _is_over(call: Any) -> bool:
    with held_back():
        return bool(ray.wait([call], timeout=0)[0])


def _held(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call`, of Ray's, in which no signal raises an exception."""

    def held(*arguments: Any) -> Any:
        with held_back():
            return call(*arguments)

    return held


def _some(clients: Sequence[int]) -> str:
    shown = ", ".join(str(client) for client in clients[:8])
    return shown + (f" and {len(clients) - 8} more" if len(clients) > 8 else "")
