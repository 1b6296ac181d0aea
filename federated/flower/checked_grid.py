"""A grid of Flower's whose replies are vetted before a strategy sees them: for real clients.

In a deployment, clients are other people's machines. `CheckedGrid` stands between Flower's own
grid and any strategy, Flower's unmodified ones too::

    @server_app.main()
    def main(grid, context):
        FedAvg().start(grid=CheckedGrid(grid, quorum=0.8), initial_arrays=..., num_rounds=50)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from heliotrope.errors import QuorumError

from ..fractions import fraction_rounded_up
from ..updates import Failure, Weights
from .codec import read_arrays
from .messages import error_reply
from .passing_grid import PassingGrid
from .vetting import vetted_evaluations, vetted_updates

__all__ = ["CheckedGrid"]

_log = logging.getLogger(__name__)


class CheckedGrid(PassingGrid):
    """Passes on messages, and of the replies those that `vetting` finds fit.

    A client whose reply is not gives an error instead, which strategies leave out; one that was
    not asked, or answers twice, gives nothing. `failures` are those of the last messages.

    Parameters
    ----------
    grid
        Flower's.
    quorum
        The share of the clients asked that must succeed.
    most_weight
        Of one client, such as the most examples that one can have; None for what can be added up
        exactly. A client says itself what it weighs: a bound keeps one from outweighing all.
    """

    def __init__(self, grid: Grid, quorum: float = 1.0, most_weight: int | None = None) -> None:
        super().__init__(grid)
        self._quorum = quorum
        self._most_weight = most_weight
        self._pushed: dict[str, Message] = {}
        self.failures: list[Failure] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the vetted replies; `QuorumError` if too few clients have a good one."""
        asked = list(messages)
        replies = self._vetted(asked, list(self._grid.send_and_receive(asked, timeout=timeout)))
        answered = {reply.metadata.src_node_id for reply in replies}
        for message in asked:
            if message.metadata.dst_node_id not in answered:
                self._fail(Failure(message.metadata.dst_node_id, "it did not answer", "late"))
        good = sum(not reply.has_error() for reply in replies)
        needed = max(1, fraction_rounded_up(self._quorum, len(asked))) if asked else 0
        if good < needed:
            first = self.failures[0]
            raise QuorumError(
                f"{good} of {len(asked)} clients succeeded, quorum={self._quorum:g} asks for "
                f"{needed}. Failed: client {first.client} ({first.reason})"
                f"{f' and {len(self.failures) - 1} more' if len(self.failures) > 1 else ''}. Mend "
                "these clients, or lower the quorum to go on without them."
            )
        return replies

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        asked = list(messages)
        ids = list(self._grid.push_messages(asked))
        self._pushed.update(zip(ids, asked, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the vetted replies that have come; nobody knows yet whether more will."""
        ids = list(message_ids)
        replies = list(self._grid.pull_messages(ids))
        answered = {reply.metadata.reply_to_message_id for reply in replies}
        asked = [self._pushed[key] for key in ids if key in answered and key in self._pushed]
        return self._vetted(asked, replies)

    def _vetted(self, asked: Sequence[Message], replies: Sequence[Message]) -> list[Message]:
        self.failures = []
        by_client = {message.metadata.dst_node_id: message for message in asked}
        starts: dict[int, Weights] = {}  # by the content that many messages share

        def start_of(client: int) -> Weights:
            content = by_client[client].content
            if id(content) not in starts:
                starts[id(content)] = read_arrays(next(iter(content.array_records.values())))
            return starts[id(content)]

        taken: list[Message] = []
        for kind, group in self._by_kind(replies, by_client).items():
            if kind == MessageType.TRAIN:
                updates, failures = vetted_updates(group, start_of, self._most_weight)
                taken += [message for message, _ in updates]
            elif kind == MessageType.EVALUATE:
                good, failures = vetted_evaluations(group)
                taken += good
            else:
                taken += group
                continue
            for failure in failures:
                self._fail(failure)
            done = {message.metadata.src_node_id for message in taken}
            bad = {failure.client: failure.reason for failure in reversed(failures)}
            taken += [error_reply(why, by_client[c]) for c, why in bad.items() if c not in done]
        return taken

    def _by_kind(
        self, replies: Sequence[Message], by_client: dict[int, Message]
    ) -> dict[str, list[Message]]:
        """Return the replies of those who were asked, by what they were asked for."""
        groups: dict[str, list[Message]] = {}
        for reply in replies:
            client = reply.metadata.src_node_id
            message = by_client.get(client)
            if message is None:
                self._fail(Failure(client, "update rejected: it was not asked"))
                continue
            kind = message.metadata.message_type.partition(".")[0]  # such as train.NAME
            groups.setdefault(kind, []).append(reply)
        return groups

    def _fail(self, failure: Failure) -> None:
        _log.warning("client %d: %s", failure.client, failure.reason)
        self.failures.append(failure)
