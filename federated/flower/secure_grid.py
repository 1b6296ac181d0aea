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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from ..aggregation.masked import Layout
from ..secure_aggregation.messages import (
    Advertisement,
    EncryptedShares,
    RefusedMessageError,
    RevealedShares,
    Setup,
)
from ..secure_aggregation.quantization import Quantizer
from ..secure_aggregation.server import Server
from ..secure_aggregation.settings import DEFAULT_RANGE, SecAgg
from ..updates import Failure
from .messages import error_reply, read_arrays, to_record
from .passing_grid import PassingGrid
from .secure_client import QUANTIZER, TOLD
from .secure_codec import SECURE, decoded, encoded, masked_input

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
        server = self._play(setup, quantizer, by_client, timeout)
        mean, whole = layout.mean(server.total(), server.included, quantizer)
        metrics = MetricRecord({"num-examples": mean.weight, **whole.numbers})
        content = RecordDict({"arrays": to_record(mean.weights(layout.starts)), "metrics": metrics})
        lost = [error_reply(f.reason, by_client[f.client]) for f in self.failures]
        return [Message(content, reply_to=by_client[mean.clients[0]]), *lost]

    def _play(
        self,
        setup: Setup,
        quantizer: Quantizer,
        by_client: Mapping[int, Message],
        timeout: float | None,
    ) -> Server:
        """Ask the clients through the four stages."""
        server = Server(setup, list(by_client))
        names = ConfigRecord({"names": list(self._told)})
        first = RecordDict({SECURE: encoded(setup), QUANTIZER: encoded(quantizer), TOLD: names})

        def advertised(record: ConfigRecord, client: int) -> None:
            server.receive_advertisement(decoded(Advertisement, record, client))

        def shared(record: ConfigRecord, client: int) -> None:
            server.receive_shares(decoded(EncryptedShares, record, client))

        def masked(record: ConfigRecord, client: int) -> None:
            server.receive_input(masked_input(record, setup, client))

        def revealed(record: ConfigRecord, client: int) -> None:
            server.receive_revealed(decoded(RevealedShares, record, client))

        def ask(contents: Mapping[int, RecordDict], take: Callable[..., None]) -> None:
            self._ask(contents, by_client, take, timeout)

        def only(messages: Mapping[int, Any]) -> dict[int, RecordDict]:
            return {c: RecordDict({SECURE: encoded(message)}) for c, message in messages.items()}

        ask(dict.fromkeys(by_client, first), advertised)
        ask(only(server.rosters()), shared)
        training = {
            client: RecordDict({**by_client[client].content, SECURE: encoded(message)})
            for client, message in server.forwarded().items()
        }
        ask(training, masked)
        ask(only(server.survivors()), revealed)
        return server

    def _ask(
        self,
        contents: Mapping[int, RecordDict],
        by_client: Mapping[int, Message],
        take: Callable[[ConfigRecord, int], None],
        timeout: float | None,
    ) -> None:
        """Send each client its content, and take the answers; who gives none has dropped out."""
        sent = [
            Message(
                content,
                dst_node_id=client,
                message_type=MessageType.TRAIN,
                group_id=by_client[client].metadata.group_id,
            )
            for client, content in contents.items()
        ]
        waiting = set(contents)
        for reply in self._grid.send_and_receive(sent, timeout=timeout):
            client = reply.metadata.src_node_id
            if client not in waiting:
                _log.warning("client %d: an answer that was not asked for", client)
                continue
            waiting.remove(client)
            if reply.has_error():
                self._fail(client, str(reply.error.reason))
                continue
            try:
                if SECURE not in reply.content.config_records:
                    raise RefusedMessageError(
                        f"client {client} is refused: it gives no answer of secure aggregation. "
                        "Set mods=[secure_aggregation_mod] in its ClientApp."
                    )
                take(reply.content.config_records[SECURE], client)
            except RefusedMessageError as error:
                self._fail(client, str(error))
        for client in sorted(waiting):
            self._fail(client, "it did not answer")

    def _fail(self, client: int, reason: str) -> None:
        _log.warning("client %d: %s", client, reason)
        if client not in {failure.client for failure in self.failures}:
            self.failures.append(Failure(client, reason))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on messages that train nobody: those go by `send_and_receive`."""
        asked = list(messages)
        if any(message.metadata.message_type == MessageType.TRAIN for message in asked):
            raise RuntimeError("Training under secure aggregation goes by send_and_receive.")
        return self._grid.push_messages(asked)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)
