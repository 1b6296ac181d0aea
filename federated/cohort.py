"""A cohort on its way through a worker: placed, trained, vetted, and reduced to one reply."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from heliotrope.metrics import ClassificationMetrics

from .batched import FastTrainer
from .capture import NotCapturableError
from .choice import Choice, candidates, fastest
from .client import (
    Clients,
    Failure,
    Instruction,
    Stack,
    Update,
    Weights,
    evaluate_client,
    train_client,
)

__all__ = ["CohortWorker", "Reply", "place"]

_log = logging.getLogger(__name__)

_STACK = 64  # clients trained in one stack: bounds memory, beyond it nothing gets faster
_SAMPLE_CLIENTS, _SAMPLE_STEPS = 16, 6  # what `measure` tries


@dataclass(frozen=True)
class Reply:
    """What a worker sends back for its part of a cohort."""

    updates: list[Update] = field(default_factory=list)
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

    def __init__(self, clients: Clients, threads: int) -> None:
        self.clients = clients
        self._threads = threads
        self._fast = FastTrainer(clients)

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> Choice:
        """Return the fastest way to train clients like these, of those the config allows."""
        sample = list(cohort)[:_SAMPLE_CLIENTS]

        def work(choice: Choice) -> Iterator[Stack]:
            return self._stacks(weights, order, sample, choice, [], _SAMPLE_STEPS)

        return fastest(candidates(self.clients.federated, self.clients, self._threads), work)

    def train(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        reduce: bool,
    ) -> Reply:
        """Train `cohort`, in client order; with `reduce`, answer with one mean of all.

        A client that raises, or whose update is not finite, is reported and left out.
        """
        torch.set_num_threads(choice.threads)
        failures: list[Failure] = []
        mean = _Mean()
        updates: list[Update] = []
        for stack in self._stacks(weights, order, cohort, choice, failures):
            rejected = stack.rejections()
            failures += [Failure(stack.clients[row], why) for row, why in rejected.items()]
            kept = [row for row in range(len(stack.clients)) if row not in rejected]
            if reduce:
                mean.add(stack, kept)
            else:
                updates += [stack.row(row) for row in kept]
        return Reply(mean.updates() if reduce else updates, failures)

    def _stacks(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        failures: list[Failure],
        max_steps: int | None = None,
    ) -> Iterator[Stack]:
        one_by_one: Sequence[int] = cohort
        if choice.kind == "batched":
            one_by_one = []
            for start in range(0, len(cohort), _STACK):
                part = cohort[start : start + _STACK]
                try:
                    yield self._fast.train_stacked(weights, order, part, max_steps)
                except Exception:  # noqa: BLE001 - tried again below, where it names a client
                    _log.exception("a stack failed: its clients are trained one by one")
                    one_by_one = [*one_by_one, *part]
        for client in one_by_one:
            try:
                yield self._one(weights, order, client, choice, max_steps)
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed in round %d", client, order.server_round)
                failures.append(Failure(client, f"{type(error).__name__}: {error}"))

    def _one(
        self,
        weights: Weights,
        order: Instruction,
        client: int,
        choice: Choice,
        max_steps: int | None,
    ) -> Stack:
        if choice.kind == "compiled":
            try:
                return self._fast.train_one(weights, order, client, max_steps)
            except NotCapturableError as error:
                _log.warning("client %d is trained uncompiled: %s", client, error)
        return train_client(self.clients, weights, order, client, max_steps)

    def evaluate(
        self, weights: Weights, cohort: Sequence[int]
    ) -> list[tuple[int, ClassificationMetrics]]:
        """Return each client's metrics on its held-out examples."""
        torch.set_num_threads(self._threads)
        return [(client, evaluate_client(self.clients, weights, client)) for client in cohort]


class _Mean:
    """The mean of clients' weights, weighted by examples; memory of one model.

    Clients are added in client order, so the sum is the same again when a run is resumed.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._members: list[Update] = []

    def add(self, stack: Stack, rows: Sequence[int]) -> None:
        """Add the clients in `rows` of a stack."""
        for row in rows:
            update = stack.row(row)
            for name, value in update.arrays.items():
                if name not in self._sums:
                    self._sums[name] = torch.zeros_like(value, dtype=_accumulator(value.dtype))
                self._sums[name].add_(value, alpha=update.examples)
            self._members.append(replace(update, arrays={}))

    def updates(self) -> list[Update]:
        """Return the mean as one update, or nothing if no client was added."""
        if not self._members:
            return []
        examples = sum(member.examples for member in self._members)
        return [
            Update(
                clients=tuple(c for member in self._members for c in member.clients),
                arrays={name: total / examples for name, total in self._sums.items()},
                examples=examples,
                loss_sum=sum(member.loss_sum for member in self._members),
                seen=sum(member.seen for member in self._members),
                steps=sum(member.steps for member in self._members),
            )
        ]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Floating-point weights are summed as they are; integer buffers would overflow."""
    return dtype if dtype.is_floating_point else torch.float64
