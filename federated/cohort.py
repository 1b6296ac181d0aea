"""A cohort on its way through a worker: placed, trained, vetted, and reduced to one reply."""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from heliotrope.errors import ConfigError
from heliotrope.metrics import ClassificationMetrics

from .batched import train_stacked, why_not_batched
from .client import (
    Clients,
    Failure,
    Instruction,
    Update,
    Weights,
    evaluate_client,
    rejection,
    train_client,
)

__all__ = ["CohortWorker", "Reply", "check_batched", "place"]

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


def check_batched(clients: Clients) -> str | None:
    """Return why batched training is impossible; `ConfigError` if it was asked for outright."""
    reason = why_not_batched(clients.model)
    if reason is not None and clients.federated.client_training == "batched":
        raise ConfigError(
            f"federated.client_training=batched, but {reason}. "
            "Set federated.client_training=sequential or auto."
        )
    return reason


class CohortWorker:
    """Trains and evaluates clients in this process; the same object behind every pool."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients

    def measure(self, weights: Weights, order: Instruction, cohort: Sequence[int]) -> str:
        """Return "sequential" or "batched", whichever is faster for clients like these.

        Batched must win by a tenth: the choice should not hang on noise.
        """
        sample = list(cohort)[:_SAMPLE_CLIENTS]

        def sequential(steps: int) -> None:
            for client in sample:
                train_client(self.clients, weights, order, client, steps)

        def batched(steps: int) -> None:
            train_stacked(self.clients, weights, order, sample, steps)

        seconds = {"sequential": _timed(sequential), "batched": _timed(batched)}
        choice = min(seconds, key=lambda kind: seconds[kind] * (1.1 if kind == "batched" else 1))
        _log.info(
            "client training: %s (sequential %.1f ms, batched %.1f ms for %d clients, %d steps)",
            choice,
            seconds["sequential"] * 1e3,
            seconds["batched"] * 1e3,
            len(sample),
            _SAMPLE_STEPS,
        )
        return choice

    def train(
        self, weights: Weights, order: Instruction, cohort: Sequence[int], kind: str, reduce: bool
    ) -> Reply:
        """Train `cohort`, in client order; with `reduce`, answer with one mean of all.

        A client that raises, or whose update is not finite, is reported and left out.
        """
        failures: list[Failure] = []
        updates = self._vetted(self._trained(weights, order, cohort, kind, failures), failures)
        kept = _mean(updates) if reduce else list(updates)
        return Reply(kept, failures)

    def _trained(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        kind: str,
        failures: list[Failure],
    ) -> Iterable[Update]:
        if kind == "batched":
            for start in range(0, len(cohort), _STACK):
                yield from train_stacked(
                    self.clients, weights, order, cohort[start : start + _STACK]
                )
            return
        for client in cohort:
            try:
                yield train_client(self.clients, weights, order, client)
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed in round %d", client, order.server_round)
                failures.append(Failure(client, f"{type(error).__name__}: {error}"))

    @staticmethod
    def _vetted(updates: Iterable[Update], failures: list[Failure]) -> Iterable[Update]:
        for update in updates:
            reason = rejection(update)
            if reason is None:
                yield update
            else:
                failures.append(Failure(update.clients[0], reason))

    def evaluate(
        self, weights: Weights, cohort: Sequence[int]
    ) -> list[tuple[int, ClassificationMetrics]]:
        """Return each client's metrics on its held-out examples."""
        return [(client, evaluate_client(self.clients, weights, client)) for client in cohort]


def _timed(work: Callable[[int], None]) -> float:
    work(1)  # first calls compile kernels and load libraries
    started = time.perf_counter()
    work(_SAMPLE_STEPS)
    return time.perf_counter() - started


def _mean(updates: Iterable[Update]) -> list[Update]:
    """Return the mean weighted by examples as one update, or nothing if there is none.

    Summed in float64 in client order, so the result does not depend on how many clients a
    stack held.
    """
    sums: dict[str, Tensor] = {}
    members: list[Update] = []
    dtypes: dict[str, torch.dtype] = {}
    for update in updates:
        for name, value in update.arrays.items():
            weighted = value.to(torch.float64) * update.examples
            sums[name] = sums[name].add_(weighted) if name in sums else weighted
            dtypes[name] = value.dtype
        members.append(_without_arrays(update))
    if not members:
        return []
    examples = sum(member.examples for member in members)
    return [
        Update(
            clients=tuple(client for member in members for client in member.clients),
            arrays={name: (total / examples).to(dtypes[name]) for name, total in sums.items()},
            examples=examples,
            loss_sum=sum(member.loss_sum for member in members),
            seen=sum(member.seen for member in members),
            steps=sum(member.steps for member in members),
        )
    ]


def _without_arrays(update: Update) -> Update:
    return Update(update.clients, {}, update.examples, update.loss_sum, update.seen, update.steps)
