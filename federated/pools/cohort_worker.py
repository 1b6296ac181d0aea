"""A cohort on its way through a worker: measured, divided among lanes, and evaluated."""

from __future__ import annotations

import heapq
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from heliotrope.evaluation import evaluate
from heliotrope.metrics import Metrics
from heliotrope.seeding import isolated_rng, seed
from heliotrope.system.allocator import keep_freed_memory

from ..aggregation import merged
from ..algorithms import ClientAlgorithm
from ..client_state import ClientStates
from ..engine.client_metrics import Evaluations
from ..engine.context import TrainingContext
from ..engine.evaluation import ClientEvaluator
from ..engine.execution import Decision, ExecutionPlan, decide
from ..engine.personal_evaluation import evaluate_splits_of
from ..engine.thread_lane import Reply, ThreadLane
from ..engine.time_limit import Watch
from ..updates import Instruction, StepNoise, Weights

__all__ = ["CohortWorker", "assign_clients"]

_T = TypeVar("_T")


def assign_clients(costs: Sequence[int], cohort: Sequence[int], workers: int) -> list[list[int]]:
    """Divide `cohort` among `workers`, longest first to the least loaded; client order within.

    Costs are numbers of examples rather than measured times, which need not be known beforehand.
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

    def __init__(self, context: TrainingContext, threads: int, note: Path | None = None) -> None:
        keep_freed_memory()
        self.context = context
        self.watch = Watch(note)
        self.threads = threads
        self._lanes = [ThreadLane(context, self.watch)]
        self._evaluator = ClientEvaluator(context, self.watch)
        if context.federated.client_timeout is not None:
            # torch.optim imports it at first use, and an import that is cut off cannot be redone.
            importlib.import_module("torch._dynamo")

    def decide(self, cohort: int, algorithms: tuple[ClientAlgorithm, ...]) -> Decision:
        """Return how `cohort` clients a round are trained; see `execution`.

        With one thread: its few steps are as quick so, also where others use the CPUs.
        """
        torch.set_num_threads(1)
        return decide(self.context, cohort, self.threads, algorithms, self.watch)

    def steps(self, execution: ExecutionPlan, cohort: Sequence[int], max_steps: int) -> int:
        """Take at most `max_steps` local steps of each client; return how many there were."""
        weights = self.context.global_weights

        def take(lane: ThreadLane, part: Sequence[int]) -> int:
            noise = StepNoise(dict.fromkeys(part, 1.0), "tried")
            return lane.steps(weights, Instruction(1, noise=noise), part, execution, max_steps)

        return sum(self._in_lanes(execution, cohort, take))

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> Reply:
        """Train `cohort`; with `reduce`, answer with one sum of all.

        A client that raises, or whose update is not finite, is reported and left out.
        """

        def train(lane: ThreadLane, part: Sequence[int]) -> Reply:
            return lane.train(weights, instruction, part, execution, reduce)

        replies = self._in_lanes(execution, cohort, train)
        updates = [update for reply in replies for update in reply.updates]
        failures = [failure for reply in replies for failure in reply.failures]
        partials = [reply.partial for reply in replies if reply.partial is not None]
        return Reply(
            sorted(updates, key=lambda update: update.clients),
            sorted(failures, key=lambda failure: failure.client),
            merged(partials) if partials else None,
            {client: loss for reply in replies for client, loss in reply.start_losses.items()},
            [states for reply in replies for states in reply.states],
            [masked for reply in replies for masked in reply.masked],
        )

    def _in_lanes(
        self,
        execution: ExecutionPlan,
        cohort: Sequence[int],
        work: Callable[[ThreadLane, Sequence[int]], _T],
    ) -> list[_T]:
        """Return what `work` gives for each lane's part of `cohort`, as many at once as may be.

        The parts depend on the cohort alone, also where a resumed run has fewer threads.
        """
        free = self.context.federated.client_timeout is None  # only the main thread can be cut off
        at_once = min(execution.lanes, self.threads) if free else 1
        while len(self._lanes) < execution.lanes:
            model = self.context.fresh_model(self.context.model.state_dict())
            mine = replace(self.context, model=model)
            self._lanes.append(ThreadLane(mine, self.watch, beside=self._lanes[0]))

        def do(lane: ThreadLane, part: Sequence[int]) -> _T:
            torch.set_num_threads(
                min(execution.threads, self.threads)
            )  # of the thread that calls it
            return work(lane, part)

        lanes = self._lanes[: execution.lanes]
        parts = assign_clients(self.context.population.train_sizes(cohort), cohort, execution.lanes)
        if at_once == 1:
            return [do(lane, part) for lane, part in zip(lanes, parts, strict=True)]
        with ThreadPoolExecutor(at_once) as threads:
            try:
                return list(threads.map(do, lanes, parts))
            except BaseException:  # such as Ctrl-C: nobody waits for the rest of the parts
                for lane in lanes:
                    lane.stopped = True
                raise
            finally:
                torch.set_num_threads(self.threads)  # for what is done with the lanes' sums

    def evaluate(
        self, weights: Weights, cohort: Sequence[int], states: ClientStates | None = None
    ) -> Evaluations:
        """Evaluate each client on its held-out examples; one that fails is reported."""
        torch.set_num_threads(self.threads)
        return self._evaluator.evaluate(weights, cohort, states)

    def evaluate_splits_of(self, weights: Weights, states: ClientStates) -> dict[str, Metrics]:
        """Return the metrics of the clients in `states` on their examples of the other splits."""
        torch.set_num_threads(self.threads)
        return evaluate_splits_of(self.context, weights, states)

    def evaluate_centrally(
        self, weights: Weights, part: int = 0, parts: int = 1
    ) -> dict[str, Metrics]:
        """Return the metrics on the validation and test splits, or on one of `parts` of each."""
        torch.set_num_threads(self.threads)
        context = self.context
        model, metrics = context.fresh_model(weights), {}
        with isolated_rng(seed(context.run_seed, "evaluation")):
            for name, split in context.central.items():
                first, end = (len(split) * edge // parts for edge in (part, part + 1))
                if context.task.joint:  # each example is compared with all: by the first worker
                    first, end = 0, len(split) if part == 0 else 0
                mine = split.subset(slice(first, end))
                metrics[name] = evaluate(model, context.task, mine, context.evaluation_batch_size)
        return metrics
