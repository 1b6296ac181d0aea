"""CohortGrid: Flower's Grid over our pool, so that every Flower strategy runs unmodified."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from torch import Tensor

from heliotrope.errors import ConfigError

from ..aggregation import Mean, Partial, mean_of, merged
from ..attacks.collusion import Colluders
from ..client_state import ClientStates, StateStore
from ..engine.client_metrics import Evaluations
from ..engine.execution import ExecutionPlan
from ..pools.base import Pool
from ..secure_rounds import SecureRounds
from ..updates import Failure, Instruction, StepNoise, Update, Weights
from .messages import (
    become_server,
    content_of,
    error_reply,
    evaluate_reply,
    stamp,
    train_reply,
)

__all__ = ["CohortGrid"]


class CohortGrid(Grid):
    """Delivers a strategy's messages to a pool of workers and brings back the replies.

    The cohort is decided outside: `offer` names the clients of the next messages, and the
    strategy finds exactly these connected. A node id is a client's number. Replies come in
    client order. With `reduce` there is one mean of all clients, `mean`: without
    `takes_mean` a reply that stands for all of them holds it too, as weights. Evaluations are
    sums, and one reply holds those of all clients. With `takes_updates` those of clients are in
    `updates` alone, and no reply holds them.
    """

    def __init__(
        self,
        pool: Pool,
        reduce: bool,
        *,
        takes_mean: bool = False,
        takes_updates: bool = False,
        states: StateStore | None = None,
        colluders: Colluders | None = None,
        secure: SecureRounds | None = None,
    ) -> None:
        become_server()
        self.pool = pool
        self._reduce = reduce
        self._takes_mean, self._takes_updates = takes_mean, takes_updates
        self.states = states  # of all clients, if they keep any
        self._colluders = colluders  # who know each update, and so without `reduce`
        self.noise: StepNoise | None = None  # that clients add where they protect each example
        self._secure = secure  # under which nothing but a round's sum is ever opened
        self._new_states: list[ClientStates] = []
        self._offered: Sequence[int] = ()
        self._replies: dict[str, Message] = {}
        self.execution: ExecutionPlan | None = None  # until it is decided, before the first round
        self.updates: list[Update] = []  # of the last round; of a worker's sum, without arrays
        self.mean: Mean | None = None  # of the last round
        self.loss_sum = 0.0  # of the last round's clients
        self.numbers: dict[str, float] = {}  # that they told, in the mean by their weights
        self.bytes_each = 0  # that each of them was sent, and as many that it sent back
        self.failures: list[Failure] = []
        self.evaluations: Evaluations | None = None  # of the last messages, if they asked for any

    def offer(self, cohort: Sequence[int]) -> None:
        """Make exactly these clients available."""
        self._offered = cohort

    def keep_states(self) -> None:
        """Keep what the last round's clients gave as their state: the round is accepted."""
        if self.states is not None:
            for states in self._new_states:
                self.states.put(states)

    def attackers_snapshot(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds of what attackers have learned, by name."""
        return {} if self._colluders is None else self._colluders.snapshot()

    def restore_attackers(self, arrays: Weights) -> None:
        """Go on from the arrays of a checkpoint, among which are those of the attackers."""
        if self._colluders is not None:
            self._colluders.restore(arrays)

    def personal_of(self, cohort: Sequence[int]) -> ClientStates | None:
        """Return the personal weights of each of `cohort`; None if the model has none."""
        return None if self.states is None else self.states.personal_of(cohort)

    def get_node_ids(self) -> list[int]:
        return list(self._offered)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - part of Flower's interface
    ) -> list[Message]:
        """Do the work that `messages` ask for; returns when it is done."""
        groups: dict[int, list[Message]] = {}
        for message in messages:  # a record shared by many messages is read once
            groups.setdefault(id(message.content), []).append(stamp(message))
        self._begin()
        replies: list[tuple[int, Message]] = []
        for group in groups.values():
            if group[0].metadata.message_type == MessageType.TRAIN:
                replies += self._train(group)
            else:
                replies += self._evaluate(group)
        return [reply for _, reply in sorted(replies, key=lambda pair: pair[0])]

    def evaluate(self, weights: Weights, cohort: Sequence[int]) -> None:
        """Evaluate clients without a message to each: what they say are the `evaluations`."""
        self._begin()
        self.evaluations = done = self.pool.evaluate(weights, cohort, self.personal_of(cohort))
        self.failures += done.failures

    def _begin(self) -> None:
        self.updates, self.failures, self.evaluations, self.mean = [], [], None, None

    def _train(self, messages: Sequence[Message]) -> list[tuple[int, Message]]:
        weights, instruction = content_of(messages[0])
        asked = {message.metadata.dst_node_id: message for message in messages}
        cohort = sorted(asked)
        assert self.execution is not None
        states = None if self.states is None else self.states.take(cohort)
        if self.noise is not None and instruction.start_loss:
            raise ConfigError(
                "The strategy asks clients for their loss, which tells of single examples without "
                "noise. Set federated/privacy=none or another federated/strategy."
            )
        instruction, starts = (
            replace(instruction, states=states, noise=self.noise).of(cohort),
            instruction.starts(weights),
        )
        self.bytes_each = instruction.sent_bytes(weights)
        replies: list[tuple[int, Message]] = []
        partials: list[Partial] = []
        losses: dict[int, float] = {}  # at the global weights
        waiting = set(cohort)
        self._new_states = []
        if self._secure is not None:
            return self._train_secretly(self._secure, weights, instruction, asked)
        for reply in self.pool.train(weights, instruction, cohort, self.execution, self._reduce):
            updates, given = reply.updates, set(waiting)
            losses |= reply.start_losses
            if reply.partial is not None:
                updates = [_summary(reply.partial)]
            for update in updates:
                if not waiting.issuperset(update.clients):
                    self.failures += _rejected(update, waiting, asked)
                    continue
                waiting.difference_update(update.clients)
                self.updates.append(update)
                if reply.partial is not None:
                    partials.append(reply.partial)
            for failure in reply.failures:
                replies.append((failure.client, error_reply(failure.reason, asked[failure.client])))
                self.failures.append(failure)
            accepted = given - waiting
            self._new_states += [states.take(accepted) for states in reply.states]
        if not partials:
            if self._colluders is not None:
                self.updates = self._colluders(self.updates, starts)
            for update in () if self._takes_updates else self.updates:
                client = update.clients[0]
                reply_to, loss = asked[client], losses.get(client)
                tells = self.noise is None
                replies.append((client, train_reply(update, reply_to, loss, tells_loss=tells)))
        if partials:
            self.mean = mean_of(partials, starts)
            replies += self._reply_of_all(_summary(merged(partials)), self.mean, starts, asked)
        each = [update.loss_sum for update in self.updates if update.arrays]
        self.loss_sum = math.fsum([*each, *(loss for part in partials for loss in part.loss_sums)])
        self.numbers = _means([u for u in self.updates if u.arrays], partials)
        self.failures.sort(key=lambda failure: failure.client)
        return replies

    def _train_secretly(
        self,
        secure: SecureRounds,
        weights: Weights,
        instruction: Instruction,
        asked: Mapping[int, Message],
    ) -> list[tuple[int, Message]]:
        """Train the clients that are asked, and open the sum of what they send."""
        assert self.execution is not None
        secret = secure.begin(instruction, weights, sorted(asked))
        done = self.pool.train_secretly(secret, weights, instruction, self.execution)
        self.mean, self.updates = done.mean, done.updates
        self.failures += done.failures
        self._new_states = done.states
        self.loss_sum = sum(update.loss_sum for update in self.updates)
        self.numbers = dict(self.updates[0].numbers) if self.updates else {}
        replies = [
            (bad.client, error_reply(bad.reason, asked[bad.client]))
            for bad in done.failures
            if bad.client in asked
        ]
        if self.mean is not None:
            starts = instruction.starts(weights)
            replies += self._reply_of_all(self.updates[0], self.mean, starts, asked)
        return replies

    def _reply_of_all(
        self, whole: Update, mean: Mean, starts: Weights, asked: Mapping[int, Message]
    ) -> list[tuple[int, Message]]:
        """Return the reply that stands for all clients; none if the strategy takes their mean."""
        if self._takes_mean:
            return []
        first = whole.clients[0]
        weights = mean.weights(starts)
        reply = train_reply(
            replace(whole, arrays=weights), asked[first], tells_loss=self.noise is None
        )
        return [(first, reply)]

    def _evaluate(self, messages: Sequence[Message]) -> list[tuple[int, Message]]:
        weights, _ = content_of(messages[0])
        asked = {message.metadata.dst_node_id: message for message in messages}
        cohort = sorted(asked)
        self.evaluations = done = self.pool.evaluate(weights, cohort, self.personal_of(cohort))
        self.failures += done.failures
        replies = [
            (bad.client, error_reply(bad.reason, asked[bad.client])) for bad in done.failures
        ]
        if done.clients:
            first = done.clients[0]
            replies.append((first, evaluate_reply(done.total, asked[first])))
        return replies

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Do the work at once and keep the replies for `pull_messages`."""
        ids = []
        for reply in self.send_and_receive(messages):
            ids.append(reply.metadata.reply_to_message_id)
            self._replies[ids[-1]] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: FlowerRun) -> None:
        """Accept and ignore: a simulation has one run."""

    @property
    def run(self) -> NoReturn:
        raise RuntimeError("A simulated federation has no SuperLink, and so no Flower run.")


def _summary(partial: Partial) -> Update:
    """Return what is known of the clients of a sum besides their arrays."""
    return Update(
        clients=partial.clients,
        arrays={},
        weight=partial.weight,
        loss_sum=math.fsum(partial.loss_sums),
        seen=partial.seen,
        weight_seen=partial.weight_seen,
        steps=partial.steps,
        numbers=_means((), [partial]),
    )


def _means(updates: Sequence[Update], partials: Sequence[Partial]) -> dict[str, float]:
    """Return the mean of each number that clients told, by their weights; rounded once."""
    weight = sum(u.weight for u in updates) + sum(p.weight for p in partials)
    terms: dict[str, list[float]] = {}
    for update in updates:
        for name, value in update.numbers.items():
            terms.setdefault(name, []).append(value * update.weight)
    for partial in partials:
        for name, values in partial.numbers.items():
            terms.setdefault(name, []).extend(values)
    return {name: math.fsum(values) / max(1, weight) for name, values in terms.items()}


def _rejected(
    update: Update, waiting: Collection[int], asked: Collection[int]
) -> Iterator[Failure]:
    """Yield why an update is left out of the round: a client's weight would count twice."""
    for client in update.clients:
        if client in waiting:
            why = "the client is part of a mean with one that was not expected"
        else:
            why = "the client has answered before" if client in asked else "it was not asked"
        yield Failure(client, f"update rejected: {why}")
