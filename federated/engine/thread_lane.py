"""A lane of a worker: clients trained one after another, vetted, and reduced to one reply."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..aggregation import Partial, Reduction
from ..aggregation.masked import Layout, MaskedReduction
from ..client_state import ClientStates
from ..secure_aggregation.messages import MaskedInput
from ..updates import Failure, Instruction, Stack, Update, Weights
from .capture import NotCapturableError
from .client_updates import ClientUpdates
from .context import TrainingContext
from .execution import ExecutionPlan
from .sequential import train_client
from .stacked import FastTrainer
from .start_loss import start_loss
from .time_limit import Limit, Watch, limit_of

__all__ = ["Reply", "ThreadLane"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """What a worker sends back for its part of a cohort: each update, or their sum.

    Parameters
    ----------
    updates, partial
        Each client's, or their exact sum; None if no client succeeded, or updates are sent.
    failures
        The clients that are left out, and why.
    start_losses
        Of each client, the mean loss before it trained, where the instruction asks for it.
    states
        What the clients that succeeded keep.
    masked
        In place of updates or a sum, each client's input of secure aggregation.
    """

    updates: list[Update] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    partial: Partial | None = None
    start_losses: dict[int, float] = field(default_factory=dict)
    states: list[ClientStates] = field(default_factory=list)
    masked: list[MaskedInput] = field(default_factory=list)


class ThreadLane:
    """Trains clients in the model of `context`, which is its own while it works.

    Steps that are captured are shared with the lane `beside` it.
    """

    def __init__(
        self, context: TrainingContext, watch: Watch, beside: ThreadLane | None = None
    ) -> None:
        self.context = context
        self._watch = watch
        self.stopped = False  # set from another thread: no more clients are begun
        captured = None if beside is None else beside._fast.captured  # noqa: SLF001 - its like
        self._fast: FastTrainer = FastTrainer(context, captured=captured)
        self._finished = ClientUpdates.of(context)

    def steps(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        max_steps: int,
    ) -> int:
        """Take at most `max_steps` local steps of each client; return how many there were."""
        stacks = self._stacks(weights, instruction, cohort, execution, [], max_steps)
        return sum(sum(stack.steps) for stack in stacks)

    def train(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        reduce: bool,
    ) -> Reply:
        """Train `cohort`; with `reduce`, answer with one sum of all, or with masked inputs.

        A client that raises, or whose update is not finite, is reported and left out.
        """
        failures: list[Failure] = []
        updates: list[Update] = []
        states: list[ClientStates] = []
        starts = instruction.starts(weights)
        reduction: Reduction | MaskedReduction | None = None
        if instruction.masking is not None:
            reduction = MaskedReduction(Layout.of(instruction, weights), instruction.masking)
        elif reduce:
            reduction = Reduction(starts, self.context.total_weight)
        for trained in self._stacks(weights, instruction, cohort, execution, failures):
            stack = self._finished(trained, weights, instruction, rounded=reduction is None)
            del trained
            if reduction is not None:
                left_out = reduction.add(stack)
            else:
                rejected = stack.rejections(starts)
                left_out = list(rejected.values())
                updates += stack.without(rejected).rows()
            failures += left_out
            if stack.states:
                succeeded = set(stack.clients) - {failure.client for failure in left_out}
                states.append(ClientStates(stack.clients, stack.states).take(succeeded))
            del stack  # before the next one is made
        total = reduction.partial() if isinstance(reduction, Reduction) else None
        masked = reduction.inputs if isinstance(reduction, MaskedReduction) else []
        losses = {}
        if instruction.start_loss:
            done = [client for update in updates for client in update.clients]
            losses = self._start_losses(weights, instruction, done, failures)
            updates = [update for update in updates if losses.keys() >= set(update.clients)]
        updates.sort(key=lambda update: update.clients)
        failures.sort(key=lambda failure: failure.client)
        return Reply(updates, failures, total, losses, states, masked)

    def _start_losses(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        failures: list[Failure],
    ) -> dict[int, float]:
        """Return clients' losses at the global weights; one without is reported."""
        losses = {}
        for client in cohort:
            limit = self._limit(None)
            try:
                with self._watch.over([client], limit):
                    loss = start_loss(self.context, weights, instruction, client, limit)
                if math.isfinite(loss):
                    losses[client] = loss
                else:
                    why = f"its loss at the global weights is {loss}"
                    failures.append(Failure(client, why, "diverged"))
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed: its loss at the global weights", client)
                failures.append(Failure.of(client, error))
        return losses

    def _stacks(
        self,
        weights: Weights,
        instruction: Instruction,
        cohort: Sequence[int],
        execution: ExecutionPlan,
        failures: list[Failure],
        max_steps: int | None = None,
    ) -> Iterator[Stack]:
        one_by_one: Sequence[int] = cohort
        if execution.kind == "batched":
            one_by_one = []
            sizes = self.context.population.train_sizes(cohort)
            alike = [client for _, client in sorted(zip((-n for n in sizes), cohort, strict=True))]
            for start in range(0, len(alike), execution.stack):
                part = alike[start : start + execution.stack]
                limit = self._limit(max_steps, len(part))
                try:
                    # Not kept here, so that its memory is free before the next one is made.
                    yield from self._watched(
                        part,
                        limit,
                        partial(self._fast.train_stacked, weights, instruction, part, limit),
                    )
                except Exception:  # noqa: BLE001 - tried again below, where it names a client
                    _log.exception("a stack failed: its clients are trained one by one")
                    one_by_one = [*one_by_one, *part]
        for client in one_by_one:
            if self.stopped:
                return
            limit = self._limit(max_steps)
            try:
                yield from self._watched(
                    [client],
                    limit,
                    partial(self._one, weights, instruction, client, execution, limit),
                )
            except Exception as error:  # noqa: BLE001 - whatever it raises is its own failure
                _log.exception("client %d failed in round %d", client, instruction.server_round)
                failures.append(Failure.of(client, error))

    def _watched(
        self, clients: Sequence[int], limit: Limit, train: Callable[[], Stack]
    ) -> Iterator[Stack]:
        with self._watch.over(clients, limit):
            held = [train()]
        yield held.pop()

    def _limit(self, max_steps: int | None, clients: int = 1) -> Limit:
        """Return the limit of some clients that are trained together, from now on."""
        return limit_of(self.context.federated.client_timeout, clients, max_steps)

    def _one(
        self,
        weights: Weights,
        instruction: Instruction,
        client: int,
        execution: ExecutionPlan,
        limit: Limit,
    ) -> Stack:
        if execution.kind == "captured":
            try:
                return self._fast.train_one(weights, instruction, client, limit)
            except NotCapturableError as error:
                _log.warning("client %d is trained without captured steps: %s", client, error)
        return train_client(self.context, weights, instruction, client, limit)
