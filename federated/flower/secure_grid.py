"""A grid of Flower's under secure aggregation: for any strategy that needs no more than a mean.

    @server_app.main()
    def main(grid, context):
        secure = SecureGrid(grid, SecAgg(None, None, 32, 4.0), most_weight=10_000)
        FedAvg().start(grid=secure, initial_arrays=..., num_rounds=50)

It asks the clients of a round, whose apps have `secure_aggregation_mod`, through the stages of the
protocol, and gives the strategy one reply: the mean of their models, weighed by their examples. It
vets what it is sent itself: a `CheckedGrid` around it would miss the others' replies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from ..aggregation.masked import Layout
from ..secure_aggregation.quantization import Quantizer
from ..secure_aggregation.settings import DEFAULT_RANGE, SecAgg
from ..updates import Failure
from .messages import error_reply, read_arrays, to_record
from .passing_grid import PassingGrid
from .secure_play import SecurePlay

__all__ = ["SecureGrid"]

_log = logging.getLogger(__name__)


class SecureGrid(PassingGrid):
    """Opens nothing of a round's training but the mean; other messages it passes on.

    `failures` are the clients that a round has lost, and why. Raises `SecureAggregationError` if
    too few are left.

    Parameters
    ----------
    grid
        Flower's.
    settings
        The keys of `federated/secure_aggregation`.
    most_weight
        The most examples that a client may have: sums are safe up to it, and more are refused.
    told
        Names of metrics whose mean, by the clients' examples, is opened too.
    """

    def __init__(
        self,
        grid: Grid,
        settings: SecAgg,
        most_weight: int,
        told: Sequence[str] = ("train_loss",),
    ) -> None:
        super().__init__(grid)
        self._settings = settings
        self._most_weight, self._told = most_weight, tuple(sorted(told))
        self.failures: list[Failure] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies; to messages that train, one that stands for all."""
        asked = list(messages)
        if not asked or asked[0].metadata.message_type != MessageType.TRAIN:
            return list(self._grid.send_and_receive(asked, timeout=timeout))
        self.failures = []
        by_client = {message.metadata.dst_node_id: message for message in asked}
        count = len(by_client)
        (arrays,) = asked[0].content.array_records.values()
        layout = Layout(read_arrays(arrays), self._told)
        self._settings.check_neighbours(count)
        quantizer = Quantizer(
            self._settings.range or DEFAULT_RANGE,
            self._settings.bits,
            count,
            self._most_weight,
            count * self._most_weight,
        )
        self._settings.check_precision(quantizer)
        setup = self._settings.setup(count, count, layout.size, layout.numbers)

        def ask(contents: Mapping[int, RecordDict]) -> Iterable[tuple[int, Message | str]]:
            return self._ask(contents, by_client, timeout)

        play = SecurePlay(setup, quantizer, self._told, ask, self._fail)
        contents = {client: message.content for client, message in by_client.items()}
        mean, whole = layout.mean(*play(contents), quantizer)
        metrics = MetricRecord({"num-examples": mean.weight, **whole.numbers})
        content = RecordDict({"arrays": to_record(mean.weights(layout.starts)), "metrics": metrics})
        lost = [error_reply(f.reason, by_client[f.client]) for f in self.failures]
        return [Message(content, reply_to=by_client[mean.clients[0]]), *lost]

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        by_client: Mapping[int, Message],
        timeout: float | None,
    ) -> Iterator[tuple[int, Message]]:
        """Send each client its content; yield the answers of those that were asked."""
        sent = [
            Message(
                content,
                dst_node_id=client,
                message_type=MessageType.TRAIN,
                group_id=by_client[client].metadata.group_id,
            )
            for client, content in contents.items()
        ]
        for reply in self._grid.send_and_receive(sent, timeout=timeout):
            client = reply.metadata.src_node_id
            if client not in contents:
                _log.warning("client %d: an answer that was not asked for", client)
                continue
            yield client, reply

    def _fail(self, client: int, reason: str) -> None:
        _log.warning("client %d: %s", client, reason)
        self.failures.append(Failure(client, reason))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on messages that train nobody: those go by `send_and_receive`."""
        asked = list(messages)
        if any(message.metadata.message_type == MessageType.TRAIN for message in asked):
            raise RuntimeError("Training under secure aggregation goes by send_and_receive.")
        return self._grid.push_messages(asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)
