"""A lane of a worker: clients trained one after another, vetted, and reduced to one reply."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batched import FastTrainer
from .capture import NotCapturableError
from .choice import Choice
from .client import Clients, Failure, Instruction, Stack, Update, Weights, train_client
from .time_limit import Limit, Watch, limit_of

__all__ = ["Lane", "Reply"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a worker sends back for its part of a cohort."""

    updates: list[Update] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class Lane:
    """Trains clients in the model of `clients`, which is its own while it works."""

    def __init__(self, clients: Clients, watch: Watch) -> None:
        self.clients = clients
        self._watch = watch
        self.stopped = False  # set from another thread: no more clients are begun
        self._fast = FastTrainer(clients)

    def steps(
        self,
        weights: Weights,
        order: Instruction,
        cohort: Sequence[int],
        choice: Choice,
        max_steps: int,
    ) -> int:
        """Take at most `max_steps` local steps of each client; return how many there were."""
        stacks = self._stacks(weights, order, cohort, choice, [], max_steps)
        return sum(sum(stack.steps) for stack in stacks)

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
        failures: list[Failure] = []
        mean = _Mean(weights)
        updates: list[Update] = []
        for stack in self._stacks(weights, order, cohort, choice, failures):
            if not (reduce and mean.took(stack)):
                rejected = stack.rejections(weights)
                failures += [Failure(stack.clients[row], why) for row, why in rejected.items()]
                kept = stack.without(rejected)
                if reduce:
                    mean.add(kept)
                else:
                    updates += kept.rows()
                del kept
            del stack  # before the next one is made
        updates.sort(key=lambda update: update.clients)
        failures.sort(key=lambda failure: failure.client)
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
            sizes = self.clients.population.train_sizes(cohort)
            alike = [client for _, client in sorted(zip((-n for n in sizes), cohort, strict=True))]
            for start in range(0, len(alike), choice.stack):
                part = alike[start : start + choice.stack]
                limit = self._limit(max_steps, len(part))
                try:
                    with self._watch.over(part, limit):
                        stack = self._fast.train_stacked(weights, order, part, limit)
                    yield stack
                except Exception:  # noqa: BLE001 - tried again below, where it names a client
                    _log.exception("a stack failed: its clients are trained one by one")
                    one_by_one = [*one_by_one, *part]
        for client in one_by_one:
            if self.stopped:
                return
            limit = self._limit(max_steps)
            try:
                with self._watch.over([client], limit):
                    stack = self._one(weights, order, client, choice, limit)
                yield stack
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed in round %d", client, order.server_round)
                failures.append(Failure(client, f"{type(error).__name__}: {error}"))

    def _limit(self, max_steps: int | None, clients: int = 1) -> Limit:
        """Return the limit of some clients that are trained together, from now on."""
        return limit_of(self.clients.federated.client_timeout, clients, max_steps)

    def _one(
        self,
        weights: Weights,
        order: Instruction,
        client: int,
        choice: Choice,
        limit: Limit,
    ) -> Stack:
        if choice.kind == "compiled":
            try:
                return self._fast.train_one(weights, order, client, limit)
            except NotCapturableError as error:
                _log.warning("client %d is trained uncompiled: %s", client, error)
        return train_client(self.clients, weights, order, client, limit)


class _Mean:
    """The mean of clients' weights, weighted by examples; memory of one model.

    Clients are added in the same order whenever a round is repeated, so the sum is the same.
    """

    def __init__(self, weights: Weights) -> None:
        self._shapes = {name: value.shape for name, value in weights.items()}
        self._sums: dict[str, Tensor] = {}
        self._clients: list[int] = []
        self._examples = self._seen = self._steps = 0
        self._loss_sum = 0.0

    def took(self, stack: Stack) -> bool:
        """Add the clients of a stack, if the sum shows that all of them are sound.

        A sum is finite only if all its terms are: looking at each takes as long as the sum.
        """
        sums, scale = _weighted_sums(stack)
        sound = all(
            self._shapes[name] == total.shape and bool(torch.isfinite(total.sum()))
            for name, total in sums.items()
        )
        if sound:
            self._count(stack, sums, scale)
        return sound

    def add(self, stack: Stack) -> None:
        """Add the clients of a stack."""
        if stack.clients:
            self._count(stack, *_weighted_sums(stack))

    def _count(self, stack: Stack, sums: Weights, scale: int) -> None:
        for name, total in sums.items():
            if name in self._sums:
                self._sums[name].add_(total, alpha=scale)
            else:
                self._sums[name] = total * scale
        self._clients += stack.clients
        self._examples += sum(stack.examples)
        self._loss_sum += sum(stack.loss_sums)
        self._seen += sum(stack.seen)
        self._steps += sum(stack.steps)

    def updates(self) -> list[Update]:
        """Return the mean as one update, or nothing if no client was added."""
        if not self._clients:
            return []
        return [
            Update(
                clients=tuple(sorted(self._clients)),
                arrays={name: total / self._examples for name, total in self._sums.items()},
                examples=self._examples,
                loss_sum=self._loss_sum,
                seen=self._seen,
                steps=self._steps,
            )
        ]


def _weighted_sums(stack: Stack) -> tuple[dict[str, Tensor], int]:
    """Return sums over the clients, and the factor by which they are too small."""
    kinds = {name: _accumulator(value.dtype) for name, value in stack.arrays.items()}
    if len(stack.clients) == 1:
        return {name: v[0].to(kinds[name]) for name, v in stack.arrays.items()}, stack.examples[0]
    sums = {}
    for name, value in stack.arrays.items():
        examples = torch.tensor(stack.examples, dtype=kinds[name], device=value.device)
        sums[name] = torch.tensordot(examples, value.to(kinds[name]), 1)
    return sums, 1


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """Floating-point weights are summed as they are; integer buffers would overflow."""
    return dtype if dtype.is_floating_point else torch.float64
