"""CohortGrid: Flower's Grid over our pool, so that every Flower strategy runs unmodified."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NoReturn

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from heliotrope.metrics import ClassificationMetrics

from .choice import Choice
from .client import Failure, Update
from .messages import (
    become_server,
    content_of,
    error_reply,
    evaluate_reply,
    stamp,
    train_reply,
)
from .pool import Pool

__all__ = ["CohortGrid"]


class CohortGrid(Grid):
    """Delivers a strategy's messages to a pool of workers and brings back the replies.

    The cohort is decided outside: `offer` names the clients of the next messages, and the
    strategy finds exactly these connected. A node id is a client's number. Replies come in
    client order; with `reduce`, one reply stands for all of a worker's clients.
    """

    def __init__(self, pool: Pool, reduce: bool) -> None:
        become_server()
        self.pool = pool
        self._reduce = reduce
        self._offered: Sequence[int] = ()
        self._replies: dict[str, Message] = {}
        self.choice: Choice | None = None  # until the first round has been measured
        self.updates: list[Update] = []  # of the last round, without their arrays
        self.failures: list[Failure] = []
        self.evaluations: dict[int, ClassificationMetrics] = {}

    def offer(self, cohort: Sequence[int]) -> None:
        """Make exactly these clients available."""
        self._offered = cohort

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
        self.updates, self.failures, self.evaluations = [], [], {}
        replies: list[tuple[int, Message]] = []
        for group in groups.values():
            if group[0].metadata.message_type == MessageType.TRAIN:
                replies += self._train(group)
            else:
                replies += self._evaluate(group)
        return [reply for _, reply in sorted(replies, key=lambda pair: pair[0])]

    def _train(self, messages: Sequence[Message]) -> list[tuple[int, Message]]:
        weights, order = content_of(messages[0])
        asked = {message.metadata.dst_node_id: message for message in messages}
        cohort = sorted(asked)
        if self.choice is None:
            self.choice = self.pool.measure(weights, order, cohort)
        replies: list[tuple[int, Message]] = []
        waiting = set(cohort)
        for reply in self.pool.train(weights, order, cohort, self.choice, self._reduce):
            for update in reply.updates:
                first = update.clients[0]
                if not waiting.issuperset(update.clients):
                    self.failures += _rejected(update, waiting, asked)
                    continue
                waiting.difference_update(update.clients)
                replies.append((first, train_reply(update, asked[first])))
                self.updates.append(update)
            for failure in reply.failures:
                replies.append((failure.client, error_reply(failure.reason, asked[failure.client])))
                self.failures.append(failure)
        self.failures.sort(key=lambda failure: failure.client)
        return replies

    def _evaluate(self, messages: Sequence[Message]) -> list[tuple[int, Message]]:
        weights, _ = content_of(messages[0])
        asked = {message.metadata.dst_node_id: message for message in messages}
        done = self.pool.evaluate(weights, sorted(asked))
        self.evaluations |= done.metrics
        self.failures += done.failures
        return [
            *((who, evaluate_reply(metrics, asked[who])) for who, metrics in done.metrics.items()),
            *((bad.client, error_reply(bad.reason, asked[bad.client])) for bad in done.failures),
        ]

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
