"""A cohort on its way through a worker: measured, divided among lanes, and evaluated."""

from __future__ import annotations

import copy
import heapq
import importlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from heliotrope.allocator import keep_freed_memory
from heliotrope.data import Split
from heliotrope.evaluation import evaluate
from heliotrope.metrics import ClassificationMetrics

from .choice import Choice, candidates, fastest
from .client import Clients, Failure, Instruction, Weights, evaluate_client, set_weights
from .lane import Lane, Reply
from .time_limit import Watch, limit_of

__all__ = ["CohortWorker", "Evaluations", "place"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Evaluations:
    """Clients' metrics on their held-out examples, in client order, and who gave none."""

    metrics: dict[int, ClassificationMetrics] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def place(costs: Sequence[int], cohort: Sequence[int], workers: int) -> list[list[int]]:
    """Divide `cohort` among `workers`, longest first to the least loaded; client order within.

    Costs are numbers of examples rather than measured times: placement decides the order in
    which a reduced sum is taken, and must be the same again when a run is resumed.
    """
    loads = [(0, worker) for worker in range(workers)]
    parts: list[list[int]] = [[] for _ in range(workers)]
    for cost, client in sorted(zip(costs, cohort, strict=True), key=lambda x: (-x[0], x[1])):
        load, worker = heapq.heappop(loads)
        parts[worker].append(client)
        heapq.heappush(loads, (load + cost, worker))
    return [sorted(part) for part in parts]


class CohortWorker:
    """Trains and evaluates clients in this process; the same object behind every pool."""

    def __init__(self, clients: Clients, threads: int, note: Path | None = None) -> None:
        keep_freed_memory()
        self.clients = clients
        self.watch = Watch(note)
        self._threads = threads
        self._lanes = [Lane(clients, self.watch)]
        if clients.federated.client_timeout is not None:
            # torch.optim imports it at first use, and an import that is cut off cannot be redone.
            importlib.import_module("torch._dynamo")

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        """Return the fastest way to train clients like these, of those the config allows."""

        def work(choice: Choice, most: int, max_steps: int) -> int:
            def steps(lane: Lane, part: Sequence[int]) -> int:
                return lane.steps(weights, order, part, choice, max_steps)

            return sum(self._in_lanes(choice, cohort[:most], steps))

        return fastest(candidates(self.clients, cohort, self._threads, self.watch), work)

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        reduce: bool,
    ) -> Reply:
        """Train `cohort`; with `reduce`, answer with one mean a lane.

        A client that raises, or whose update is not finite, is reported and left out.
        """

        def train(lane: Lane, part: Sequence[int]) -> Reply:
            return lane.train(weights, order, part, choice, reduce)

        replies = self._in_lanes(choice, cohort, train)
        updates = [update for reply in replies for update in reply.updates]
        failures = [failure for reply in replies for failure in reply.failures]
        return Reply(
            sorted(updates, key=lambda update: update.clients),
            sorted(failures, key=lambda failure: failure.client),
        )

    def _in_lanes(
        self, choice: Choice, cohort: Sequence[int], work: Callable[[Lane, Sequence[int]], _T]
    ) -> list[_T]:
        """Return what `work` gives for each lane's part of `cohort`, as many at once as may be.

        The parts depend on the cohort alone, and with them the order in which sums are taken: also
        where a resumed run has fewer threads, or a time-out.
        """
        free = self.clients.federated.client_timeout is None  # only the main thread can be cut off
        at_once = min(choice.lanes, self._threads) if free else 1
        while len(self._lanes) < choice.lanes:
            model = copy.deepcopy(self.clients.model)
            self._lanes.append(Lane(replace(self.clients, model=model), self.watch))

        def do(lane: Lane, part: Sequence[int]) -> _T:
            torch.set_num_threads(min(choice.threads, self._threads))  # of the thread that calls it
            return work(lane, part)

        lanes = self._lanes[: choice.lanes]
        parts = place(self.clients.population.train_sizes(cohort), cohort, choice.lanes)
        if at_once == 1:
            return [do(lane, part) for lane, part in zip(lanes, parts, strict=True)]
        with ThreadPoolExecutor(at_once) as threads:
            try:
                return list(threads.map(do, lanes, parts))
            except BaseException:  # such as Ctrl-C: nobody waits for the rest of the parts
                for lane in lanes:
                    lane.stopped = True
                raise

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> Evaluations:
        """Evaluate each client on its held-out examples; one that raises is reported."""
        torch.set_num_threads(self._threads)
        done = Evaluations()
        for client in cohort:
            limit = limit_of(self.clients.federated.client_timeout)
            try:
                with self.watch.over([client], limit):
                    metrics = evaluate_client(self.clients, weights, client, limit)
                done.metrics[client] = metrics
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed in evaluation", client)
                reason = f"evaluation: {type(error).__name__}: {error}"
                done.failures.append(Failure(client, reason))
                self.clients.model.train()  # an alarm may have left it otherwise
        return done

    def evaluate_centrally(
        self, weights: Weights, part: int = 0, parts: int = 1
    ) -> dict[str, ClassificationMetrics]:
        """Return the metrics on the validation and test splits, or on one of `parts` of each."""
        torch.set_num_threads(self._threads)
        clients = self.clients
        set_weights(clients.model, weights)
        metrics = {}
        for name, split in clients.central.items():
            first, end = (len(split) * edge // parts for edge in (part, part + 1))
            mine = Split(split.inputs[first:end], split.targets[first:end])
            size = clients.evaluation_batch_size
            metrics[name] = evaluate(clients.model, clients.task, mine, size)
        return metrics
