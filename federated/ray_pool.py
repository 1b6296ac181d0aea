"""The pool on Ray: one actor a CPU share, data in shared memory, one broadcast a round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.config import Run
from heliotrope.errors import WorkerError
from heliotrope.metrics import ClassificationMetrics

from .choice import Choice
from .client import Clients, Instruction, Weights
from .cohort import Evaluations, place
from .lane import Reply
from .ray_actor import TRAIN, Actor, as_arrays, with_arrays
from .time_limit import HANG_SECONDS, Hung, read_hang

__all__ = ["RayPool"]

_log = logging.getLogger(__name__)

_DEAD = (RayActorError, WorkerCrashedError, OutOfMemoryError)
_GRACE = 30.0  # seconds beyond the clients' own time limits, for a worker that is not heard
_ATTEMPTS = 3  # times one part of a cohort may kill its worker before the run gives up


class RayPool:
    """`federated.workers` actors in the placement group that holds each one's `share`.

    `share` are CPUs, which are its threads, and perhaps a part of a GPU.

    An actor that dies is replaced and its part of the cohort done again: the result is the
    same, since all draws are seeded. If it ended itself over a client that hangs, that client
    fails the second time.
    """

    def __init__(
        self,
        run: Run,
        clients: Clients,
        share: Mapping[str, float],
        group: PlacementGroup,
        log: Path,
        on_failure: Callable[[int, str], None],
    ) -> None:
        workers = run.federated.workers
        self._population = clients.population
        self._patience = run.federated.client_timeout
        self._grace = _GRACE
        self._on_failure = on_failure
        parts = clients.population.partition
        central = sum(map(len, clients.central.values())) / (workers * parts.sizes.mean())
        self._central_seconds = self._patience and _GRACE + central * self._patience
        splits = {TRAIN: clients.train, **clients.central}
        tensors = [t for split in splits.values() for t in (split.inputs, split.targets)]
        data = [ray.put(parts.indices), ray.put(parts.offsets)]
        data += [ray.put(tensor.cpu().numpy()) for tensor in tensors]
        remote = ray.remote(
            num_cpus=share["CPU"], num_gpus=share.get("GPU", 0), max_restarts=0, max_task_retries=0
        )
        kind: Any = remote(Actor)
        setting = (run, clients.task, dict(share), log)
        self._notes = [log.with_name(f"worker_{worker}.note") for worker in range(workers)]
        self._forget()

        def start(worker: int) -> Any:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=worker)
            note = None if self._patience is None else self._notes[worker]
            return kind.options(scheduling_strategy=place).remote(
                setting, note, list(splits), *data
            )

        self._start: Callable[[int], Any] = start
        self._actors: list[Any] = [start(worker) for worker in range(workers)]
        _log.info("%d workers, each of %s: processes %s", workers, share, self.processes())

    def processes(self) -> list[int]:
        """Return the process id of each worker, once it is set up."""
        return self._ask("process", dict.fromkeys(range(len(self._actors)), ()))

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        calls = {0: (as_arrays(weights), order, cohort)}
        (choice,) = self._ask("measure", calls, [cohort], self._seconds(len(cohort)))
        assert isinstance(choice, Choice)
        return choice

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        reduce: bool,
    ) -> list[Reply]:
        answers = self._spread("train", weights, cohort, order, choice, reduce)
        return [
            Reply(
                [
                    with_arrays(update, part)
                    for update, part in zip(reply.updates, arrays, strict=True)
                ],
                reply.failures,
            )
            for reply, arrays in answers
        ]

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> Evaluations:
        answers = self._spread("evaluate", weights, cohort)
        metrics = {client: found for answer in answers for client, found in answer.metrics.items()}
        failures = [failure for answer in answers for failure in answer.failures]
        return Evaluations(
            metrics=dict(sorted(metrics.items())),
            failures=sorted(failures, key=lambda failure: failure.client),
        )

    def evaluate_centrally(self, weights: Weights) -> dict[str, ClassificationMetrics]:
        shared = ray.put(as_arrays(weights))
        workers = range(len(self._actors))
        calls = {worker: (shared, worker, len(workers)) for worker in workers}
        first, *others = self._ask("evaluate_centrally", calls, seconds=self._central_seconds)
        return {name: sum((o[name] for o in others), start=own) for name, own in first.items()}

    def _spread(
        self,
        method: str,
        weights: Weights,
        cohort: Sequence[int],
        *arguments: object,
    ) -> list[Any]:
        """Call `method` on every worker with its part of the cohort; answers in worker order."""
        shared = ray.put(as_arrays(weights))
        costs = self._population.train_sizes(cohort)
        parts = place(costs, cohort, len(self._actors))
        calls = {worker: (shared, part, *arguments) for worker, part in enumerate(parts) if part}
        return self._ask(method, calls, parts, self._seconds(max(map(len, parts))))

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
    ) -> list[Any]:
        """Call `method` on the workers named; one that dies is replaced and asked again.

        `parts` are the clients each worker has, for messages; a worker that is silent for
        `seconds` is killed. Raises `WorkerError` naming worker and clients if it raises, or
        dies too often.
        """
        answers: dict[int, Any] = {}
        deaths = dict.fromkeys(calls, 0)
        hung: dict[int, Hung] = {worker: {} for worker in calls}
        waiting: dict[Any, int] = {}

        def submit(worker: int) -> None:
            do = self._actors[worker].do
            waiting[do.remote(method, hung[worker], *calls[worker])] = worker

        for worker in calls:
            submit(worker)
        while waiting:
            ready, silent = ray.wait(list(waiting), num_returns=1, timeout=seconds)
            if not ready:
                self._silence([waiting[reference] for reference in silent], method, seconds)
                continue
            worker = waiting.pop(ready[0])
            having = f" with clients {_some(parts[worker])}" if parts else ""
            try:
                answers[worker] = ray.get(ready[0])
            except _DEAD as error:
                hang = self._hang(worker)
                hung[worker] = {**hung[worker], **hang}
                if not hang:
                    deaths[worker] += 1
                    self._mourn(worker, having, deaths[worker], error)
                ray.kill(self._actors[worker])  # it may live, and only not be heard
                self._actors[worker] = self._start(worker)
                submit(worker)
            except RayTaskError as error:
                raise WorkerError(f"worker {worker} failed{having}: {error}") from error
        return [answers[worker] for worker in sorted(answers)]

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
        for actor in self._actors:
            ray.kill(actor)
        self._forget()

    def _forget(self) -> None:
        for note in self._notes:  # perhaps those of an earlier run, which was killed
            note.unlink(missing_ok=True)


def _some(clients: Sequence[int]) -> str:
    shown = ", ".join(str(client) for client in clients[:8])
    return shown + (f" and {len(clients) - 8} more" if len(clients) > 8 else "")
