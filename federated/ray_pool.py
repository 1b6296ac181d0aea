"""The pool on Ray: one actor a CPU share, data in shared memory, one broadcast a round."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from heliotrope.config import Run
from heliotrope.data import Partition, Split
from heliotrope.errors import WorkerError
from heliotrope.metrics import ClassificationMetrics
from heliotrope.resources import peak_rss_bytes
from heliotrope.tasks import Task
from heliotrope.tracking import log_to

from .choice import Choice
from .client import Clients, Instruction, Update, Weights
from .cohort import CohortWorker, place
from .lane import Reply
from .setup import assemble
from .time_limit import HANG_SECONDS

__all__ = ["RayPool"]

_log = logging.getLogger(__name__)

_DEAD = (RayActorError, WorkerCrashedError, OutOfMemoryError)
_TRAIN = "train"
_GRACE = 30.0  # seconds beyond the clients' own time limit, for code that no signal stops
_ATTEMPTS = 3  # times one part of a cohort may kill its worker before the run gives up

Arrays = dict[str, NDArray[Any]]


class _Actor:
    """A `CohortWorker` in a Ray process; arrays cross as NumPy, read in place when they arrive."""

    def __init__(
        self,
        setting: tuple[Run, Task, Mapping[str, float], str],
        splits: Sequence[str],
        *arrays: NDArray[Any],
    ) -> None:
        run, task, share, log = setting
        threads = int(share["CPU"])
        torch.set_num_threads(threads)
        log_to(Path(log), f"worker process {os.getpid()}")
        indices, offsets, *rest = arrays
        with warnings.catch_warnings():  # the shared arrays are read-only, and only read
            warnings.simplefilter("ignore", UserWarning)
            tensors = [torch.from_numpy(array) for array in rest]
        central = dict(zip(splits, map(Split, tensors[::2], tensors[1::2]), strict=True))
        parts = Partition(indices, offsets)
        clients = assemble(run, task, central.pop(_TRAIN), parts, central)
        device = torch.device("cuda" if share.get("GPU") else "cpu")
        self._worker = CohortWorker(clients.on(device), threads)

    def process(self) -> int:
        """Return the process id, once the actor is set up."""
        return os.getpid()

    def measure(self, weights: Arrays, order: Instruction, cohort: Sequence[int]) -> Choice:
        return self._worker.measure(_tensors(weights), order, cohort)

    def train(
        self,
        weights: Arrays,
        cohort: Sequence[int],
        order: Instruction,
        choice: Choice,
        reduce: bool,
    ) -> tuple[Reply, list[Arrays]]:
        reply = self._worker.train(_tensors(weights), order, cohort, choice, reduce)
        arrays = [_numpy(update.arrays) for update in reply.updates]
        return Reply([_bare(update) for update in reply.updates], reply.failures), arrays

    def evaluate(
        self, weights: Arrays, cohort: Sequence[int]
    ) -> list[tuple[int, ClassificationMetrics]]:
        return self._worker.evaluate(_tensors(weights), cohort)

    def evaluate_centrally(
        self, weights: Arrays, part: int, parts: int
    ) -> dict[str, ClassificationMetrics]:
        return self._worker.evaluate_centrally(_tensors(weights), part, parts)

    def peak_rss_bytes(self) -> int:
        return peak_rss_bytes()


class RayPool:
    """`federated.workers` actors in the placement group that holds each one's `share`.

    `share` are CPUs, which are its threads, and perhaps a part of a GPU.

    An actor that dies is replaced and its part of the cohort done again: the result is the
    same, since all draws are seeded.
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
        splits = {_TRAIN: clients.train, **clients.central}
        tensors = [t for split in splits.values() for t in (split.inputs, split.targets)]
        data = [ray.put(parts.indices), ray.put(parts.offsets)]
        data += [ray.put(tensor.cpu().numpy()) for tensor in tensors]
        remote = ray.remote(
            num_cpus=share["CPU"], num_gpus=share.get("GPU", 0), max_restarts=0, max_task_retries=0
        )
        kind: Any = remote(_Actor)
        setting = (run, clients.task, dict(share), str(log))

        def start(worker: int) -> Any:
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=worker)
            return kind.options(scheduling_strategy=place).remote(setting, list(splits), *data)

        self._start: Callable[[int], Any] = start
        self._actors: list[Any] = [start(worker) for worker in range(workers)]
        _log.info("%d workers, each of %s: processes %s", workers, share, self.processes())

    def processes(self) -> list[int]:
        """Return the process id of each worker, once it is set up."""
        return self._ask("process", dict.fromkeys(range(len(self._actors)), ()))

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        calls = {0: (_numpy(weights), order, cohort)}
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
                    _dressed(update, part)
                    for update, part in zip(reply.updates, arrays, strict=True)
                ],
                reply.failures,
            )
            for reply, arrays in answers
        ]

    def evaluate(
        self, weights: Weights, cohort: Sequence[int]
    ) -> list[tuple[int, ClassificationMetrics]]:
        answers = self._spread("evaluate", weights, cohort)
        return sorted((pair for answer in answers for pair in answer), key=lambda pair: pair[0])

    def evaluate_centrally(self, weights: Weights) -> dict[str, ClassificationMetrics]:
        shared = ray.put(_numpy(weights))
        workers = range(len(self._actors))
        calls = {worker: (shared, worker, len(workers)) for worker in workers}
        first, *others = self._ask("evaluate_centrally", calls)
        return {name: sum((o[name] for o in others), start=own) for name, own in first.items()}

    def _spread(
        self,
        method: str,
        weights: Weights,
        cohort: Sequence[int],
        *arguments: object,
    ) -> list[Any]:
        """Call `method` on every worker with its part of the cohort; answers in worker order."""
        shared = ray.put(_numpy(weights))
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
        attempts = dict.fromkeys(calls, 0)
        waiting: dict[Any, int] = {}

        def submit(worker: int) -> None:
            attempts[worker] += 1
            remote = getattr(self._actors[worker], method).remote
            waiting[remote(*calls[worker])] = worker

        for worker in calls:
            submit(worker)
        while waiting:
            ready, silent = ray.wait(list(waiting), num_returns=1, timeout=seconds)
            if not ready:
                for reference in silent:
                    _log.error("worker %d hangs: it is killed", waiting[reference])
                    ray.kill(self._actors[waiting[reference]])
                continue
            worker = waiting.pop(ready[0])
            having = f" with clients {_some(parts[worker])}" if parts else ""
            try:
                answers[worker] = ray.get(ready[0])
            except _DEAD as error:
                self._replace(worker, having, attempts[worker], error)
                submit(worker)
            except RayTaskError as error:
                raise WorkerError(f"worker {worker} failed{having}: {error}") from error
        return [answers[worker] for worker in sorted(answers)]

    def _replace(self, worker: int, having: str, attempts: int, error: Exception) -> None:
        reason = f"worker process died ({type(error).__name__}){having}"
        _log.error("worker %d: %s", worker, reason)
        self._on_failure(worker, reason)
        if attempts >= _ATTEMPTS:
            raise WorkerError(
                f"worker {worker} died {attempts} times{having}: {error}. "
                "If memory ran out, lower federated.workers or federated.batch_size."
            ) from error
        ray.kill(self._actors[worker])  # it may live, and only not be heard
        self._actors[worker] = self._start(worker)

    def peak_rss_bytes(self) -> int:
        return sum(self._ask("peak_rss_bytes", dict.fromkeys(range(len(self._actors)), ())))

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor)


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return {name: torch.from_numpy(value) for name, value in arrays.items()}


def _numpy(weights: Weights) -> Arrays:
    return {name: np.asarray(value.cpu().numpy(), order="C") for name, value in weights.items()}


def _bare(update: Update) -> Update:
    return _dressed(update, {})


def _dressed(update: Update, arrays: Arrays) -> Update:
    return Update(
        update.clients,
        _tensors(arrays),
        update.examples,
        update.loss_sum,
        update.seen,
        update.steps,
    )


def _some(clients: Sequence[int]) -> str:
    shown = ", ".join(str(client) for client in clients[:8])
    return shown + (f" and {len(clients) - 8} more" if len(clients) > 8 else "")
